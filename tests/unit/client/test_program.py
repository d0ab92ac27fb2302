"""Fused tasks become shared programs that compute what dask would."""

import operator

import dask.array
import dask.bag
import dask.core
import numpy
import pytest
from dask._task_spec import Alias, DataNode, Dict, List, Set, Task, TaskRef, Tuple, _execute_subgraph, execute_graph
from dask.base import collections_to_expr
from daskfleet.client.delayed import faster
from daskfleet.client.encode import GraphEncoder, as_nodes, without_aliases
from daskfleet.client.program import Compiler, is_simple
from daskfleet.protocol.serialize import loads
from daskfleet.protocol.spec import evaluate


def double(x):
    return 2 * x


def keep(*args, **kwargs):
    return args, kwargs


def outside(key):
    raise AssertionError(f"{key!r} is not in the graph")


def run(graph):
    """Every node's value by way of the rows that a scheduler and worker would get."""
    encoder, values, keys = GraphEncoder(outside), {}, []
    order = [node.key for node in topological(graph)]
    for key in order:
        _, _, function, payload, dependencies, _, _ = encoder.row(0, key, graph[key], None)
        keys.append((key, function, payload, dependencies or []))
    functions, _ = encoder.take()
    for key, function, payload, dependencies in keys:
        args, kwargs = loads(payload)
        inputs = [values[order[position]] for position in dependencies]
        values[key] = evaluate(loads(functions[function]), args, kwargs, inputs)
    return values, functions


def topological(graph):
    done = set()
    while len(done) < len(graph):
        for key, node in graph.items():
            if key not in done and all(dep in done for dep in node.dependencies):
                done.add(key)
                yield node


