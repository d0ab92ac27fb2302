"""What users of distributed rely on, a row of its tables a test, in its blocking and its asynchronous form.

A row is written once, as a coroutine: ``await do(answer)`` awaits what an asynchronous client returns, and takes a
blocking one's as it is. That each part does what it says under stress is for the other files here; these rows say that
every name is there, takes what distributed takes, and answers. What differs on purpose is said in the docstrings.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import pickle
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import daskfleet
import pytest
from dask import array as da
from dask import delayed
from daskfleet import Client


class Do:
    """How a row asks its client."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client, self.folder = client, folder

    async def __call__(self, answer: Any) -> Any:
        if self.client.asynchronous:
            return await answer if inspect.isawaitable(answer) else answer
        assert not inspect.iscoroutine(answer), "a blocking client returns no coroutines"
        return answer

    async def result(self, future: Any) -> Any:
        return await future if self.client.asynchronous else future.result(timeout=60)

    async def raises(self, kind: Any, call: Callable[[], Any], match: str | None = None) -> None:
        with pytest.raises(kind, match=match):
            answer = call()
            await (answer if inspect.iscoroutine(answer) else self(answer))

    async def within(self, manager: Any) -> Any:
        """Enter and leave a context manager by ``with`` or ``async with``."""
        if self.client.asynchronous:
            async with manager as entered:
                return entered
        with manager as entered:
            return entered

    async def all_of(self, iterator: Any) -> list[Any]:
        return [item async for item in iterator] if self.client.asynchronous else list(iterator)

    async def addresses(self) -> list[str]:
        return sorted(await self(self.client.nthreads()))


Row = Callable[[Client, Do], Awaitable[None]]
ROWS: list[Row] = []


def row(function: Row) -> Row:
    ROWS.append(function)
    return function


def name_of(function: Row) -> str:
    return function.__name__


def increment(x: int) -> int:
    return x + 1


def fail() -> None:
    raise ValueError("on purpose")


def hold(path: str) -> None:
    """Run until somebody makes this file."""
    for _ in range(3000):
        if os.path.exists(path):
            return
        time.sleep(0.02)
    raise TimeoutError(path)


@row
async def client_submit(client: Client, do: Do) -> None:
    address = (await do.addresses())[0]
    options = {"retries": 1, "priority": 2, "fifo_timeout": "1s", "pure": False, "resources": None}
    future = client.submit(increment, 1, key="mine", workers=[address], allow_other_workers=True, **options)
    assert (await do.result(future), future.key, future.status) == (2, "mine", "finished")
    assert client.submit(increment, x=1).key == client.submit(increment, x=1).key


@row
async def client_map(client: Client, do: Do) -> None:
    assert await do(client.gather(client.map(lambda a, b, c: a + b + c, [1, 2], [3, 4], c=5, batch_size=1))) == [9, 11]
    assert [future.key for future in client.map(increment, [1, 2], key=["x", "y"])] == ["x", "y"]


@row
async def client_get(client: Client, do: Do) -> None:
    graph = {"a": 1, "b": (increment, "a")}
    address = (await do.addresses())[0]
    assert await do(client.get(graph, [["a"], "b"], workers=[address], retries=1, direct=True)) == [[1], 2]
    assert await do.result(client.get(graph, "b", sync=False)) == 2


@row
async def client_compute(client: Client, do: Do) -> None:
    total = da.ones(4, chunks=2).sum()
    options = {"retries": 1, "priority": 1, "fifo_timeout": "1s", "allow_other_workers": False, "resources": None}
    assert await do.result(client.compute(total, optimize_graph=False, **options)) == 4
    assert await do(client.compute([total, 5], sync=True)) == [4, 5]
    nested = client.compute({"one": [delayed(increment)(0)]})
    assert await do.result(nested) == {"one": [1]}
    assert client.compute({"one": 1}, traverse=False) == {"one": 1}
    with pytest.raises(TypeError, match="nosuch"):
        client.compute(total, nosuch=1)
    with pytest.raises(ValueError, match="submit the class"):
        client.compute(total, actors=True)


