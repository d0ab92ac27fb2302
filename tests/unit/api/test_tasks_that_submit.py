"""Tasks that use the cluster themselves, and futures that travel."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import dask
import dask.bag
import pytest
from daskfleet import (
    Client,
    Future,
    LocalCluster,
    Reschedule,
    default_client,
    fire_and_forget,
    get_client,
    get_worker,
    rejoin,
    secede,
    wait,
    worker_client,
)

from tests.eventual import eventually


def inc(x: int) -> int:
    return x + 1


def fib(n: int) -> int:
    if n < 2:
        return n
    client = get_client()
    a, b = client.submit(fib, n - 1), client.submit(fib, n - 2)
    return a.result() + b.result()


def gather_of_map(n: int) -> int:
    with worker_client() as client:
        return sum(client.gather(client.map(inc, range(n))))


def nested_compute(n: int) -> list[int]:
    return list(dask.bag.from_sequence(range(n), npartitions=n).map(lambda x: x + get_worker().nthreads).compute())


async def afib(n: int) -> int:
    if n < 2:
        return n
    async with worker_client() as client:
        a, b = client.submit(afib, n - 1), client.submit(afib, n - 2)
        return sum(await client.gather([a, b]))


def test_recursion_deeper_than_the_threads(client: Client) -> None:
    # Two threads, and many more tasks that wait: blocking calls of a task's client give way by themselves.
    assert client.submit(fib, 9).result(timeout=180) == 34


def test_worker_client(client: Client) -> None:
    assert client.gather(client.map(gather_of_map, range(8)), errors="raise") == [
        sum(range(1, n + 1)) for n in range(8)
    ]


def test_nested_compute_uses_the_cluster(client: Client) -> None:
    assert client.submit(nested_compute, 5).result(timeout=90) == [1, 2, 3, 4, 5]


def test_coroutines_as_tasks(client: Client) -> None:
    assert client.submit(afib, 7).result(timeout=90) == 13


async def test_recursion_in_an_asynchronous_cluster(aclient: Client) -> None:
    assert await aclient.submit(afib, 7) == 13
    assert await aclient.submit(fib, 7) == 13
    assert await aclient.submit(gather_of_map, 4) == 10


def test_secede_lets_others_run(cluster: LocalCluster, client: Client) -> None:
    address = next(iter(client.nthreads()))

    def wait_for_flag(path: str) -> bool:
        secede()
        deadline = time.monotonic() + 90
        while not Path(path).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        rejoin()
        return Path(path).exists()

    path = f"/tmp/daskfleet-test-{threading.get_ident()}-{time.time_ns()}"
    try:
        waiting = client.submit(wait_for_flag, path, workers=[address], pure=False)
        touched = client.submit(lambda path: Path(path).touch(), path, workers=[address], pure=False)
        assert touched.result(timeout=60) is None
        assert waiting.result(timeout=60) is True
    finally:
        Path(path).unlink(missing_ok=True)


def test_secede_outside_of_a_task() -> None:
    with pytest.raises(ValueError, match="inside a task"):
        secede()
    with pytest.raises(ValueError, match="inside a task"):
        rejoin()


def test_a_future_inside_an_object_arrives_as_a_future(client: Client) -> None:
    class Box:
        def __init__(self, future: Future) -> None:
            self.future = future

    future = client.submit(inc, 41)
    assert client.submit(lambda box: box.future.result(), Box(future)).result(timeout=60) == 42


def test_a_task_may_return_a_future(client: Client) -> None:
    inner = client.submit(lambda: get_client().submit(inc, 1), pure=False).result(timeout=60)
    assert isinstance(inner, Future)
    assert inner.result(timeout=60) == 2


def test_a_future_binds_late(cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as client:
        future = client.submit(inc, 1000)
        wait(future, timeout=60)
        travelled = pickle.loads(pickle.dumps(future))
        with pytest.raises(ValueError, match="no client"):
            travelled.result()
        with client.as_current():
            assert travelled.result(timeout=60) == 1001


def test_current_and_default_client(cluster: LocalCluster) -> None:
    with pytest.raises(ValueError, match="no client"):
        default_client()
    with Client(cluster) as outer:
        assert Client.current() is outer
        with Client(cluster) as inner:
            assert default_client() is inner
            assert default_client(outer) is outer
            with outer.as_current():
                assert get_client() is outer
                assert Client.current(allow_global=False) is outer
        assert default_client() is outer
        with pytest.raises(ValueError, match="no client"):
            Client.current(allow_global=False)
        assert outer.submit(lambda: Client.current() is get_client(), pure=False).result(timeout=60)


def test_fire_and_forget(client: Client, tmp_path: Path) -> None:
    def touch(path: str) -> None:
        time.sleep(0.05)
        Path(path).touch()

    names = [str(n) for n in range(8)]  # more than run at once: those that wait would be forgotten with their client
    with Client(client.cluster, set_as_default=False) as other:
        fire_and_forget(other.map(touch, [str(tmp_path / name) for name in names], pure=False))
    fire_and_forget([dask.delayed(touch)(str(tmp_path / "delayed"))])
    eventually(lambda: len(list(tmp_path.iterdir())) == 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "delayed"]
    eventually(lambda: not any(client.has_what().values()))  # their results are let go


def test_reschedule(client: Client) -> None:
    def picky(flags: str) -> str:
        path = Path(flags, get_worker().name)
        if not path.exists():
            path.touch()
            raise Reschedule
        return "done"

    import tempfile

    with tempfile.TemporaryDirectory() as flags:
        assert client.submit(picky, flags, pure=False).result(timeout=60) == "done"


def test_executor(client: Client) -> None:
    from concurrent.futures import as_completed

    with client.get_executor(pure=False) as executor:
        futures = [executor.submit(inc, i) for i in range(5)]
        assert sorted(future.result(timeout=60) for future in as_completed(futures, timeout=60)) == [1, 2, 3, 4, 5]
        assert list(executor.map(inc, range(5), timeout=60)) == [1, 2, 3, 4, 5]
        error = executor.submit(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            error.result(timeout=60)
        assert isinstance(error.exception(), ValueError)
    with pytest.raises(RuntimeError, match="shut"):
        executor.submit(inc, 1)


async def test_executor_with_run_in_executor(aclient: Client) -> None:
    loop = asyncio.get_running_loop()
    with aclient.get_executor() as executor:
        assert await loop.run_in_executor(executor, inc, 1) == 2


def test_client_of_a_task_stays_open(client: Client) -> None:
    def closes() -> Any:
        with get_client() as own:
            own.close()
        return get_client().submit(inc, 5).result()

    assert client.submit(closes, pure=False).result(timeout=60) == 6