GRAPHS = {
    "call": {"a": DataNode("a", 1), "b": Task("b", operator.add, TaskRef("a"), 2)},
    "alias": {"a": DataNode("a", 1), "b": Alias("b", "a")},
    "containers": {
        "a": DataNode("a", 1),
        "b": Task("b", keep, List(TaskRef("a"), 2), Tuple(TaskRef("a")), Set(TaskRef("a")), Dict({"x": TaskRef("a")})),
    },
    "nested call": {"a": DataNode("a", 3), "b": Task("b", double, Task(None, double, TaskRef("a")), )},
    "keywords": {"a": DataNode("a", 3), "b": Task("b", keep, 1, x=TaskRef("a"), y=List(TaskRef("a"), None))},
    "callable argument": {"a": DataNode("a", [3, 1]), "b": Task("b", sorted, TaskRef("a"), key=operator.neg)},
    "fused": {
        "a": DataNode("a", 3),
        "b": Task.fuse(
            Task("x", double, TaskRef("a")),
            Task("y", operator.add, TaskRef("x"), TaskRef("a")),
            Task("b", double, TaskRef("y")),
        ),
    },
    "fused twice": {
        "a": DataNode("a", 3),
        "b": Task.fuse(
            Task.fuse(Task("x", double, TaskRef("a")), Task("y", double, TaskRef("x"))), Task("b", double, TaskRef("y"))
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_values_are_those_of_dask(name):
    graph = GRAPHS[name]
    values, _ = run(graph)
    expected = execute_graph(dict(graph), keys=set(graph))
    assert {key: values[key] for key in expected} == dict(expected)


def test_equal_structure_shares_one_function():
    def chunk(i):
        return Task.fuse(Task(("x", i), double, i), Task(("y", i), operator.add, TaskRef(("x", i)), 1), key=("y", i))

    values, functions = run({("y", i): chunk(i) for i in range(50)})
    assert values == {("y", i): 2 * i + 1 for i in range(50)}
    assert len(functions) == 1


def test_steps_that_tasks_share_are_taken_apart_once():
    steps = {
        "s": Task("s", keep, TaskRef("in"), 7, TaskRef("in"), key=operator.neg),
        "t": Task("t", keep, TaskRef("s"), TaskRef("more")),
    }

    def task(key, *values, names=("in", "more")):
        return Task(key, _execute_subgraph, steps, "t", names, *values)

    given = [  # what goes in: the first alone is taken apart; so is what is more than a leaf
        (DataNode(None, 1), TaskRef("data")),
        (DataNode(None, [2, 3]), TaskRef("data")),
        (TaskRef("data"), TaskRef("data")),
        (Alias("data"), None),
        (List(TaskRef("data"), 4), 5),
        (DataNode(None, 6), double),
    ]
    graph = {"data": DataNode("data", 10)}
    graph |= {f"task-{i}": task(f"task-{i}", *values) for i, values in enumerate(given)}
    graph["swapped"] = task("swapped", DataNode(None, 8), DataNode(None, 9), names=("more", "in"))
    values, functions = run(graph)
    assert values == execute_graph(dict(graph), keys=set(graph))
    assert len(functions) <= 7  # of data, the first, leaves, and three that differ from these
    layer = {f"n-{i}": task(f"n-{i}", DataNode(None, i), TaskRef("data")) for i in range(50)}
    assert len(run(graph | layer)[1]) == len(functions)


def test_different_functions_are_not_confused():
    graph = {
        "plus": Task.fuse(Task("a", double, 3), Task("plus", operator.add, TaskRef("a"), 1)),
        "times": Task.fuse(Task("a", double, 3), Task("times", operator.mul, TaskRef("a"), 1)),
    }
    values, functions = run(graph)
    assert values == {"plus": 7, "times": 6}
    assert len(functions) == 2


def test_a_long_fused_chain_needs_no_recursion():
    n = 5_000
    steps = [Task(0, double, 0)] + [Task(i, operator.add, TaskRef(i - 1), 1) for i in range(1, n)]
    program, arguments = Compiler().compile(Task.fuse(*steps))
    assert program(*arguments) == n - 1


def test_intermediate_results_are_dropped_when_used():
    seen = []

    class Big:
        def __del__(self):
            seen.append("dropped")

    def use(big):
        return 1

    def last(one):
        return list(seen)

    fused = Task.fuse(Task("a", Big), Task("b", use, TaskRef("a")), Task("c", last, TaskRef("b")))
    program, arguments = Compiler().compile(fused)
    assert program(*arguments) == ["dropped"]


def test_real_collections():
    x = dask.array.arange(64, chunks=8).reshape(8, 8)
    for collection, expected in [
        ((x + x.T).sum(), (numpy.arange(64).reshape(8, 8) * 2).sum()),
        (dask.bag.from_sequence(range(20), npartitions=5).map(double).sum(), 380),
    ]:
        expression = collections_to_expr([collection]).finalize_compute().optimize()
        graph = as_nodes(dict(expression.__dask_graph__()))
        values, _ = run(graph)
        (key,) = dask.core.flatten(expression.__dask_keys__())
        assert values[key] == expected


def test_plain_data_needs_no_program():
    assert is_simple(Task("k", operator.add, TaskRef("a"), 1))
    assert not is_simple(Task("k", sorted, TaskRef("a"), key=operator.neg))


def test_aliases_give_way_to_what_only_they_refer_to():
    one = Task("one", operator.neg, 1)
    graph = {
        "one": one,
        "a": Alias("a", "one"),
        "b": Alias("b", "a"),
        "wanted": Task("wanted", operator.neg, 2),
        "c": Alias("c", "wanted"),
        "shared": Task("shared", operator.neg, 3),
        "d": Alias("d", "shared"),
        "e": Task("e", operator.add, TaskRef("shared"), TaskRef("d")),
        "f": Alias("f", "elsewhere"),
    }
    found = without_aliases(graph, lambda key: key == "wanted")
    assert found == {"b": one} | {key: graph[key] for key in ("wanted", "c", "shared", "d", "e", "f")}


@pytest.mark.parametrize("cycle", ["xy", "xyz"])
def test_aliases_that_go_round_are_left_to_whoever_orders_the_graph(cycle):
    graph = {key: Alias(key, target) for key, target in zip(cycle, cycle[1:] + cycle[0], strict=True)}
    assert "x" in without_aliases(graph, lambda key: key == "x")
    assert "out" in without_aliases(graph | {"out": Alias("out", "x")}, lambda key: key == "out")


def test_delayed_values_are_culled_as_dask_does():
    numbers = [dask.delayed(double)(n) for n in range(10)]
    with dask.annotate(retries=3):
        special = dask.delayed(double)(numbers[0])
    total = dask.delayed(sum)([*numbers[:4], special])
    for collections in ([total], numbers[2:5], [total, numbers[9]], [total, dask.array.ones(4, chunks=2)]):
        expression = collections_to_expr(collections).finalize_compute().optimize()
        found = faster(expression)
        assert found is not expression
        assert dict(found.__dask_graph__()) == dict(expression.__dask_graph__())
        assert found.__dask_annotations__() == expression.__dask_annotations__()
        assert found.__dask_keys__() == expression.__dask_keys__()