@row
async def client_persist(client: Client, do: Do) -> None:
    address = (await do.addresses())[0]
    array, other = client.persist([da.ones(4, chunks=2), da.zeros(2)], workers=address, retries=1)
    await do(daskfleet.wait([array, other]))
    assert set((await do(client.who_has(array))).values()) == {(address,)}
    assert len(client.futures_of(array)) == len(daskfleet.futures_of(array)) == 2
    assert client.normalize_collection(da.ones(4, chunks=2)).dask.keys() == array.dask.keys()
    with pytest.raises(TypeError, match="not int"):
        client.persist(5)


@row
async def client_get_executor(client: Client, do: Do) -> None:
    executor = client.get_executor(pure=True, retries=1)
    assert await asyncio.wrap_future(executor.submit(increment, 1)) == 2
    executor.shutdown(wait=False)
    with pytest.raises(TypeError, match="takes no nosuch"):
        client.get_executor(nosuch=1)


@row
async def client_gather(client: Client, do: Do) -> None:
    good, bad = client.submit(increment, 1), client.submit(fail, pure=False)
    assert await do(client.gather([good, {"x": good}], direct=True)) == [2, {"x": 2}]
    assert await do(client.gather([good, bad], errors="skip")) == [2]
    await do.raises(ValueError, lambda: client.gather([good, bad], errors="raise"), "on purpose")
    assert await client.gather(good, asynchronous=True) == 2 or not client.asynchronous


@row
async def client_scatter(client: Client, do: Do) -> None:
    first = (await do.addresses())[0]
    future = await do(client.scatter(1, workers=[first], hash=False))
    assert await do(client.who_has(future)) == {future.key: (first,)}
    (everywhere,) = await do(client.scatter([2], broadcast=True, direct=True, timeout=60))
    assert len((await do(client.who_has([everywhere])))[everywhere.key]) == 2
    named = await do(client.scatter({"x": 3}))
    assert named["x"].key == "x" and await do.result(client.submit(increment, named["x"])) == 4


@row
async def client_cancel(client: Client, do: Do) -> None:
    path = do.folder / "held"
    first = client.submit(hold, str(path), pure=False)
    after = client.submit(str, client.submit(str, first))
    await do(client.cancel([first], reason="changed my mind", msg="no more"))
    await do.raises(daskfleet.CancelledError, lambda: do.result(after), "changed my mind: no more")
    await do.raises(daskfleet.CancelledError, lambda: do.result(first), "changed my mind: no more")
    assert first.cancelled() and first.status == "cancelled"
    path.touch()
    array = client.persist(da.ones(4, chunks=2).map_blocks(increment))
    futures = client.futures_of(array)
    await do(client.cancel(array, force=True))
    assert all([isinstance(await do(future.exception()), daskfleet.CancelledError) for future in futures])


@row
async def client_retry(client: Client, do: Do) -> None:
    path = str(do.folder / "there")
    future = client.submit(os.stat, path, pure=False)
    await do.raises(OSError, lambda: do.result(future))
    Path(path).touch()
    await do(client.retry([future]))
    assert (await do.result(future)).st_size == 0
    await do(future.retry())


@row
async def client_replicate_and_rebalance(client: Client, do: Do) -> None:
    addresses = await do.addresses()
    futures = await do(client.scatter([bytes(100_000), bytes(100_001)], workers=addresses[:1], hash=False))
    await do(client.rebalance(futures, workers=addresses))
    assert set((await do(client.who_has(futures))).values()) == {(address,) for address in addresses}
    await do(client.replicate(futures, n=2, workers=addresses, branching_factor=2))
    assert {len(holders) for holders in (await do(client.who_has(futures))).values()} == {2}


