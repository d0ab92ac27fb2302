"""submit, map, gather, scatter, cancel, retry; collections; wait and as_completed; run."""

from __future__ import annotations

import asyncio
import gc
import operator
import os
import threading
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pytest
from daskfleet import CancelledError, Client, Future, as_completed, futures_of, wait

from tests.eventual import eventually


def inc(x: int) -> int:
    return x + 1


def div(x: int, y: int) -> float:
    return x / y


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def known(dask_scheduler: Any) -> list[Any]:
    return list(dask_scheduler.tasks)


def test_submit_and_future(client: Client) -> None:
    future = client.submit(inc, 1, key="mine")
    assert future.key == "mine" and future.client is client
    assert future.result(timeout=60) == 2
    assert (future.status, future.type, future.done(), future.cancelled()) == ("finished", "int", True, False)
    assert future.exception() is None and future.traceback() is None
    assert "finished" in repr(future) and "finished" in future._repr_html_()
    assert client.submit(operator.add, future, [future][0]).result(timeout=60) == 4
    assert client.submit(sum, [future, {"a": future}["a"]]).result(timeout=60) == 4
    assert client.submit(inc, 1).key == client.submit(inc, 1).key != client.submit(inc, 1, pure=False).key
    with pytest.raises(TypeError, match="callable"):
        client.submit(5)
    with pytest.raises(TypeError, match="cannot pickle"):
        client.submit(inc, threading.Lock())
    with pytest.raises(TimeoutError):
        client.submit(sleep, 5, pure=False).result(timeout="50ms")
    future.release()
    assert future.cancelled()


def test_errors_and_retry(client: Client, tmp_path: Any) -> None:
    bad = client.submit(div, 1, 0)
    after = client.submit(inc, bad)
    for future in (bad, after):
        with pytest.raises(ZeroDivisionError):
            future.result(timeout=60)
        assert isinstance(future.exception(), ZeroDivisionError) and future.status == "error"
    traceback = bad.traceback()
    assert traceback.tb_frame.f_code.co_name == "div"
    path = tmp_path / "exists"

    def flaky() -> str:
        if not path.exists():
            raise OSError("not yet")
        return "fine"

    future = client.submit(flaky, pure=False)
    with pytest.raises(OSError, match="not yet"):
        future.result(timeout=60)
    path.touch()
    future.retry()
    assert future.result(timeout=60) == "fine"


def test_retries(client: Client, tmp_path: Path) -> None:
    def third_time(path: str) -> str:
        with Path(path).open("a") as file:
            file.write(".")
        if len(Path(path).read_text()) < 3:
            raise OSError("not yet")
        return "there"

    assert client.submit(third_time, str(tmp_path / "a"), retries=2).result(timeout=60) == "there"
    with pytest.raises(OSError, match="not yet"):
        client.submit(third_time, str(tmp_path / "b"), retries=1).result(timeout=60)
    with dask.annotate(retries=2):
        late = dask.delayed(third_time)(str(tmp_path / "c"))
    assert client.compute(late, optimize_graph=False).result(timeout=60) == "there"


def test_done_callback(client: Client) -> None:
    called = threading.Event()
    seen: list[Future] = []
    future = client.submit(inc, 10)
    future.add_done_callback(lambda future: (seen.append(future), called.set()))
    assert called.wait(20)
    assert seen == [future]


def test_what_is_waited_for_is_no_garbage(client: Client) -> None:
    called = threading.Event()
    client.submit(sleep, 0.3, pure=False).add_done_callback(lambda future: called.set())
    iterator = as_completed(client.map(sleep, [0.3, 0.4], pure=False))
    gc.collect()
    assert iterator.next().result() == 0.3
    iterator.clear()
    iterator.add(client.submit(sleep, 0.5, pure=False))
    assert [future.result() for future in iterator] == [0.5], "and not the one that was done after all was forgotten"
    assert called.wait(20)
    dropped = client.submit(sleep, 1, key="dropped", pure=False)
    iterator.add(dropped)
    assert "dropped" in client.run_on_scheduler(known)
    del dropped, iterator
    eventually(lambda: "dropped" not in client.run_on_scheduler(known), 60)


