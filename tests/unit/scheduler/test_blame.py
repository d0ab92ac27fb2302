"""Who is to blame when workers die: the task that kills them, and as far as can be told nobody else."""

from __future__ import annotations

import pickle

import pytest
from daskfleet.exceptions import KilledWorker


def test_a_task_that_kills_its_workers_is_named_and_the_hundreds_sent_ahead_with_it_finish(bench) -> None:
    b = bench(allowed_failures=3)
    state = b.state
    names = iter(range(1000))
    warm = b.worker("warm")
    (first,) = b.submit(("work-first",))
    b.done(warm, first, value=b"result")  # tasks of this kind are known to be short: workers are sent many ahead
    tasks = b.submit(*((f"work-{i}",) for i in range(200)))
    assert len(warm.processing) > 10
    culprit = tasks[100]
    deaths = 0
    worker, finished = warm, 0
    while state.counts["processing"]:
        if not worker.processing:
            worker = next(other for other in state.workers.values() if other.processing)
        ts = next(iter(worker.processing))
        if ts is culprit:
            deaths += 1
            state.remove_worker(worker)
            worker = b.worker(f"w{next(names)}")
        else:
            b.done(worker, ts, value=b"result")
            finished += 1
    assert finished == 199
    assert deaths in (4, 5)  # the first time it stood among many, and nobody knew
    [(_, exception, _, key)] = b.take(b.client, "erred")
    error = pickle.loads(exception)
    assert isinstance(error, KilledWorker) and error.task == culprit.key == key
    assert all(ts.state == "memory" for ts in tasks if ts is not culprit)
    assert not state.suspects


@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_a_long_task_beside_one_that_kills_its_worker_again_and_again_finishes(bench, allowed: int) -> None:
    b = bench(allowed_failures=allowed)
    worker = b.worker("w0", nthreads=2)
    innocent, culprit = b.submit(("long-1",), ("kill-1",))
    deaths = 0
    while b.state.counts["processing"]:
        if culprit in worker.processing:
            deaths += 1
            b.state.remove_worker(worker)
            worker = b.worker(f"w{deaths}", nthreads=2)
        else:
            b.done(worker, innocent, value=b"result")
    assert innocent.state == "memory" and culprit.state == "erred"
    assert deaths == allowed + 1
    assert not b.state.suspects


def test_suspects_are_sent_nothing_ahead(bench) -> None:
    b = bench()
    worker = b.worker("a")
    (first,) = b.submit(("work-first",))
    b.done(worker, first)
    b.submit(*((f"work-{i}",) for i in range(50)))
    assert len(worker.processing) > 2
    b.state.remove_worker(worker)
    assert set(b.state.suspects.values()) == {0}
    other = b.worker("b", nthreads=2)
    assert len(other.processing) == 2


def test_an_expected_end_blames_nobody(bench) -> None:
    b = bench(allowed_failures=0)
    worker = b.worker("a")
    (ts,) = b.submit(("work-1",))
    b.state.remove_worker(worker, expected=True)
    b.flush()
    assert ts.state == "queued" and not b.state.suspects
    b.worker("b")
    assert ts.state == "processing"


def test_a_suspect_that_only_the_dead_worker_may_run_waits_for_another(bench) -> None:
    b = bench()
    worker = b.worker("a")
    (ts,) = b.submit(("work-1", None, {"workers": ["a"]}))
    b.state.remove_worker(worker)
    b.worker("b")
    assert ts.state == "no-worker"
    again = b.worker("a")
    assert ts.worker is again


def test_with_a_nanny_the_blame_waits_until_it_has_told_how_the_worker_ended(bench) -> None:
    b = bench(allowed_failures=0)
    worker = b.worker("a", info={"nanny": True})
    (ts,) = b.submit(("work-1",))
    b.state.remove_worker(worker)
    b.flush()
    assert ts.state == "queued" and ts in b.state.suspects
    b.state.explain("a")
    assert ts.state == "erred"
    b.state.explain("a")  # nothing more to say


def test_workers_that_are_killed_from_outside_count_less(bench) -> None:
    b = bench(allowed_failures=1)
    (ts,) = b.submit(("work-1",))
    deaths = 0
    while ts.state != "erred":
        worker = b.worker(f"w{deaths}", info={"nanny": True})
        b.state.remove_worker(worker)
        b.state.explain(worker.name, outside=True)
        b.flush()
        deaths += 1
    assert deaths == 6
    assert pickle.loads(ts.failure.exception).task == "work-1"


@pytest.mark.parametrize("dies", ["running", "resting"])
def test_workers_too_small_for_all_results_do_not_die_for_ever(bench, dies: str) -> None:
    """Each worker has memory for one result, and dies of the second, or as it makes it, whichever task that is of."""
    b = bench(allowed_failures=3)
    tasks = b.submit(("work-1",), ("work-2",), ("work-3",))
    deaths = 0
    while not any(ts.state == "erred" for ts in tasks):
        worker = b.worker("a", info={"nanny": True})
        for _ in range(1 if dies == "running" else 2):
            b.done(worker, next(iter(worker.processing)), nbytes=1000)
        if dies == "resting":
            b.state.set_status(worker, "paused")
            for ts in [*worker.processing]:
                b.state.yielded(worker, [(ts.id, ts.attempt)])
        b.flush()
        b.state.remove_worker(worker)
        b.state.explain("a", memory=True)
        b.flush()
        deaths += 1
        assert deaths < 20
    assert deaths > 3
    assert isinstance(pickle.loads(b.take(b.client, "erred")[0][1]), KilledWorker)


def test_a_worker_that_dies_idle_by_somebody_else_s_hand_blames_no_result(bench) -> None:
    b = bench(allowed_failures=0)
    (ts,) = b.submit(("work-1",))
    for _ in range(3):
        worker = b.worker("a", info={"nanny": True})
        b.done(worker, ts, nbytes=1000)
        b.state.remove_worker(worker)
        b.state.explain("a", outside=True)
        b.flush()
        assert ts.state == "queued"
