"""kube/queue.py: coalescing, exclusion, back-off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from daskfleet_operator.kube import queue as queue_module
from daskfleet_operator.kube.queue import WorkQueue


async def until(condition: Callable[[], bool]) -> None:
    """At the first turn of the loop at which it is so: what is waited for may be over at the next look of another."""
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0)


def make(work: Callable[[str], Awaitable[float | None]], concurrency: int = 2) -> WorkQueue[str]:
    made: WorkQueue[str] = WorkQueue(work, concurrency=concurrency)
    return made


async def test_a_hundred_wakes_during_a_pass_cost_one_more_pass() -> None:
    passes = 0
    gate = asyncio.Event()

    async def work(key: str) -> None:
        nonlocal passes
        passes += 1
        await gate.wait()

    q = make(work)
    q.start()
    q.wake("a")
    await until(lambda: passes == 1)
    for _ in range(100):
        q.wake("a")
    gate.set()
    await until(lambda: passes == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert passes == 2
    await q.stop()


async def test_one_key_is_never_worked_on_twice_at_once_and_others_go_on() -> None:
    running: dict[str, int] = {}
    most: dict[str, int] = {}
    done: list[str] = []

    async def work(key: str) -> None:
        running[key] = running.get(key, 0) + 1
        most[key] = max(most.get(key, 0), running[key])
        await asyncio.sleep(0)
        running[key] -= 1
        done.append(key)

    q = make(work, concurrency=3)
    q.start()
    for _ in range(50):
        for key in "abcde":
            q.wake(key)
        await asyncio.sleep(0)
    await until(lambda: len(set(done)) == 5 and len(q) == 0)
    assert set(most.values()) == {1}
    await q.stop()


async def test_at_most_so_many_keys_at_once() -> None:
    running, most = 0, 0

    async def work(key: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    q = make(work, concurrency=3)
    for n in range(30):
        q.wake(str(n))
    q.start()
    await until(lambda: len(q) == 0 and running == 0)
    assert most == 3
    await q.stop()


async def test_nothing_is_begun_before_the_start() -> None:
    begun: list[str] = []

    async def work(key: str) -> None:
        begun.append(key)

    q = make(work)
    q.wake("a")
    await asyncio.sleep(0)
    assert begun == []
    q.start()
    await until(lambda: begun == ["a"])
    await q.stop()


async def test_a_pass_that_raises_is_repeated_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "FIRST_BACKOFF", 0.001)
    seen: list[Exception] = []
    tries = 0

    async def work(key: str) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise RuntimeError(str(tries))

    q: WorkQueue[str] = WorkQueue(work, concurrency=1, on_error=lambda key, error: seen.append(error))
    q.start()
    q.wake("a")
    await until(lambda: tries == 4)
    assert [str(error) for error in seen] == ["1", "2", "3"]
    await q.stop()


async def test_an_earlier_wake_replaces_a_later_one() -> None:
    passes = 0

    async def work(key: str) -> None:
        nonlocal passes
        passes += 1

    q = make(work)
    q.start()
    q.wake_in("a", 3600)
    q.wake_in("a", 0.001)
    q.wake_in("a", 7200)
    await until(lambda: passes == 1)
    await q.stop()


async def test_a_key_that_rests_waits_and_others_do_not() -> None:
    done: list[str] = []

    async def work(key: str) -> None:
        done.append(key)

    q: WorkQueue[str] = WorkQueue(work, concurrency=1, rest=lambda key: 3600.0 if key == "a" else 0.0)
    q.start()
    q.wake("a")
    for passes in range(5):
        await until(lambda: len(done) == passes + 1)  # noqa: B023
        await asyncio.sleep(0)  # the pass has ended
        q.wake("a")
        q.wake("b")
    assert done == ["a", "b", "b", "b", "b"]
    await q.stop()


async def test_a_key_that_has_rested_is_worked_on_once_for_all_its_wakes() -> None:
    passes = 0
    rest = 0.001

    async def work(key: str) -> None:
        nonlocal passes, rest
        passes += 1
        rest = 0.001 if passes == 1 else 3600.0

    q: WorkQueue[str] = WorkQueue(work, concurrency=1, rest=lambda key: rest)
    q.start()
    q.wake("a")
    await until(lambda: passes == 1)
    q.wake("a")
    q.wake("a")
    await until(lambda: passes == 2)
    assert len(q) == 0
    await q.stop()
