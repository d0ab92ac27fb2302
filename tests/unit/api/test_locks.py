"""Lock, Semaphore, MultiLock and Event, between clients and tasks."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest
from daskfleet import Client, Event, LocalCluster, Lock, MultiLock, Semaphore, get_worker

from tests.eventual import eventually


def append(lock: Lock, path: str, n: int) -> None:
    with lock:
        text = Path(path).read_text()
        time.sleep(0.02)
        Path(path).write_text(text + f"{n}\n")


def test_lock_between_tasks(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.touch()
    lock = Lock("numbers")
    client.gather(client.map(lambda n: append(lock, str(path), n), range(12), pure=False))
    assert sorted(map(int, path.read_text().split())) == list(range(12))
    assert not lock.locked()


def test_lock_is_exclusive_and_pickles(client: Client) -> None:
    lock = Lock("a", client=client)
    other = pickle.loads(pickle.dumps(lock))
    assert other.name == "a"
    assert lock.acquire() is True
    assert lock.locked() is True
    assert other.acquire(blocking=False) is False
    assert other.acquire(timeout=0.05) is False
    with pytest.raises(RuntimeError, match="not held"):
        other.release()
    lock.release()
    with other:
        assert lock.acquire(timeout="10ms") is False
    with pytest.raises(ValueError, match="blocking"):
        lock.acquire(blocking=False, timeout=1)


def test_a_lock_is_free_when_its_client_is_gone(cluster: LocalCluster, client: Client) -> None:
    lost = Client(cluster, set_as_default=False)
    assert Lock("held", client=lost).acquire()
    assert MultiLock(["one", "two"], client=lost).acquire()
    mine = Lock("held", client=client)
    assert mine.acquire(timeout=0.05) is False
    several = MultiLock(["two", "three"], client=client)
    assert several.acquire(timeout=0.05) is False
    threading.Timer(0.2, lost.close).start()
    assert mine.acquire(timeout=60) is True
    mine.release()
    assert several.acquire(timeout=60) is True
    several.release()


def test_a_lock_is_free_when_its_worker_is_killed(client: Client, tmp_path: Path) -> None:
    flag = tmp_path / "held"

    def hold(path: str) -> None:
        if not Path(path).exists():  # the first time; then the worker dies, and it runs again elsewhere
            Lock("killed").acquire()
            Path(path).write_text(str(os.getpid()))
            time.sleep(60)

    future = client.submit(hold, str(flag), pure=False)
    eventually(lambda: flag.exists() and flag.read_text())
    mine = Lock("killed", client=client)
    assert mine.acquire(timeout=0.05) is False
    os.kill(int(flag.read_text()), signal.SIGKILL)
    assert mine.acquire(timeout=60) is True
    mine.release()
    assert future.result(timeout=60) is None
    client.wait_for_workers(2, timeout=90)


@pytest.mark.parametrize("before", [0.0, 0.05])
@pytest.mark.parametrize("after", [0.0, 0.05])
async def test_a_cancelled_acquire_leaves_nothing_behind(aclient: Client, before: float, after: float) -> None:
    first, second = Lock("c"), Lock("c")
    both, one = MultiLock(["a", "b"]), MultiLock(["a"])
    await first.acquire()
    await both.acquire()
    waiting = [asyncio.ensure_future(lock.acquire()) for lock in (second, one)]
    await asyncio.sleep(before)
    for task in waiting:
        task.cancel()
    await asyncio.sleep(after)
    await first.release()
    await both.release()
    async with Lock("c"), MultiLock(["a", "b"]):
        assert await first.locked()
    assert not await first.locked()
    extensions = aclient.cluster.scheduler.extensions
    assert not extensions["semaphores"]._all and not extensions["multilocks"]._waiters


def test_semaphore(client: Client) -> None:
    semaphore = Semaphore(max_leases=2, name="two", client=client)
    assert semaphore.acquire() and semaphore.acquire()
    assert semaphore.get_value() == 2
    assert semaphore.acquire(timeout=0.05) is False
    semaphore.release()
    assert pickle.loads(pickle.dumps(semaphore)).max_leases == 2
    with semaphore:
        assert semaphore.get_value() == 2
    semaphore.release()
    with pytest.raises(RuntimeError, match="not held"):
        semaphore.release()
    with pytest.raises(ValueError, match="2 leases"):
        semaphore.acquire()
        Semaphore(3, "two", client).acquire()
    semaphore.close()
    assert semaphore.get_value() == 0


def test_semaphore_limits_tasks(client: Client) -> None:
    semaphore = Semaphore(1, "one")

    def busy(i: int) -> tuple[float, float]:
        with semaphore:
            started = time.time()
            time.sleep(0.05)
            return started, time.time()

    spans = sorted(client.gather(client.map(busy, range(6), pure=False)))
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


async def test_semaphore_asynchronous(aclient: Client) -> None:
    semaphore = await Semaphore(1, "async")
    async with semaphore:
        assert await semaphore.get_value() == 1
        assert await semaphore.acquire(timeout=0.01) is False


def test_multilock(client: Client) -> None:
    ab, bc, any_one = MultiLock(["a", "b"]), MultiLock(["b", "c"]), MultiLock(["a", "b", "c"])
    with ab:
        assert bc.acquire(blocking=False) is False
        assert any_one.acquire(timeout=1, num_locks=1) is True  # c is free
        any_one.release()
    assert bc.acquire(timeout=1) is True
    with pytest.raises(RuntimeError, match="held already"):
        bc.acquire()
    bc.release()
    with pytest.raises(ValueError, match="not held"):
        bc.release()
    with pytest.raises(ValueError, match="num_locks=3 of 2"):
        ab.acquire(num_locks=3)


async def test_multilock_waits_its_turn(aclient: Client) -> None:
    first, large, small = MultiLock(["x"]), MultiLock(["x", "y"]), MultiLock(["y"])
    order: list[str] = []

    async def take(lock: MultiLock, name: str) -> None:
        async with lock:
            order.append(name)

    await first.acquire()
    waiting = [asyncio.ensure_future(take(large, "large"))]
    await asyncio.sleep(0.05)
    waiting.append(asyncio.ensure_future(take(small, "small")))  # y is free, but large came first
    await asyncio.sleep(0.05)
    await first.release()
    await asyncio.gather(*waiting)
    assert order == ["large", "small"]


def test_event(client: Client) -> None:
    event = Event("go")
    assert event.is_set() is False
    assert event.wait(timeout=0.05) is False
    waiting = client.submit(lambda: Event("go").wait(timeout=60), pure=False)
    event.set()
    assert waiting.result(timeout=60) is True
    assert event.wait() is True
    event.clear()
    assert event.is_set() is False


def test_waiting_tasks_give_way(client: Client) -> None:
    # More tasks than threads wait for an event that another task sets.
    waiting = client.map(lambda i: Event("crowd").wait(timeout=90), range(6), pure=False)
    setting = client.submit(lambda: (Event("crowd").set(), get_worker().name)[1], pure=False)
    assert setting.result(timeout=60)
    assert all(client.gather(waiting))


async def test_event_asynchronous(aclient: Client) -> None:
    event = Event("async")
    waiting = asyncio.ensure_future(event.wait())
    await event.set()
    assert await waiting
    assert await event.is_set()
