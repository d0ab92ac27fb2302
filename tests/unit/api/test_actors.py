"""Actors: their state, calls from everywhere, and their end."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest
from daskfleet import Actor, Client, LocalCluster, get_client, get_worker

from tests.eventual import eventually


class Counter:
    """Counts."""

    def __init__(self, start: int = 0) -> None:
        self.n = start

    def increment(self, by: int = 1) -> int:
        """Add."""
        n = self.n
        time.sleep(0.001)
        self.n = n + by
        return self.n

    async def later(self) -> int:
        await asyncio.sleep(0.01)
        return self.n

    def fail(self) -> None:
        raise KeyError("an actor's error")

    def where(self) -> tuple[int, str]:
        return os.getpid(), get_worker().address


def test_actor(client: Client) -> None:
    counter = client.submit(Counter, 5, actor=True).result(timeout=60)
    assert isinstance(counter, Actor)
    assert "Counter" in repr(counter) and "increment" in dir(counter)
    assert counter.increment.__doc__ == "Add."
    future = counter.increment()
    assert future.result(timeout=60) == 6
    assert future.done() and "done" in repr(future)
    assert counter.increment(by=4).result() == 10
    assert counter.n == 10
    assert counter.later().result(timeout=60) == 10
    with pytest.raises(KeyError, match="an actor's error"):
        counter.fail().result(timeout=60)
    with pytest.raises(AttributeError, match="missing"):
        _ = counter.missing
    pid, address = counter.where().result(timeout=60)
    assert pid != os.getpid() and address in client.nthreads()


def test_methods_run_one_at_a_time(client: Client) -> None:
    counter = client.submit(Counter, actor=True).result(timeout=60)
    futures = [counter.increment() for _ in range(100)]
    assert [future.result(timeout=60) for future in futures] == list(range(1, 101))


def test_equal_calls_make_two_actors(client: Client) -> None:
    a, b = client.gather([client.submit(Counter, actor=True), client.submit(Counter, actors=True)])
    a.increment().result(timeout=60)
    assert (a.n, b.n) == (1, 0)
    actors = client.gather(client.map(Counter, range(3), actor=True))
    assert [actor.n for actor in actors] == [0, 1, 2]


def test_actors_in_tasks(client: Client) -> None:
    def use(counter: Any, times: int) -> int:
        for _ in range(times):
            counter.increment().result()
        return int(counter.n)

    future = client.submit(Counter, actor=True)
    client.gather([client.submit(use, future, 5, pure=False) for _ in range(4)])
    assert future.result().n == 20
    assert client.submit(use, future.result(), 1, pure=False).result(timeout=60) == 21  # the proxy as an argument

    def make() -> int:
        own = get_client().submit(Counter, 3, actor=True).result()
        return int(own.increment().result())

    assert client.submit(make, pure=False).result(timeout=60) == 4


def actor_ends_with_its_last_proxy(client: Client) -> None:
    counter = client.submit(Counter, actor=True).result(timeout=60)
    address = counter.where().result(timeout=60)[1]
    key = counter._key

    def is_there(dask_worker: Any) -> bool:
        return key in dask_worker.actors._hosts

    assert client.run(is_there, workers=[address])[address]
    del counter
    eventually(lambda: not client.run(is_there, workers=[address])[address], 60)


def test_an_actor_ends_with_its_last_proxy(client: Client) -> None:
    actor_ends_with_its_last_proxy(client)


def test_the_first_actor_of_a_worker_ends_too_while_it_is_profiled() -> None:
    """It is the first task, for which dask is imported; dask keeps an error of its import, with the frames it had."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.profile(server=True)
        eventually(
            lambda: client.gather(client.map(int, range(100), pure=False)) and client.profile(server=True)["count"]
        )
        actor_ends_with_its_last_proxy(client)


def test_an_actor_is_lost_with_its_worker() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        future = client.submit(Counter, actor=True)
        counter = future.result(timeout=60)
        client.run(lambda: threading.Timer(0.05, os._exit, [1]).start())
        eventually(lambda: future.status == "error")
        with pytest.raises(Exception, match="no task produces it"):
            future.result(timeout=60)
        with pytest.raises(ConnectionError, match="cannot be reached"):
            counter.increment().result(timeout=60)


def test_actors_through_the_scheduler(cluster: LocalCluster) -> None:
    with Client(cluster, direct_to_workers=False, set_as_default=False) as client:
        counter = client.submit(Counter, 1, actor=True).result(timeout=60)
        assert counter.increment().result(timeout=60) == 2
        assert counter.n == 2


async def test_actors_asynchronous(aclient: Client) -> None:
    counter = await aclient.submit(Counter, actor=True)
    assert await counter.increment() == 1
    assert await counter.n == 1
    assert await asyncio.gather(*(counter.increment() for _ in range(5))) == [2, 3, 4, 5, 6]