@row
async def client_datasets(client: Client, do: Do) -> None:
    await do(client.publish_dataset(client.persist(da.ones(2)), name="ones"))
    await do(client.publish_dataset(x=5))
    await do.raises(KeyError, lambda: client.publish_dataset(x=6))
    await do(client.publish_dataset(6, name="x", override=True))
    assert sorted(await do(client.list_datasets())) == ["ones", "x"]
    assert sorted(await do.all_of(client.datasets)) == ["ones", "x"]
    assert await do(client.get_dataset("x")) == 6 and await do(client.get_dataset("nosuch", default=7)) == 7
    await do.raises(KeyError, lambda: client.get_dataset("nosuch"))
    for name in ("ones", "x"):
        await do(client.unpublish_dataset(name))


@row
async def client_run(client: Client, do: Do) -> None:
    first, second = await do.addresses()
    assert await do(client.run(lambda dask_worker: dask_worker.address)) == {first: first, second: second}
    assert await do(client.run(increment, 1, workers=[first])) == {first: 2}
    assert await do(client.run(increment, 1, wait=False)) is None
    await do.raises(ValueError, lambda: client.run(fail), "on purpose")
    assert await do(client.run(fail, on_error="ignore")) == {}
    assert set(map(type, (await do(client.run(fail, on_error="return"))).values())) == {ValueError}
    beside = await do(client.run(lambda dask_worker: type(dask_worker).__name__, nanny=True))
    assert set(beside.values()) <= {"Nanny"}
    assert await do(client.run_on_scheduler(lambda dask_scheduler: sorted(dask_scheduler.workers))) == [first, second]
    assert client.scheduler.address == client.scheduler_address
    assert (await do(client.scheduler_info()))["address"] == client.scheduler_address


@row
async def client_upload_file(client: Client, do: Do) -> None:
    path = do.folder / f"uploaded_{os.urandom(4).hex()}.py"
    path.write_text("x = 1\n")
    done = await do(client.upload_file(path, load=True))
    assert done == {key: {"status": "OK"} for key in await do.addresses()}
    assert await do.result(client.submit(lambda name: __import__(name).x, path.stem)) == 1
    await do(client.register_worker_callbacks(lambda dask_worker: setattr(dask_worker, "mark", 1)))
    assert set((await do(client.run(lambda dask_worker: dask_worker.mark))).values()) == {1}


class OnWorkers(daskfleet.WorkerPlugin):
    def setup(self, worker: Any) -> None:
        worker.mark = "set up"

    def teardown(self, worker: Any) -> None:
        worker.mark = "torn down"


class OnScheduler(daskfleet.SchedulerPlugin):
    name = "on the scheduler"

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def transition(self, key: str, start: str, finish: str, *, stimulus_id: str, **kwargs: Any) -> None:
        self.seen.append((key, finish))


@row
async def client_plugins(client: Client, do: Do) -> None:
    marks = lambda: client.run(lambda dask_worker: dask_worker.mark)  # noqa: E731
    assert len(await do(client.register_plugin(OnWorkers(), name="mine"))) == 2
    assert set((await do(marks())).values()) == {"set up"}
    await do(client.unregister_worker_plugin("mine", nanny=False))
    assert set((await do(marks())).values()) == {"torn down"}
    assert await do(client.register_plugin(OnScheduler())) is None
    await do.result(client.submit(increment, 1, key="seen"))
    look = lambda dask_scheduler: dask_scheduler.plugins.own["on the scheduler"].seen  # noqa: E731
    assert ("seen", "memory") in await do(client.run_on_scheduler(look))
    await do(client.unregister_scheduler_plugin("on the scheduler"))
    await do.raises(ValueError, lambda: client.unregister_scheduler_plugin("on the scheduler"))


