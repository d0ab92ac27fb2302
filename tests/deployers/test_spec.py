"""SpecCluster as its users write it: classes and options, scaling by number, cores and memory, groups, names."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from daskfleet import Client, Scheduler, Worker
from daskfleet.deploy import registry
from daskfleet.deploy.spec import ProcessInterface, SpecCluster
from daskfleet.exceptions import DaskfleetError

SMALL = {"cls": Worker, "options": {"nthreads": 1, "memory_limit": "1GB", "host": "127.0.0.1"}}
SCHEDULER = {"cls": Scheduler, "options": {"port": 0, "host": "127.0.0.1", "dashboard_address": None}}


class Group(ProcessInterface):
    """Two workers that come and go together."""

    def __init__(self, scheduler: str, name: object = None, security: object = None) -> None:
        super().__init__(scheduler, name)
        self._workers = [Worker(scheduler, name=f"{name}{end}", nthreads=1, security=security) for end in ("-a", "-b")]

    async def start(self) -> None:
        for worker in self._workers:
            await worker
        await super().start()

    async def close(self) -> None:
        for worker in self._workers:
            await worker.close()
        await super().close()


class Broken(ProcessInterface):
    """Starts, and dies at once."""

    async def start(self) -> None:
        await super().start()
        self.failure = "the disk is full"
        self._ended.set()


def test_every_manager_is_one_and_its_processes_have_one_interface() -> None:
    from daskfleet import MPICluster, SSHCluster, SubprocessCluster
    from daskfleet.deploy import jobqueue
    from daskfleet.deploy.jobqueue.job import Job, SchedulerJob
    from daskfleet.deploy.mpi.cluster import Launch
    from daskfleet.deploy.session import Session

    queues = [getattr(jobqueue, name) for name in jobqueue.__all__]
    assert all(issubclass(cls, SpecCluster) for cls in (MPICluster, SSHCluster, SubprocessCluster, *queues))
    assert all(issubclass(cls, ProcessInterface) for cls in (Job, Launch, SchedulerJob, Session))


async def test_two_kinds_of_workers_by_name() -> None:
    workers = {"small": SMALL, "big": {"cls": Worker, "options": {"nthreads": 3, "host": "127.0.0.1"}}}
    async with (
        SpecCluster(workers=workers, scheduler=SCHEDULER, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        assert await client.submit(sum, [1, 2]) == 3
        threads = {w["name"]: w["nthreads"] for w in cluster._info["workers"].values()}
        assert threads == {"small": 1, "big": 3}
        assert cluster.plan == cluster.requested == cluster.observed == {"small", "big"}
        with pytest.raises(ValueError, match="without worker="):
            await cluster.scale(5)


async def test_the_token_is_needed() -> None:
    from daskfleet import Security

    async with SpecCluster(workers={0: SMALL}, scheduler=SCHEDULER, asynchronous=True) as cluster:
        with pytest.raises(Exception, match="token"):
            await Client(cluster.scheduler_address, security=Security(token="0" * 64), asynchronous=True)


def test_scale_by_number_cores_and_memory() -> None:
    with SpecCluster(worker=SMALL, scheduler=SCHEDULER) as cluster:
        cluster.scale(2)
        cluster.wait_for_workers(2, timeout=90)
        cluster.scale(cores=3)
        cluster.wait_for_workers(3, timeout=90)
        assert len(cluster.plan) == 3
        cluster.scale(memory="4GB")
        cluster.wait_for_workers(4, timeout=90)
        with pytest.raises(ValueError, match="fewer than 0"):
            cluster.scale(-1)
        with pytest.raises(ValueError, match="say how many"):
            cluster.scale()


def test_scale_down_keeps_the_data(eventually) -> None:
    with SpecCluster(worker=SMALL, scheduler=SCHEDULER) as cluster, Client(cluster) as client:
        cluster.scale(3)
        cluster.wait_for_workers(3, timeout=90)
        futures = client.map(lambda i: "x" * 100_000 + str(i), range(12))
        client.gather(futures)
        cluster.scale(1)
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 1)
        assert [value[100_000:] for value in client.gather(futures)] == [str(i) for i in range(12)]
        before = cluster.plan
        cluster.scale_up(1)
        assert cluster.plan == before
        cluster.scale_down(before)
        eventually(lambda: not cluster.scheduler_info["workers"])


def test_groups_count_as_their_workers(eventually) -> None:
    worker = {"cls": Group, "options": {}, "group": ["-a", "-b"]}
    with SpecCluster(worker=worker, scheduler=SCHEDULER) as cluster:
        cluster.scale(3)
        cluster.wait_for_workers(4, timeout=90)
        assert cluster.plan == {"0-a", "0-b", "1-a", "1-b"} == cluster.observed
        cluster.scale(2)
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 2)
        assert len({name[0] for name in cluster.observed}) == 1, "a group goes as a whole"
        first, second = cluster.observed
        with Client(cluster) as client:
            client.retire_workers([first])
            cluster.scale(4)
            eventually(lambda: cluster.scheduler_info and cluster.observed == {second, "2-a", "2-b"})
            assert cluster.plan == {first, second, "2-a", "2-b"}, "half a group is one that there is"
            client.retire_workers(["2-a", "2-b"])
            assert cluster.plan == {first, second}


async def test_what_a_client_has_retired_counts_no_more_though_it_takes_a_while_to_end() -> None:
    ended = asyncio.Event()

    class Lingering(Worker):
        async def finished(self) -> None:
            await super().finished()
            await ended.wait()

    async with (
        SpecCluster(worker={**SMALL, "cls": Lingering}, scheduler=SCHEDULER, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await cluster.scale(2)
        await cluster.wait_for_workers(2, timeout=90)
        await client.retire_workers(["0"])
        assert cluster.plan == {"1"}
        await cluster.scale(2)
        async with asyncio.timeout(90):
            while {worker["name"] for worker in cluster.scheduler_info["workers"].values()} != {"1", "2"}:
                await asyncio.sleep(0.02)
                await cluster._refresh()
        ended.set()
        assert cluster.plan == {"1", "2"} == cluster.requested


def test_nannies_in_a_blocking_program(eventually) -> None:
    worker = {"cls": "dask.distributed.Nanny", "options": {"nthreads": 1, "host": "127.0.0.1"}}
    with SpecCluster(workers={"only": worker}, scheduler=SCHEDULER) as cluster, Client(cluster) as client:
        (pid,) = client.run(os.getpid).values()
        assert pid != os.getpid()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: {w["pid"] for w in cluster.scheduler_info["workers"].values()} - {pid})
        assert client.submit(os.getpid).result() != pid


def test_a_worker_that_always_dies_is_told_about() -> None:
    with SpecCluster(worker={"cls": Broken}, scheduler=SCHEDULER) as cluster:
        cluster.scale(1)
        with pytest.raises(DaskfleetError, match=r"failed: 3.*the disk is full"):
            cluster.wait_for_workers(1, timeout=180)
        assert "the disk is full" in cluster.get_logs()["Cluster"]


def test_a_worker_that_cannot_start_is_an_error_at_once() -> None:
    class Refused(ProcessInterface):
        async def start(self) -> None:
            raise DaskfleetError("no such account")

    with pytest.raises(DaskfleetError, match="no such account"):
        SpecCluster(workers={0: {"cls": Refused}}, scheduler=SCHEDULER)
    with pytest.raises(ValueError, match="nosuch"):
        SpecCluster(workers={0: {"cls": "nosuch.Thing"}}, scheduler=SCHEDULER)


def test_adapt_follows_the_load_and_counts_what_is_pending(eventually) -> None:
    import time

    with SpecCluster(worker=SMALL, scheduler=SCHEDULER) as cluster, Client(cluster) as client:
        cluster.adapt(maximum_cores=2, interval=0.1)
        futures = client.map(time.sleep, [0.3] * 20, pure=False)
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 2)
        client.gather(futures)
        assert len(cluster.plan) <= 2
        del futures
        eventually(lambda: not cluster.scheduler_info["workers"])
        assert client.submit(sum, [2, 3]).result() == 5
        cluster.adapt(minimum=1, maximum=1, interval=0.1)
        eventually(lambda: len(cluster.plan) == 1)


PROGRAM = """
import sys
from daskfleet import Scheduler, Worker
from daskfleet.deploy.spec import SpecCluster
cluster = SpecCluster(
    workers={0: {"cls": Worker, "options": {"nthreads": 1, "host": "127.0.0.1"}}},
    scheduler={"cls": Scheduler, "options": {"port": 0, "host": "127.0.0.1"}},
    name="shared",
)
print("up", flush=True)
sys.stdin.read()
cluster.close()
"""


def elsewhere() -> subprocess.Popen[str]:
    """A process with the cluster ``shared``, which ends with its standard input."""
    command = [sys.executable, "-c", PROGRAM]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "up\n"
    return other


async def test_clusters_are_discovered(state_home) -> None:
    import importlib.metadata

    async def found() -> dict[str, type]:
        return {name: cls async for name, cls in registry.discover()}

    entry = importlib.metadata.EntryPoint("daskfleet", "daskfleet.deploy.registry:discover", "dask_cluster_discovery")
    assert entry.load() is registry.discover
    other = elsewhere()
    async with SpecCluster(workers={0: SMALL}, scheduler=SCHEDULER, name="here", asynchronous=True):
        assert await found() == {"here": SpecCluster, "shared": SpecCluster}
        other.kill()
        other.wait()
        with pytest.raises(DaskfleetError, match=r"cluster 'shared', made on .*, does not answer"):
            await SpecCluster.from_name("shared", asynchronous=True)
        assert await found() == {"here": SpecCluster}
        assert [entry.name for entry in registry.entries()] == ["here"], "what is dead is forgotten"


def test_from_name_finds_the_cluster_of_another_process(state_home) -> None:
    other = elsewhere()
    try:
        with SpecCluster.from_name("shared") as cluster, Client(cluster) as client:
            assert client.submit(sum, [1, 2, 3]).result() == 6
            assert cluster.observed == {"0"}
        with SpecCluster.from_name("shared") as cluster:  # the first did not end it
            assert len(cluster.scheduler_info["workers"]) == 1
        (file,) = (state_home / "daskfleet" / "clusters").iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
    finally:
        other.communicate("")
    assert registry.entries() == []
    with pytest.raises(ValueError, match="no cluster is called 'shared'"):
        SpecCluster.from_name("shared")
