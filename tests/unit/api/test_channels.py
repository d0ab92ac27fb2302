"""Variable and Queue."""

from __future__ import annotations

import asyncio
import pickle
import time

import numpy as np
import pytest
from daskfleet import Client, Future, LocalCluster, Queue, Variable

from tests.eventual import eventually, until


def test_variable(client: Client) -> None:
    x = Variable("x")
    with pytest.raises(TimeoutError, match="variable 'x' was not set"):
        x.get(timeout=0.05)
    x.set({"a": [1, 2]})
    assert pickle.loads(pickle.dumps(x)).get() == {"a": [1, 2]}
    assert client.submit(lambda: Variable("x").get(), pure=False).result(timeout=60) == {"a": [1, 2]}
    x.delete()
    with pytest.raises(TimeoutError):
        x.get(timeout="10ms")


def test_a_variable_keeps_its_future(cluster: LocalCluster, client: Client) -> None:
    with Client(cluster, set_as_default=False) as other:
        future = other.submit(np.arange, 100_000)
        Variable("kept", client=other).set(future)
        future.result(timeout=60)
        key = future.key
        del future
    time.sleep(0.1)
    kept = Variable("kept").get(timeout=5)
    assert isinstance(kept, Future)
    assert kept.key == key
    assert kept.result(timeout=60)[-1] == 99_999
    Variable("kept").delete()
    assert kept.result(timeout=60)[-1] == 99_999
    del kept
    eventually(lambda: not client.who_has().get(key))


async def test_variable_asynchronous(aclient: Client) -> None:
    x = Variable("y")
    waiting = asyncio.ensure_future(x.get())
    await x.set(1)
    assert await waiting == 1


def test_queue(client: Client) -> None:
    queue = Queue("q", maxsize=3)
    for i in range(3):
        queue.put(i)
    assert queue.qsize() == 3
    with pytest.raises(TimeoutError, match="full"):
        queue.put(3, timeout=0.05)
    assert queue.get() == 0
    assert queue.get(batch=2) == [1, 2]
    assert queue.get(batch=True) == []
    with pytest.raises(TimeoutError, match="nothing to take"):
        queue.get(timeout=0.05)
    with pytest.raises(TimeoutError):
        queue.put(1)
        queue.get(batch=2, timeout=0.05)
    assert queue.get(batch=True) == [1]  # what a batch could not use is still there
    queue.close()
    assert queue.qsize() == 0


def test_queue_passes_futures_between_tasks(client: Client) -> None:
    def produce(n: int) -> None:
        from daskfleet import get_client

        queue, own = Queue("futures"), get_client()
        for i in range(n):
            queue.put(own.submit(np.full, 10_000, i))

    def consume(n: int) -> int:
        queue = Queue("futures")
        return sum(int(queue.get(timeout=60).result(timeout=60)[0]) for _ in range(n))

    consuming = client.submit(consume, 10, pure=False)
    client.submit(produce, 10, pure=False).result(timeout=60)
    assert consuming.result(timeout=90) == sum(range(10))


def test_a_full_queue_lets_go_in_order(cluster: LocalCluster, client: Client) -> None:
    queue = Queue("narrow", maxsize=1)
    producers = client.map(lambda i: Queue("narrow", maxsize=1).put(i, timeout=60), range(5), pure=False)
    assert sorted(queue.get(timeout=60) for _ in range(5)) == [0, 1, 2, 3, 4]
    client.gather(producers)


async def test_queue_asynchronous(aclient: Client) -> None:
    queue = await Queue("async")
    waiting = asyncio.ensure_future(queue.get(batch=3))
    for i in range(3):
        await queue.put(i)
    assert await waiting == [0, 1, 2]
    future = aclient.submit(pow, 2, 5)
    await queue.put(future)
    assert await (await queue.get()) == 32


@pytest.mark.parametrize("before", [0.0, 0.05])
@pytest.mark.parametrize("after", [0.0, 0.05])
async def test_what_is_cancelled_takes_and_leaves_nothing(aclient: Client, before: float, after: float) -> None:
    queue, unset = Queue("cancelled", maxsize=2), Variable("never set")
    waiting = [asyncio.ensure_future(get) for get in (queue.get(batch=3), queue.get(), unset.get())]
    await asyncio.sleep(before)
    for task in waiting:
        task.cancel()
    await asyncio.sleep(after)
    for value in ("data", aclient.submit(str, "future")):
        await queue.put(value)
    putting, getting = (asyncio.ensure_future(call) for call in (queue.put("put"), queue.get()))
    await asyncio.sleep(before)
    ended = [task for task in (putting, getting) if not task.cancel()]
    await asyncio.sleep(after)
    got = [task.result() for task in ended if task is getting]
    while len(got) < 2:
        got.append(await queue.get())
    got += await queue.get(batch=True)
    there = {await value if isinstance(value, Future) else value for value in got}
    assert there in ({"data", "future"}, {"data", "future", "put"}) and len(got) == len(there)
    queues, variables = (aclient.cluster.scheduler.extensions[name] for name in ("queues", "variables"))
    assert not queues._asked and not variables._asked and not variables._lines
    await until(lambda: not queues._handed)


def test_what_a_client_has_not_got_when_it_ends_is_back_in_its_place(cluster: LocalCluster, client: Client) -> None:
    queue = Queue("back")
    for i in range(4):
        queue.put(i)
    with Client(cluster, set_as_default=False) as other:
        assert Queue("back", client=other).get() == 0
        other._sync(other._call, "queue_get", "back", 10**9, 2, None)  # and does not say that it has it
        assert queue.qsize() == 1
    eventually(lambda: queue.qsize() == 3)
    assert queue.get(batch=True) == [1, 2, 3]


async def test_a_get_that_is_repeated_after_a_lost_connection_takes_once(aclient: Client) -> None:
    queue = Queue("repeated")
    waiting = asyncio.ensure_future(queue.get(batch=2))
    await queue.put(1)
    assert aclient._scheduler is not None
    aclient._scheduler.abort()
    for value in (2, 3):
        await queue.put(value)
    assert await asyncio.wait_for(waiting, 60) == [1, 2]
    assert await queue.get(batch=True) == [3]