async def test_what_is_waited_for_is_no_garbage_asynchronously(aclient: Client) -> None:
    called = asyncio.Event()
    loop = asyncio.get_running_loop()
    aclient.submit(sleep, 0.2, pure=False).add_done_callback(lambda future: loop.call_soon_threadsafe(called.set))
    iterator = as_completed(aclient.map(sleep, [0.2, 0.3], pure=False), with_results=True)
    gc.collect()
    assert sorted([value async for _, value in iterator]) == [0.2, 0.3]
    await asyncio.wait_for(called.wait(), 60)


def test_map_and_gather(client: Client) -> None:
    futures = client.map(inc, range(50), batch_size=7)
    assert client.gather(futures) == list(range(1, 51))
    assert client.gather({"a": futures[0], "b": [futures[1], (futures[2],)]}) == {"a": 1, "b": [2, (3,)]}
    assert client.gather(iter(futures[:2])) == [1, 2]
    assert client.gather(client.map(operator.add, range(3), range(3))) == [0, 2, 4]
    assert client.gather(client.map(div, [1, 2], y=2)) == [0.5, 1.0]
    assert [future.key for future in client.map(inc, [1, 2], key=["k1", "k2"])] == ["k1", "k2"]
    mixed = [futures[0], client.submit(div, 1, 0)]
    with pytest.raises(ZeroDivisionError):
        client.gather(mixed)
    assert client.gather(mixed, errors="skip") == [1]
    with pytest.raises(ValueError, match="errors="):
        client.gather(mixed, errors="ignore")
    large = client.submit(np.arange, 100_000)
    assert client.gather(large, direct=True)[-1] == client.gather(large, direct=False)[-1] == 99_999


def test_options(client: Client) -> None:
    first, second = client.nthreads()
    where = lambda: __import__("daskfleet").get_worker().address  # noqa: E731
    assert client.submit(where, workers=[second], pure=False).result(timeout=60) == second
    assert client.submit(where, workers=["nowhere"], allow_other_workers=True, pure=False).result(20) in (first, second)
    with pytest.raises(ValueError, match="allow_other_workers"):
        client.submit(where, allow_other_workers=True)
    waiting = client.submit(inc, 1, resources={"GPU": 1}, pure=False)
    assert not wait([client.submit(inc, 2)], timeout=60).not_done
    assert waiting.status == "pending"
    waiting.cancel()


def test_priorities(client: Client, tmp_path: Path) -> None:
    noted, at = tmp_path / "noted", {"workers": list(client.nthreads())[:1]}

    def hold(folder: Path) -> None:
        (folder / "held").touch()
        eventually((folder / "go").exists, 90)

    def note(text: str) -> None:
        with noted.open("a") as file:
            file.write(f"{text}\n")

    holding = client.submit(hold, tmp_path, **at)
    eventually((tmp_path / "held").exists, 90)
    futures = [client.submit(note, "submitted, least", priority=-1, **at)]
    futures += client.map(note, ["usual 1", "usual 2"], **at)
    futures += client.map(note, ["mapped"], priority=1, **at)
    futures += [client.submit(note, "submitted", priority=2, **at)]
    with dask.annotate(priority=3):
        annotated = dask.delayed(note)("annotated")
    futures += [client.compute(annotated, optimize_graph=False, **at)]
    futures += [client.compute(dask.delayed(note)("computed"), priority=4, **at)]
    assert len(client.run_on_scheduler(known)) >= len(futures)  # it has all
    (tmp_path / "go").touch()
    assert not wait([holding, *futures], timeout=180).not_done
    expected = ["computed", "annotated", "submitted", "mapped", "usual 1", "usual 2", "submitted, least"]
    assert noted.read_text().splitlines() == expected