@row
async def client_look(client: Client, do: Do) -> None:
    addresses = await do.addresses()
    path = do.folder / "held"
    future = client.submit(hold, str(path), pure=False)
    stacks: dict[str, Any] = {}
    while "hold" not in repr(stacks.values()):  # the row has a deadline
        stacks = await do(client.call_stack([future]))
        await asyncio.sleep(0.01)
    ((address, calls),) = stacks.items()
    assert set(calls) == {future.key}
    assert await do(client.processing()) == {each: (future.key,) * (each == address) for each in addresses}
    path.touch()
    await do.result(future)
    assert await do(client.who_has([future])) == {future.key: (address,)}
    assert future.key in (await do(client.has_what([address])))[address]
    assert await do(client.ncores()) == await do(client.nthreads(addresses)) == dict.fromkeys(addresses, 1)
    assert "hold" in await do(client.nbytes()) and future.key in await do(client.nbytes(summary=False))
    assert {"count", "children"} <= set(await do(client.profile(key="hold")))
    info = await do(client.scheduler_info(n_workers=1))
    assert info["type"] == "Scheduler" and len(info["workers"]) == 1
    await do(client.story(future))
    assert {"client", "scheduler", "workers"} == set(await do(client.get_versions(check=True)))
    assert set(await do(client.get_worker_logs(n=1))) == set(addresses)
    assert isinstance(await do(client.get_scheduler_logs(n=1)), tuple)
    assert Path(await do(client.dump_cluster_state(str(do.folder / "dump")))).exists()
    assert isinstance(client.dashboard_link, str)


@row
async def client_amm(client: Client, do: Do) -> None:
    await do(client.amm.stop())
    assert not await do(client.amm.running())
    await do(client.amm.run_once())
    await do(client.amm.start())
    assert await do(client.amm.running())


@row
async def client_task_stream(client: Client, do: Do) -> None:
    async def within(block: Any, key: str) -> Any:
        if client.asynchronous:
            async with block:
                await client.submit(increment, 1, key=key)
        else:
            with block:
                client.submit(increment, 1, key=key).result(timeout=60)
        return block

    assert [record["key"] for record in (await within(daskfleet.get_task_stream(), "a")).data] == ["a"]
    assert [record["key"] for record in await do(client.get_task_stream(count=1))] == ["a"]
    assert (await within(daskfleet.get_task_metadata(), "b")).state == {"b": "memory"}
    await within(daskfleet.performance_report(str(do.folder / "report.html")), "c")
    assert "<html" in (do.folder / "report.html").read_text()
    with daskfleet.span("mine"):
        future = client.submit(increment, 5)
    await do(daskfleet.progress(future, notebook=False))


@row
async def client_events(client: Client, do: Do) -> None:
    topic, seen, there = os.urandom(4).hex(), [], threading.Event()

    def handler(event: tuple[float, Any]) -> None:
        seen.append(event[1])
        there.set()

    await do(client.subscribe_topic(topic, handler))
    await do(client.log_event([topic], {"x": 1}))
    assert await asyncio.to_thread(there.wait, 20) and seen == [{"x": 1}]
    await do(client.unsubscribe_topic(topic))
    assert [message for _, message in await do(client.get_events(topic))] == [{"x": 1}]
    await do(client.set_metadata([topic, "a"], 2))
    assert await do(client.get_metadata([topic])) == {"a": 2}
    assert await do(client.get_metadata(["nosuch"], default=3)) == 3
    await do.raises(KeyError, lambda: client.get_metadata("nosuch"))
    await do(client.forward_logging(topic, level=logging.INFO))
    await do(client.unforward_logging(topic))


@row
async def client_life(client: Client, do: Do) -> None:
    await do(client.wait_for_workers(2, timeout=60))
    await do.raises(TimeoutError, lambda: client.wait_for_workers(n_workers=9, timeout=0.05))
    await do(client.write_scheduler_file(str(do.folder / "file")))
    assert json.loads((do.folder / "file").read_text())["address"] == client.scheduler_address
    with client.as_current():
        assert Client.current() is Client.current(allow_global=False) is client
    assert daskfleet.default_client() is daskfleet.get_client() is client
    assert await do(client.retire_workers([], close_workers=True)) == {}
    options = {"security": client.security, "asynchronous": client.asynchronous, "set_as_default": False}
    other = Client(client.scheduler_address, timeout="10s", name="mine", heartbeat_interval=1, **options)
    assert (await do(other)).status == "running" and other.id.startswith("mine")
    await do(other.close(timeout=5))
    assert other.status == "closed"


