"""scheduler_api.py: which pod a worker runs in, and to whom its data can go."""

from __future__ import annotations

import aiohttp
import pytest
from daskfleet import Client, Scheduler, Security, Worker
from daskfleet_operator.scheduler_api import SchedulerApi, SchedulerError, pods_of
from operator_builders import pod

FIRST, SECOND = pod("w-1", ip="10.0.0.1"), pod("w-2", ip="10.0.0.2")


def test_by_address_whatever_the_worker_is_called() -> None:
    worker = {"name": "named-by-hand", "address": "tcp://10.0.0.2:40001"}
    assert pods_of([worker], [FIRST, SECOND]) == [SECOND]


def test_by_name_when_the_address_says_nothing() -> None:
    assert pods_of([{"name": "w-1", "address": "tls://worker.example:1"}], [FIRST, SECOND]) == [FIRST]


def test_several_workers_of_a_pod_are_one_pod() -> None:
    workers = [{"name": f"w-1-{n}", "address": f"tcp://10.0.0.1:{n}"} for n in range(3)]
    assert pods_of(workers, [FIRST, SECOND]) == [FIRST]


def test_strangers_are_nobodys() -> None:
    assert pods_of([{"name": "x", "address": "tcp://192.0.2.1:1"}], [FIRST, SECOND]) == []


async def test_victims_are_named_among_those_asked_for_alone() -> None:
    async with (
        Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler,
        Worker(scheduler.address, nthreads=1, name="full") as full,
        Worker(scheduler.address, nthreads=1, name="empty"),
        Client(scheduler.address, asynchronous=True, set_as_default=False) as client,
        aiohttp.ClientSession() as session,
    ):
        kept = await client.scatter([bytes(1_000_000)], workers=[full.address])
        api = SchedulerApi(session, f"http://127.0.0.1:{scheduler.dashboard_port}", {})
        both = [pod("full"), pod("empty")]
        assert [victim.name for victim in await api.workers_to_close(1, both)] == ["empty"]
        assert [victim.name for victim in await api.workers_to_close(1, both[:1])] == ["full"]
        del kept


async def test_whether_a_scheduler_takes_the_token() -> None:
    async with aiohttp.ClientSession() as session:
        async with Scheduler(
            host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0", security=Security(token="right")
        ) as scheduler:
            base = f"http://127.0.0.1:{scheduler.dashboard_port}"
            takes = [
                await SchedulerApi(session, base, {"Authorization": f"Bearer {token}"}).takes_token()
                for token in ("right", "wrong")
            ]
            assert takes == [True, False]
        assert await SchedulerApi(session, base, {}).takes_token() is None


async def test_nobody_retires_before_an_heir_has_joined() -> None:
    leaving, heir = pod("leaving"), pod("heir")
    async with (
        Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler,
        Worker(scheduler.address, nthreads=1, name="leaving") as worker,
        Client(scheduler.address, asynchronous=True, set_as_default=False) as client,
        aiohttp.ClientSession() as session,
    ):
        api = SchedulerApi(session, f"http://127.0.0.1:{scheduler.dashboard_port}", {})
        kept = await client.scatter([[1, 2, 3]])
        with pytest.raises(SchedulerError, match="none of the workers that stay has joined yet"):
            await api.retire([leaving], [heir], seconds=10)
        assert worker.status == "running"
        async with Worker(scheduler.address, nthreads=1, name="heir") as other:
            await api.retire([leaving], [heir], seconds=10)
            assert other.address in (await client.who_has(kept))[kept[0].key]
            assert await client.gather(kept) == [[1, 2, 3]]
