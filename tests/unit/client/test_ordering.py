"""Graphs are ordered as well as dask orders them."""

import itertools

import dask
import dask.array
import dask.bag
import pytest
from dask._task_spec import Task, TaskRef
from dask.base import collections_to_expr
from dask.order import order
from daskfleet.client.encode import as_nodes
from daskfleet.client.ordering import in_order
from hypothesis import given
from hypothesis import strategies as st


def use(*inputs):
    return inputs


def most_at_once(keys, graph):
    """The most results in memory if tasks run one by one in this order and a result goes with its last use."""
    uses = dict.fromkeys(graph, 0)
    for node in graph.values():
        for key in node.dependencies & uses.keys():
            uses[key] += 1
    held = most = 0
    done = set()
    for key in keys:
        assert graph[key].dependencies & uses.keys() <= done, f"{key} before what it depends on"
        done.add(key)
        held += 1
        most = max(most, held)
        for needed in graph[key].dependencies & uses.keys():
            uses[needed] -= 1
            held -= not uses[needed]
    assert done == set(graph)
    return most


def collections():
    x = dask.array.ones((200, 200), chunks=(10, 10))
    y = dask.array.zeros((200, 200), chunks=(10, 10))
    one, use_later = dask.delayed(use)(1), [dask.delayed(use)(i) for i in range(64)]
    scan = one
    for later in use_later:
        scan = dask.delayed(use)(scan, later)
    return {
        "tree": dask.array.ones(1000, chunks=1).sum(split_every=8),
        "transposed": (x + x.T).mean(),
        "anomalies": (x - x.mean(axis=0)).std(axis=0),
        "two inputs": (x * y).mean(axis=0) + (x - y).std(axis=0),
        "product": (x @ y).sum(),
        "neighbours": x.map_overlap(use, depth=1, meta=x._meta).sum(),
        "columns": x.rechunk((200, 10)).sum(axis=0),
        "groups": dask.bag.range(512, npartitions=64).groupby(abs).count(),
        "scan": scan,
        "pairs": dask.delayed(use)([dask.delayed(use)(a, b) for a, b in itertools.pairwise(use_later)]),
        "shared": dask.delayed(use)([dask.delayed(use)(one, later) for later in use_later]),
        "loads": dask.array.ones(100, chunks=1),
    }


COLLECTIONS = collections()


@pytest.mark.parametrize("name", COLLECTIONS)
def test_no_more_is_held_than_in_dasks_own_order(name):
    expression = collections_to_expr([COLLECTIONS[name]]).optimize()
    graph = as_nodes(dict(expression.__dask_graph__()))
    theirs = order(graph)
    assert most_at_once(in_order(graph), graph) <= most_at_once(sorted(graph, key=theirs.__getitem__), graph)


@given(st.lists(st.sets(st.integers(0, 30), max_size=4), min_size=1, max_size=30))
def test_every_task_comes_once_and_after_its_inputs(inputs):
    """Whatever the graph; the highest numbers are keys from outside, as of futures."""
    graph = {
        n: Task(n, use, *(TaskRef(key) for key in keys if key < n or key >= len(inputs)))
        for n, keys in enumerate(inputs)
    }
    keys = in_order(graph)
    assert len(keys) == len(graph)
    most_at_once(keys, graph)


def test_what_is_used_once_comes_just_before():
    loads = {("load", i): Task(("load", i), use, i) for i in range(9)}
    sums = {("sum", i): Task(("sum", i), use, *(TaskRef(("load", 3 * i + j)) for j in range(3))) for i in range(3)}
    keys = in_order(loads | sums)
    for i in range(3):
        at = keys.index(("sum", i))
        assert keys[at - 3 : at] == [("load", 3 * i + j) for j in range(3)]


def test_a_cycle_is_named():
    graph = {"load": Task("load", use), "a": Task("a", use, TaskRef("b"), TaskRef("load"))}
    graph["b"] = Task("b", use, TaskRef("a"))
    with pytest.raises(RuntimeError, match=r"Cycle.*\n.*a.*\n.*b"):
        in_order(graph)