@row
async def future(client: Client, do: Do) -> None:
    good, bad = client.submit(increment, 1), client.submit(fail, pure=False)
    assert await do.result(good) == 2 and good.done() and not good.cancelled()
    assert (good.type, good.client, good.executor, good.key) == (
        "int",
        client,
        client,
        pickle.loads(pickle.dumps(good)).key,
    )
    assert isinstance(await do(bad.exception()), ValueError) and await do(good.exception()) is None
    assert (await do(bad.traceback())).tb_frame.f_code.co_name and bad.status == "error"
    called = threading.Event()
    good.add_done_callback(lambda future: called.set())
    assert await asyncio.to_thread(called.wait, 20)
    path = do.folder / "held"
    slow = client.submit(hold, str(path), pure=False)
    await do.raises(TimeoutError, lambda: slow.result(timeout="10 ms"))
    assert slow.status == "pending"
    await do(slow.cancel(reason="r", msg="m"))
    path.touch()
    good.release()
    assert good.cancelled()


@row
async def waiting(client: Client, do: Do) -> None:
    futures = client.map(increment, range(3))
    done, not_done = await do(daskfleet.wait(futures, timeout="20s", return_when="ALL_COMPLETED"))
    assert done == set(futures) and not not_done
    path = do.folder / "held"
    slow = client.submit(hold, str(path), pure=False)
    await do.raises(TimeoutError, lambda: daskfleet.wait(slow, timeout=0.01))
    assert (await do(daskfleet.wait([slow, *futures], return_when="FIRST_COMPLETED"))).not_done == {slow}
    path.touch()


@row
async def as_completed(client: Client, do: Do) -> None:
    futures = client.map(increment, range(3))
    await do(daskfleet.wait(futures))
    pairs = await do.all_of(daskfleet.as_completed(futures, with_results=True, timeout=60))
    assert sorted(result for _, result in pairs) == [1, 2, 3]
    iterator = daskfleet.as_completed()
    iterator.add(futures[0])
    iterator.update(futures[1:])
    assert (iterator.count(), iterator.is_empty(), iterator.has_ready()) == (3, False, True)
    assert iterator.next() in futures and len(iterator.next_batch(block=False)) == 2
    assert [len(batch) for batch in daskfleet.as_completed(futures).batches()] == [3]
    iterator.add(futures[0])
    iterator.clear()
    assert iterator.is_empty()
    bad = client.submit(fail, pure=False)
    ((_, (kind, error, _)),) = await do.all_of(daskfleet.as_completed([bad], with_results=True, raise_errors=False))
    assert kind is ValueError is type(error)


@row
async def variable(client: Client, do: Do) -> None:
    variable = daskfleet.Variable("v", client=client)
    await do(variable.set(client.submit(increment, 1), timeout="5s"))
    assert await do.result(await do(variable.get(timeout=5))) == 2
    await do(variable.delete())
    await do.raises(TimeoutError, lambda: variable.get(timeout="10 ms"))


@row
async def queue(client: Client, do: Do) -> None:
    queue = daskfleet.Queue("q", client=client, maxsize=2)
    for item in (1, 2):
        await do(queue.put(item, timeout=5))
    await do.raises(TimeoutError, lambda: queue.put(3, timeout=0.01))
    assert await do(queue.qsize()) == 2 and await do(queue.get(timeout=5)) == 1
    assert await do(queue.get(batch=True)) == [2]
    await do(queue.close())


@row
async def lock(client: Client, do: Do) -> None:
    lock, other = daskfleet.Lock("l", client=client), daskfleet.Lock("l", client=client)
    assert await do(lock.acquire(blocking=True, timeout=5)) is True and await do(other.locked()) is True
    assert await do(other.acquire(blocking=False)) is False
    assert await do(lock.release()) is True
    assert await do.within(lock) is lock and not await do(lock.locked())


@row
async def event(client: Client, do: Do) -> None:
    event = daskfleet.Event("e", client=client)
    assert await do(event.wait(timeout=0.01)) is False
    await do(event.set())
    assert await do(event.wait(timeout=5)) is True and await do(event.is_set()) is True
    await do(event.clear())
    assert await do(event.is_set()) is False


