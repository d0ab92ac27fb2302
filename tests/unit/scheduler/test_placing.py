"""What runs where and when: the common queue, priorities, where the data is, and what idle workers take over."""

from __future__ import annotations

import pytest


def test_tasks_without_inputs_wait_in_the_scheduler_and_not_on_workers(bench) -> None:
    b = bench()
    worker = b.worker("a", nthreads=2)
    b.submit(*((f"root-{i}",) for i in range(1000)))
    assert len(worker.processing) <= 4
    assert b.state.counts["queued"] >= 996


def test_what_is_urgent_goes_first_and_else_who_came_first(bench) -> None:
    """By the number that the user gives: the larger, the sooner; of a whole graph, a task of it, or both together."""
    b = bench()
    worker, other = b.worker("a"), b.state.add_client("other")
    (first,) = b.submit(("t-first",))
    b.submit(("t-least",), priority=-1)
    b.submit(("t-one",), ("t-two",))
    b.submit(("t-its-own", None, {"workers": ["a"]}))  # queued for this worker, the others for any
    b.submit(("t-three",), client=other)
    b.submit(("t-urgent",), ("t-most-urgent", None, {"priority": 2}), priority=1)
    b.submit(("t-its-own-urgent", None, {"workers": ["a"]}), priority=2)
    assert list(worker.processing) == [first]
    b.done(worker, first)  # they are known to be short: the worker is sent all
    assert [row[2].removeprefix("t-") for row in b.take(worker, "run")] == [
        *("first", "most-urgent", "its-own-urgent", "urgent", "one", "two", "its-own", "three", "least")
    ]


def test_a_task_that_asks_for_resources_waits_for_a_worker_that_has_them(bench) -> None:
    b = bench()
    b.worker("none")
    b.worker("little", resources={"GPU": 1})
    (ts,) = b.submit(("t-1", None, {"resources": {"GPU": 2}}))
    assert ts.state == "no-worker"
    enough = b.worker("enough", resources={"GPU": 2, "more": 1})
    assert ts.worker is enough


@pytest.mark.parametrize(("there", "elsewhere"), ["ab", "ba"])
def test_a_task_goes_where_most_of_its_data_is(bench, there: str, elsewhere: str) -> None:
    b = bench()
    workers = {name: b.worker(name) for name in "ab"}
    small, large, both = b.submit(
        ("small-1", None, {"workers": [elsewhere]}), ("large-1", None, {"workers": [there]}), ("both-1", [0, 1])
    )
    b.done(workers[elsewhere], small, nbytes=1000)
    b.done(workers[there], large, nbytes=1 << 30)
    assert both.worker is workers[there]


@pytest.mark.parametrize(("nbytes", "worth_it"), [(1000, True), (1 << 50, False)])
def test_an_idle_worker_takes_over_what_waits_for_another_if_that_is_sooner(bench, nbytes: int, worth_it: bool) -> None:
    b = bench()
    busy, idle = b.worker("busy"), b.worker("idle")
    data, *_ = b.submit(("data-1", None, {"workers": ["busy"]}), *((f"use-{i}", [0]) for i in range(20)))
    b.done(busy, data, nbytes=nbytes)
    assert busy.processing
    assert bool(idle.processing) is worth_it


def test_what_was_sent_ahead_is_asked_back_for_a_worker_that_idles(bench) -> None:
    b = bench()
    busy = b.worker("busy")
    (first,) = b.submit(("work-first",))
    b.done(busy, first)  # they are known to be short: the worker is sent several ahead
    tasks = b.submit(*((f"work-{i}",) for i in range(10)))
    assert len(busy.processing) == 10
    idle = b.worker("idle")
    assert not b.take(busy, "yield")
    b.state.rebalance()
    b.flush()
    asked = b.take(busy, "yield")
    assert 1 <= len(asked) < 10
    b.state.yielded(busy, [(ts.id, ts.attempt) for ts in tasks if ts.id in asked])
    b.flush()
    assert idle.processing and set(asked).issuperset(ts.id for ts in idle.processing)
