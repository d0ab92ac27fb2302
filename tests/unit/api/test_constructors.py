"""What constructors of clusters, schedulers and workers take besides the usual, and what users find in these."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from daskfleet import Adaptive, Client, LocalCluster, Scheduler, Security, SpecCluster, Worker, wait
from daskfleet.deploy.status import Status
from daskfleet.worker.lifetime import Lifetime

from tests.eventual import until

OPTIONS = {"threads_per_worker": 1, "dashboard_address": None}


def test_the_workers_of_a_local_cluster(cluster: LocalCluster, client: Client) -> None:
    assert set(cluster.workers) == {"0", "1"} == cluster.plan
    addresses = client.scheduler_info()["workers"]
    for name, worker in cluster.workers.items():
        found = addresses[worker.address]
        assert (worker.name, worker.pid, worker.status) == (name, found["pid"], Status.running)
        assert worker.worker_address == worker.address and worker.address in repr(worker)
    assert cluster.workers[0] is cluster.workers["0"]
    with pytest.raises(KeyError):
        cluster.workers[7]
    assert set(cluster.get_logs(cluster=False)) == {"Scheduler", *addresses}
    killed, before = cluster.workers["1"], cluster.workers["1"].pid
    cluster.sync(killed.kill)
    cluster.sync(until, lambda: killed.pid not in (None, before))
    assert killed.status == "running"


async def test_a_local_cluster_adapts_without_a_dashboard() -> None:
    async with LocalCluster(n_workers=0, processes=False, asynchronous=True, **OPTIONS) as cluster:
        adaptive = cluster.adapt(minimum=0, maximum=2, interval="20 ms", wait_count=1)
        async with Client(cluster, asynchronous=True) as client:
            futures = client.map(lambda x: x + 1, range(4))
            assert await client.gather(futures) == [1, 2, 3, 4]
            del futures
            await until(lambda: not cluster.plan)
        adaptive.stop()
        with pytest.raises(
            TypeError, match=r"Adaptive\(\) takes no every=: it takes interval=, minimum=, .*worker_key="
        ):
            Adaptive(cluster, every=1)


async def test_what_a_worker_holds(aclient: Client) -> None:
    futures = await aclient.scatter({"one": 1, "two": [2]})
    await wait(list(futures.values()))
    held: dict[str, object] = {}
    for data in (await aclient.run(lambda dask_worker: dict(dask_worker.data))).values():
        held |= data
    assert held == {"one": 1, "two": [2]}
    worker = max(aclient.cluster.workers.values(), key=lambda worker: len(worker.data))
    assert "three" not in worker.data and len(worker.data) == len(list(worker.data))
    spilled = worker.stored.oldest(1)
    assert worker.stored.moved(spilled, worker.stored.write(spilled))
    assert all(value == held[key] for key, value in worker.data.items()) and "results: " in repr(worker.data)


async def test_lifetimes() -> None:
    life = {"lifetime": "300 ms", "lifetime_stagger": 0.1}
    options = OPTIONS | life | {"worker_class": "distributed.Nanny", "lifetime_restart": True}
    async with LocalCluster(n_workers=1, asynchronous=True, **options) as cluster:
        renewed, before = cluster.workers["0"], cluster.workers["0"].pid
        await until(lambda: renewed.pid not in (None, before))
        once = await Worker(cluster.scheduler_address, nthreads=1, security=cluster.security, **life)
        assert 0.2 <= once.lifetime.seconds <= 0.4
        await asyncio.wait_for(once.finished(), 90)
        assert not once.renew
    assert renewed.status == "closed"
    drawn = {Lifetime("1 hour", "10 minutes", None).seconds for _ in range(20)}
    assert len(drawn) > 1 and all(3000 <= seconds <= 4200 for seconds in drawn)


async def test_a_spec_cluster_renews_workers_whose_time_is_over() -> None:
    worker = {"cls": Worker, "options": {"nthreads": 1, "lifetime": 0.2, "lifetime_restart": True}}
    async with SpecCluster(workers={"w": worker}, asynchronous=True) as cluster:
        first = cluster.workers["w"]
        await until(lambda: cluster.workers.get("w") not in (None, first))


async def test_a_scheduler_file_and_a_contact_address(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    options = {"host": "127.0.0.1", "port": 0, "dashboard_address": None, "scheduler_file": str(file)}
    async with Scheduler(**options) as scheduler:
        port = json.loads(file.read_text())["address"].rpartition(":")[2]
        assert file.stat().st_mode & 0o77 == 0 and scheduler.security.token
        async with (
            Worker(scheduler_file=str(file), nthreads=1),
            Client(scheduler_file=str(file), asynchronous=True, set_as_default=False) as client,
        ):
            assert await client.submit(os.getpid) == os.getpid()
    async with Scheduler(**options, contact_address="tcp://localhost") as again:
        assert again.address == f"tcp://localhost:{port}" == json.loads(file.read_text())["address"]
        assert again.security.token == scheduler.security.token, "it takes over"
    with pytest.raises(ValueError, match="jupyter needs the dashboard"):
        Scheduler(dashboard=False, jupyter=True)


@pytest.mark.parametrize("protocol", ["tcp", "tcp://", "tls", "tls://", None])
async def test_protocols_as_distributed_spells_them_and_tls_where_there_are_certificates(protocol: str | None) -> None:
    security = Security.temporary() if protocol is None or protocol.startswith("tls") else None
    options = {"n_workers": 1, "processes": False, "protocol": protocol, "security": security}
    async with LocalCluster(asynchronous=True, **OPTIONS, **options) as cluster:
        assert cluster.scheduler_address.startswith("tls://" if security else "tcp://")
        assert all(worker.address.startswith("tls://" if security else "tcp://") for worker in cluster.workers.values())
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(sum, [1, 2]) == 3
    async with Scheduler(port=0, dashboard_address=None, protocol=protocol, security=security) as scheduler:
        assert scheduler.address.startswith("tls://" if security else "tcp://")