@row
async def semaphore(client: Client, do: Do) -> None:
    semaphore = daskfleet.Semaphore(max_leases=2, name="s", client=client)
    assert await do(semaphore.acquire(timeout=5)) and await do(semaphore.acquire())
    assert await do(semaphore.acquire(timeout=0.01)) is False and await do(semaphore.get_value()) == 2
    assert await do(semaphore.release()) is True
    assert await do.within(semaphore) is semaphore
    await do(semaphore.close())


@row
async def multi_lock(client: Client, do: Do) -> None:
    both, one = (daskfleet.MultiLock(names=names, client=client) for names in (["x", "y"], ["y", "z"]))
    assert await do(both.acquire(blocking=True, timeout=5)) and both.locked()
    assert not await do(one.acquire(blocking=False)) and await do(one.acquire(num_locks=1))
    for held in (both, one):
        await do(held.release())
        assert not held.locked()
    await do.raises(ValueError, both.release, "not held")
    assert await do.within(one) is one


class Counter:
    n = 0

    def add(self, more: int) -> int:
        self.n += more
        return self.n


@row
async def actors(client: Client, do: Do) -> None:
    future = client.submit(Counter, actor=True)
    counter = await do.result(future)
    answer = counter.add(2)
    assert isinstance(counter, daskfleet.Actor) and isinstance(answer, daskfleet.ActorFuture)
    assert (await answer if client.asynchronous else answer.result(timeout=60)) == 2 and answer.done()
    assert await do(counter.n) == 2 and counter.key == future.key and "add" in dir(counter)
    assert len(await do(client.gather(client.map(lambda n: Counter(), [1, 2], actors=True)))) == 2


def inside(x: int) -> list[int]:
    client = daskfleet.get_client()
    with daskfleet.worker_client(timeout=60, separate_thread=True) as same:
        total = same.gather(same.map(increment, [x, x + 1]))
    daskfleet.secede()
    daskfleet.rejoin()
    daskfleet.fire_and_forget(client.submit(increment, x))
    assert daskfleet.get_worker().get_current_task()
    return total


@row
async def from_a_task(client: Client, do: Do) -> None:
    assert await do.result(client.submit(inside, 1)) == [2, 3]

    async def again(counting: daskfleet.Variable) -> int:
        times = await counting.get() + 1
        await counting.set(times)
        if times < 2:
            raise daskfleet.Reschedule
        return times

    counting = daskfleet.Variable("times", client=client)
    await do(counting.set(0))
    assert await do.result(client.submit(again, counting, pure=False)) == 2
    await do(counting.delete())


@row
async def clusters(client: Client, do: Do) -> None:
    cluster = client.cluster
    assert (cluster.scheduler_address, cluster.status) == (client.scheduler_address, "running")
    assert cluster.plan == cluster.requested == cluster.observed == {"0", "1"} == set(cluster.workers)
    assert (
        len(cluster.scheduler_info["workers"]) == 2 and cluster.name and cluster.loop and cluster.dashboard_link == ""
    )
    assert set(await do(cluster.get_logs(cluster=True, scheduler=True, workers=False))) == {"Cluster", "Scheduler"}
    await do(cluster.wait_for_workers(2, timeout=60))
    await do(cluster.scale(2))
    other = cluster.get_client()
    await do(other)
    assert other.scheduler_address == client.scheduler_address
    await do(other.close())
    adaptive = cluster.adapt(minimum=2, maximum=2, interval="1s", wait_count=2, target_duration="1s", worker_key=None)
    assert (adaptive.minimum, adaptive.maximum, adaptive.wait_count, adaptive.target_duration) == (2, 2, 2, 1.0)
    for name in ("target", "recommendations", "workers_to_close", "scale_up", "scale_down"):
        assert callable(getattr(adaptive, name))
    adaptive.stop()


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_blocking(row: Row, client: Client, tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(row(client, Do(client, tmp_path)), 180))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
async def test_asynchronous(row: Row, aclient: Client, tmp_path: Path) -> None:
    await asyncio.wait_for(row(aclient, Do(aclient, tmp_path)), 180)