async def test_a_graph_runs_in_the_order_that_dask_gives_it(aclient: Client) -> None:
    """Depth first, so that as little as possible is held at once, though the graph is written breadth first."""
    graph: dict[Any, Any] = {("load", i): (inc, i) for i in range(5)}
    graph |= {("work", i): (inc, ("load", i)) for i in range(5)}
    graph["sum"] = (sum, [("work", i) for i in range(5)])
    future = aclient.get(graph, "sum", sync=False, workers=["nobody"])  # so all wait
    tasks = aclient.cluster.scheduler.state.keys
    async with asyncio.timeout(60):
        while len(tasks) < len(graph):
            await asyncio.sleep(0.01)
    order = sorted(graph, key=lambda key: tasks[key].priority)
    assert order[1::2] == [("work", i) for _, i in order[:10:2]] and order[10] == "sum"
    future.release()


def test_scatter(client: Client) -> None:
    one = client.scatter(np.arange(10))
    assert client.submit(np.sum, one).result(timeout=60) == 45
    assert client.gather(client.scatter([1, 2, 3])) == [1, 2, 3]
    assert client.gather(client.scatter({"x": 1, "y": 2})) == {"x": 1, "y": 2}
    assert client.scatter(7).key == client.scatter(7).key != client.scatter(7, hash=False).key
    everywhere = client.scatter(np.ones(1000), broadcast=True)
    assert len(client.who_has(everywhere)[everywhere.key]) == 2


def test_cancel(client: Client) -> None:
    futures = client.map(sleep, [1.0] * 10, pure=False)
    client.cancel(futures[5:], reason="not needed")
    assert all(future.cancelled() for future in futures[5:])
    with pytest.raises(CancelledError, match="not needed"):
        futures[9].result(timeout=60)
    client.cancel(futures)


def test_collections(client: Client) -> None:
    x = da.arange(1000, chunks=100)
    assert x.sum().compute() == 499_500
    future = client.compute(x.sum())
    assert isinstance(future, Future) and future.result(timeout=60) == 499_500
    assert client.compute([x.sum(), x.max()], sync=True) == [499_500, 999]
    y = client.persist(x + 1)
    assert len(futures_of(y)) == len(client.futures_of(y)) == 10
    wait(y, timeout=60)
    assert y.max().compute() == 1000
    assert len(dask.base.wait(client.persist(x + 2), timeout=60).done) == 10
    (z,) = dask.persist(db.range(10, npartitions=3))
    assert z.sum().compute() == 45
    assert client.get({"a": 1, "b": (inc, "a")}, ["b", ["a", "b"]]) == [2, [1, 2]]
    assert client.get({"c": (inc, 1)}, "c", sync=False).result(timeout=60) == 2
    with pytest.raises(KeyError, match="missing"):
        client.get({"a": 1}, "missing")
    assert dask.delayed(inc)(dask.delayed(inc)(1)).compute() == 3
    assert len(futures_of(client.normalize_collection(x + 1))) == 10  # the same tasks as y's, which are there
    assert not futures_of(client.normalize_collection(x + 2))


def test_wait(client: Client) -> None:
    futures = client.map(sleep, [0.0, 0.3], pure=False)
    done, not_done = wait(futures, timeout=60, return_when="FIRST_COMPLETED")
    assert futures[0] in done and len(done) + len(not_done) == 2
    assert not wait(futures, timeout=60).not_done
    with pytest.raises(TimeoutError, match="1 of 1 futures were not done"):
        wait(client.submit(sleep, 2, pure=False), timeout=0.05)
    with pytest.raises(ValueError, match="return_when"):
        wait(futures, return_when="NEVER")


def test_as_completed(client: Client) -> None:
    futures = client.map(inc, range(10), pure=False)
    assert sorted(future.result() for future in as_completed(futures)) == list(range(1, 11))
    assert sorted(value for _, value in as_completed(futures, with_results=True)) == list(range(1, 11))
    batches = list(as_completed(futures).batches())
    assert sum(map(len, batches)) == 10
    iterator = as_completed(futures[:1])
    iterator.add(futures[1])
    iterator.update(futures[2:4])
    assert iterator.count() == 4 and not iterator.is_empty()
    next(iterator)
    assert len(iterator.next_batch(block=False)) == 3 and iterator.is_empty() and not iterator.has_ready()
    iterator.update(futures)
    iterator.clear()
    assert iterator.is_empty() and list(iterator) == []
    bad = client.submit(div, 1, 0, pure=False)
    with pytest.raises(ZeroDivisionError):
        list(as_completed([bad], with_results=True))
    ((_, (kind, error, traceback)),) = as_completed([bad], with_results=True, raise_errors=False)
    assert kind is ZeroDivisionError is type(error) and traceback is not None
    with pytest.raises(TimeoutError, match="1 futures were not done"):
        list(as_completed(client.map(sleep, [3], pure=False), timeout=0.05))


