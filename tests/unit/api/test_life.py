"""A client's life: how it is made, waits, retires workers, shuts down and closes."""

from __future__ import annotations

import pytest
from daskfleet import CancelledError, Client, LocalCluster
from daskfleet.exceptions import DaskfleetError

from tests.eventual import eventually


def test_a_client_of_its_own_cluster() -> None:
    with Client(n_workers=1, threads_per_worker=1, dashboard_address=None, set_as_default=False) as client:
        assert client.start() is client
        assert client.submit(int, 2).result(timeout=60) == 2
        assert client.dashboard_link == "" and client.scheduler_address in repr(client)
        future = client.submit(int, 3)
    client.close()
    assert client.status == "closed" and "closed" in repr(client)
    with pytest.raises((CancelledError, DaskfleetError)):
        client.submit(int, 4)
    assert future.status in ("finished", "cancelled")


def test_unknown_arguments(cluster: LocalCluster) -> None:
    with pytest.raises(TypeError, match="takes no n_wrokers= when it connects to a cluster that is there"):
        Client(cluster, n_wrokers=3)
    with Client(cluster, heartbeat_interval="5s", connection_limit=9, set_as_default=False) as client:  # distributed's
        assert client.submit(int, 2).result(timeout=60) == 2


def test_wait_for_workers(client: Client) -> None:
    client.wait_for_workers(2)
    with pytest.raises(TimeoutError, match=r"only 2 of 5 workers were there within 0\.05 s"):
        client.wait_for_workers(5, timeout="50ms")


def test_retire_and_shutdown() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        client = Client(cluster, set_as_default=False)
        first, second = sorted(client.nthreads())
        kept = client.map(lambda i: [i], range(10), workers=[first], pure=False)
        client.gather(kept)
        assert list(client.retire_workers([first])) == [first]
        eventually(lambda: first not in client.nthreads())
        assert set(client.nthreads()) == {second}
        assert client.gather(kept) == [[i] for i in range(10)]
        client.shutdown()
        assert client.status == "closed" and cluster.status == "closed"


async def test_asynchronous_life() -> None:
    async with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, asynchronous=True
    ) as cluster:
        client = await Client(cluster, asynchronous=True, set_as_default=False)
        assert await client.start() is client
        with pytest.raises(TypeError, match="async with"):
            client.__enter__()
        await client.wait_for_workers(2, timeout=60)
        address = next(iter(await client.nthreads()))
        assert list(await client.retire_workers([address])) == [address]
        await client.close()
        await client.close()
        assert client.status == "closed"


def test_an_empty_list_of_workers_retires_nobody() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        assert client.retire_workers([]) == {}
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
