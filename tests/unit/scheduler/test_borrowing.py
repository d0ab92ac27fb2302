"""Results that are pinned to their worker, and results that borrow from their inputs: what a shuffle is made of."""

from __future__ import annotations

from collections import Counter
from typing import Any

from daskfleet.scheduler.state import WorkerState

PINNED, BARRIER = {"pinned": True}, {"pinned": True, "borrows": True}


def shuffle(b: Any) -> tuple[list[Any], Any, list[Any], list[Any]]:
    """Two workers, on each of them a split; the barrier on the first; two outputs, one of them sent to each worker."""
    workers = [b.worker("a"), b.worker("b")]
    rows = [("s-1", None, PINNED), ("s-2", None, PINNED), ("b-1", [0, 1], BARRIER), ("o-1", [2]), ("o-2", [2])]
    *splits, barrier, one, two = b.submit(*rows)
    b.state.release(b.client, [cid for cid, ts in b.client.futures.items() if ts not in (one, two)])
    for ts in splits:
        b.done(ts.worker, ts, value=b"where")
    if barrier.worker is not workers[0]:  # it is the same, the other way round
        workers.reverse()
    splits.sort(key=lambda ts: ts.holders[0] is not workers[0])
    b.done(barrier.worker, barrier, value=b"list")
    return splits, barrier, [one, two], workers


def test_what_is_borrowed_is_kept_as_long_as_the_borrower(bench) -> None:
    b = bench()
    splits, barrier, outputs, workers = shuffle(b)
    assert all(ts.state == "memory" for ts in (*splits, barrier))
    b.done(outputs[0].worker, outputs[0])
    assert all(ts.state == "memory" for ts in (*splits, barrier))
    b.done(outputs[1].worker, outputs[1])
    assert all(ts.state in ("released", "forgotten") for ts in (*splits, barrier))
    freed = [id for worker in workers for id in b.take(worker, "free")]
    assert {ts.id for ts in (*splits, barrier)} <= set(freed)


def test_a_worker_takes_its_splits_and_the_barrier_with_it(bench) -> None:
    b = bench()
    (mine, other), barrier, outputs, (first, second) = shuffle(b)
    b.done(first, next(ts for ts in outputs if ts.worker is first))
    b.state.remove_worker(second)
    b.flush()
    assert mine.state == "memory" and other.state in ("queued", "processing")
    assert barrier.state == "waiting" and barrier.waiting_on == 1
    b.done(first, other, value=b"elsewhere")
    b.done(first, barrier, value=b"another list")
    left = next(ts for ts in outputs if ts.state != "memory")
    b.done(first, left)
    assert [ts.state for ts in outputs] == ["memory", "memory"]
    assert not b.state.counts["waiting"] and not b.state.counts["processing"]


def test_a_copy_that_is_reported_missing_is_made_anew(bench) -> None:
    b = bench()
    (mine, other), barrier, outputs, (first, second) = shuffle(b)
    reader = next(ts for ts in outputs if ts.worker is first)
    b.state.missing(first, [(reader.id, reader.attempt, [(other.id, second.address)])])
    b.flush()
    assert reader.state == barrier.state == "waiting" and mine.state == "memory"
    assert other.state in ("queued", "processing") and other.id in b.take(second, "free")
    old = barrier.attempt
    b.done(second, next(ts for ts in outputs if ts.worker is second))
    b.done(other.worker, other, value=b"again")
    b.state.missing(first, [(reader.id, reader.attempt - 1, [(other.id, second.address)])])  # late: it changes nothing
    assert barrier.state == "processing" and barrier.attempt == old + 1 and other.state == "memory"


def test_a_barrier_that_runs_while_an_input_is_lost_runs_again(bench) -> None:
    b = bench()
    first, second = b.worker("a"), b.worker("b")
    *splits, barrier = b.submit(("s-1", None, PINNED), ("s-2", None, PINNED), ("b-1", [0, 1], BARRIER))
    for ts in splits:
        b.done(ts.worker, ts, value=b"where")
    running = barrier.worker
    other = second if running is first else first
    attempt = barrier.attempt
    b.state.remove_worker(other)
    b.flush()
    assert barrier.state == "waiting"
    b.state.done(running, [(barrier.id, attempt, 8, 0.001, "int", b"stale")])
    assert barrier.state == "waiting" and barrier.value is None


def test_the_worker_in_a_dead_ones_place_has_its_splits(bench) -> None:
    b = bench()
    (mine, other), barrier, outputs, (first, second) = shuffle(b)
    b.state.remove_worker(second)  # the other worker is busy, so that nothing is made anew yet
    heir = WorkerState("tcp://heir:1", "heir", 1)
    b.state.add_worker(heir)
    rows = [(other.id, other.key, b"here now"), (barrier.id, barrier.key, b"void"), (12345, "unknown", b"")]
    b.state.inherited(heir, [*rows, (mine.id, mine.key, b"there is one")])
    b.flush()
    assert other.state == "memory" and other.holders == (heir,) and other.value == b"here now"
    assert mine.holders == (first,) and mine.value == b"where"
    assert set(b.take(heir, "free")) == {barrier.id, 12345, mine.id}
    assert barrier.state == "processing" and all(ts.state != "memory" for ts in outputs)


def test_what_is_pinned_is_not_taken_back_nor_moved(bench) -> None:
    b = bench()
    splits, barrier, _, (first, second) = shuffle(b)
    b.state.remove_worker(first)
    lost = [ts for ts in splits if ts.state != "memory"]
    [id] = b.state.add_worker(first, [(lost[0].key, 8)])
    assert id == -1
    b.flush()
    asked: Counter[int] = Counter()
    b.state.set_status(second, "closing")
    b.state.hand_over([second], asked)
    assert not set(asked) & {ts.id for ts in (*splits, barrier)}