def test_run(client: Client) -> None:
    assert set(client.run(inc, 1).values()) == {2}
    first = next(iter(client.nthreads()))
    assert client.run(lambda dask_worker: dask_worker.address, workers=[first]) == {first: first}
    assert (
        client.run(os.getpid, workers=[]) == client.has_what([]) == client.nthreads([]) == {}
    )  # nobody, not everybody
    assert client.get_worker_logs(workers=[]) == client.processing([]) == {}
    with pytest.raises(TimeoutError, match="none is running of those named"):
        client.scatter([1], workers=[])
    assert client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.workers)) == list(client.nthreads())
    with pytest.raises(ZeroDivisionError):
        client.run(div, 1, 0)
    assert client.run(div, 1, 0, on_error="ignore") == {}
    assert all(isinstance(error, ZeroDivisionError) for error in client.run(div, 1, 0, on_error="return").values())
    assert client.run(inc, 1, wait=False) is None

    async def coroutine() -> int:
        await asyncio.sleep(0)
        return 5

    assert set(client.run(coroutine).values()) == {5}


def test_run_in_the_nannies(client: Client) -> None:
    pids = client.run(os.getpid)
    assert client.run(lambda dask_worker: dask_worker.pid, nanny=True) == pids
    beside = client.run(os.getpid, nanny=True)
    assert set(beside) == set(pids) and not set(beside.values()) & set(pids.values())
    first = next(iter(pids))
    array = client.run(np.arange, 100_000, nanny=True, workers=[first])[first]
    assert array.sum() == sum(range(100_000))
    with pytest.raises(ZeroDivisionError):
        client.run(div, 1, 0, nanny=True)
    assert client.run(div, 1, 0, nanny=True, on_error="ignore") == {}
    assert client.run(inc, 1, nanny=True, wait=False) is None
    client.restart_workers([first])  # the nanny goes on as before
    assert set(client.run(os.getpid, nanny=True).values()) == set(beside.values())


async def test_workers_without_a_nanny_are_left_out(aclient: Client) -> None:
    assert await aclient.run(os.getpid, nanny=True) == {}
    assert await aclient.get_worker_logs(nanny=True) == {}


async def test_asynchronous(aclient: Client) -> None:
    futures = aclient.map(inc, range(5))
    assert await aclient.gather(futures) == [1, 2, 3, 4, 5]
    assert await futures[0] == await futures[0].result() == 1
    assert await futures[0].exception() is None
    assert [await future async for future in as_completed(futures[:1])] == [1]
    assert sorted([value async for _, value in as_completed(futures, with_results=True)]) == [1, 2, 3, 4, 5]
    assert not (await wait(futures, timeout=60)).not_done
    assert await aclient.gather(await aclient.scatter([1, 2])) == [1, 2]
    assert set((await aclient.run(inc, 1)).values()) == {2}
    assert await aclient.run_on_scheduler(inc, 1) == 2
    assert await aclient.compute(da.ones(10, chunks=5).sum()) == 10
    assert await aclient.compute(da.ones(10, chunks=5).sum(), sync=True) == 10
    x = aclient.persist(da.ones(10, chunks=5))
    assert await x is x and [future.status for future in futures_of(x)] == ["finished"] * 2
    assert len((await dask.base.wait(aclient.persist(x + 1))).done) == 2
    assert await (lazy := da.ones(10, chunks=5)) is lazy
    assert await aclient.get({"c": (inc, 1)}, "c") == 2
    bad = aclient.submit(div, 1, 0)
    with pytest.raises(ZeroDivisionError):
        await bad
    await bad.retry()
    await aclient.cancel(futures)
    assert futures[0].cancelled()
    assert "Client" in repr(aclient) and "Scheduler" in aclient._repr_html_()
