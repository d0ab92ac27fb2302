"""The active memory manager: `Client.amm`, its policies and settings."""

from __future__ import annotations

import time

import dask
import numpy as np
from daskfleet import Client, Scheduler, wait
from daskfleet.scheduler.active_memory import ActiveMemoryManagerPolicy, ReduceReplicas

from tests.eventual import eventually


def copied(client: Client):
    """Data that a task has needed on another worker: there are two copies now."""
    first, second = client.nthreads()
    data = client.submit(np.ones, 5000, workers=[first], pure=False)
    wait(client.submit(len, data, workers=[second], pure=False), timeout=90)
    assert set(client.who_has(data)[data.key]) == {first, second}
    return data


def test_copies_that_nothing_needs_are_dropped(client: Client) -> None:
    client.amm.stop()
    assert client.amm.running() is False
    data = copied(client)
    kept = client.scatter(np.arange(3000), broadcast=True)
    asked_for = client.submit(np.zeros, 4000, pure=False)
    client.replicate(asked_for, n=2)
    client.amm.run_once()
    holders = client.who_has([data, kept, asked_for])
    assert [len(holders[future.key]) for future in (data, kept, asked_for)] == [1, 2, 2]
    assert client.submit(sum, data, pure=False).result(timeout=90) == 5000
    data = copied(client)
    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler.extensions["amm"], "interval", 0.05))
    assert client.amm.start() is True
    eventually(lambda: len(client.who_has(data)[data.key]) < 2)


def test_a_copy_stays_where_a_task_uses_it(client: Client) -> None:
    client.amm.stop()
    data = copied(client)
    both = list(client.nthreads())
    slow = [client.submit(lambda x: time.sleep(1), data, workers=[address], pure=False) for address in both]
    while sum(map(len, client.processing().values())) < 2:
        time.sleep(0.01)
    client.amm.run_once()
    assert len(client.who_has(data)[data.key]) == 2
    wait(slow, timeout=90)
    client.amm.run_once()
    assert len(client.who_has(data)[data.key]) == 1


class Everywhere(ActiveMemoryManagerPolicy):
    """Copies all data to all workers."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def run(self):
        for ts in list(self.manager.state.tasks.values()):
            if ts.prefix.name == self.prefix:
                while (yield "replicate", ts, None) is not None:
                    pass


async def test_asynchronous(aclient: Client) -> None:
    assert await aclient.amm.running() is True
    assert await aclient.amm.stop() is False

    def add(dask_scheduler):
        dask_scheduler.extensions["amm"].add_policy(Everywhere("zeros"))

    await aclient.run_on_scheduler(add)
    data = aclient.submit(np.zeros, 5000, pure=False)
    await wait(data)
    await aclient.amm.run_once()
    for _ in range(1000):
        if len((await aclient.who_has(data))[data.key]) == 2:
            break
        await aclient.amm.running()
    assert len((await aclient.who_has(data))[data.key]) == 2
    assert await aclient.amm.start() is True


def test_settings() -> None:
    settings = {
        "distributed.scheduler.active-memory-manager": {
            "start": False,
            "interval": "3 s",
            "policies": [
                {"class": "distributed.active_memory_manager.ReduceReplicas"},
                {"class": f"{__name__}.Everywhere", "prefix": "x"},
            ],
        }
    }
    with dask.config.set(settings):
        amm = Scheduler(port=0, dashboard_address=None).extensions["amm"]
    assert (amm.interval, amm.running) == (3.0, False)
    one, other = amm.manager.policies
    assert type(one) is ReduceReplicas and (type(other).__name__, other.prefix) == ("Everywhere", "x")
