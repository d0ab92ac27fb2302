"""`submit(timeout=)` and `cancel(force=True)`: tasks that are really stopped."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from pathlib import Path

import dask
import pytest
from daskfleet import CancelledError, Client, LocalCluster, get_worker

from tests.eventual import eventually


def spin(seconds: float, path: str = "") -> str:
    """Python code that runs on, and says how it ended."""
    try:
        if path:
            Path(path + "-called").write_text("called")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.01)
        return "done"
    except BaseException as error:
        if path:
            Path(path).write_text(type(error).__name__)
        raise


def stuck(seconds: int, path: str = "/dev/null") -> int:
    """A system call, to which an exception raised in its thread never gets."""
    Path(path).write_text("called")
    ctypes.CDLL(None).sleep(seconds)
    return os.getpid()


def wait_for(path: Path) -> str:
    return eventually(lambda: path.read_text() if path.exists() else "")


def processes(client: Client) -> set[int]:
    """Those of the workers that answer, while others are replaced."""
    return set(client.run(os.getpid, on_error="ignore").values())


def test_timeout(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "ended"
    future = client.submit(spin, 60, str(path), timeout=1, key="slow", pure=False)
    with pytest.raises(TimeoutError, match=r"'slow' was stopped: it ran for longer than its timeout of 1 s"):
        future.result(timeout=60)
    assert wait_for(path) == "TaskStopped"
    assert client.submit(spin, 0.01, timeout="20s").result(timeout=60) == "done"
    assert client.gather(client.map(spin, [0.01] * 10, timeout=60, pure=False)) == ["done"] * 10


def test_timeout_with_retries(client: Client, tmp_path: Path) -> None:
    def slow_once(path: str) -> str:
        if Path(path).exists():
            return "second time"
        Path(path).touch()
        return spin(60)

    assert client.submit(slow_once, str(tmp_path / "x"), timeout=2, retries=1).result(timeout=60) == "second time"


def test_timeout_by_annotation(client: Client) -> None:
    with dask.annotate(timeout=0.2):
        lazy = dask.delayed(spin)(60)
    with pytest.raises(TimeoutError, match="longer than its timeout"):
        client.compute(lazy, optimize_graph=False).result(timeout=60)


def test_timeout_of_what_does_not_return(client: Client) -> None:
    before = set(client.run(os.getpid).values())
    kept = client.map(lambda i: i, range(20), key="kept")
    client.gather(kept)
    with pytest.raises(TimeoutError, match="longer than its timeout"):
        client.submit(stuck, 60, timeout=0.2, pure=False).result(timeout=60)
    assert len(eventually(lambda: processes(client) - before)) == 1  # one process was replaced, and nothing is lost
    client.wait_for_workers(2, timeout=60)
    assert client.gather(kept) == list(range(20))


def test_cancel_force(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "ended"
    future = client.submit(spin, 60, str(path), key="forced", pure=False)
    wait_for(tmp_path / "ended-called")
    client.cancel(future, force=True, reason="enough")
    assert future.cancelled()
    with pytest.raises(CancelledError, match="enough"):
        future.result(timeout=60)
    assert wait_for(path) == "TaskStopped"
    assert client.submit(spin, 0.01).result(timeout=60) == "done"


def test_cancel_without_force_lets_it_run(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "ended"

    def finish(path: str) -> None:
        Path(path + "-called").write_text("called")
        time.sleep(0.5)
        Path(path).write_text("to the end")

    future = client.submit(finish, str(path), key="gentle", pure=False)
    wait_for(tmp_path / "ended-called")
    future.cancel()
    assert wait_for(path) == "to the end"


def test_cancel_force_replaces_a_stuck_worker(client: Client, tmp_path: Path) -> None:
    future = client.submit(stuck, 60, str(tmp_path / "called"), key="stuck", pure=False)
    wait_for(tmp_path / "called")
    before = set(client.run(os.getpid).values())
    future.cancel(force=True)
    eventually(lambda: processes(client) - before)
    client.wait_for_workers(2, timeout=60)
    assert client.gather(client.map(lambda x: x + 1, range(10), pure=False)) == list(range(1, 11))


async def test_coroutines_are_cancelled(aclient: Client) -> None:
    ended = asyncio.Event()

    aclient.cluster.workers["0"].ended = ended

    async def marked() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            get_worker().ended.set()

    with pytest.raises(TimeoutError, match="longer than its timeout"):
        await aclient.submit(marked, timeout=0.1, workers=["0"], pure=False)
    await asyncio.wait_for(ended.wait(), 60)
    ended.clear()
    future = aclient.submit(marked, workers=["0"], pure=False)
    await asyncio.sleep(0.3)
    await future.cancel(force=True)
    await asyncio.wait_for(ended.wait(), 60)
    assert await aclient.submit(int, 3, workers=["0"]) == 3


def test_without_a_nanny_the_thread_is_given_up(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        future = client.submit(stuck, 4, str(tmp_path / "called"), pure=False)
        wait_for(tmp_path / "called")
        future.cancel(force=True)
        assert client.submit(int, 5).result(timeout=60) == 5  # before the four seconds are over, or after
        time.sleep(3.5)
        assert client.gather(client.map(lambda x: x + 1, range(20), pure=False)) == list(range(1, 21))
        (worker,) = cluster.workers.values()
        assert worker.machine.executing == 0
