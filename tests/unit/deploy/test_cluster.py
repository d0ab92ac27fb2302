"""What all cluster managers share, on a real LocalCluster."""

import asyncio
import gc
import socket
import time
import weakref

import pytest
from daskfleet import Client, LocalCluster, Worker
from daskfleet.deploy.adaptive import Adaptive, clamp
from daskfleet.deploy.cluster import Log, Logs
from daskfleet.exceptions import DaskfleetError

from tests.eventual import eventually

SMALL = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}


def test_blocking_use():
    with LocalCluster(**SMALL) as cluster:
        assert cluster.status == "running"
        assert len(cluster.scheduler_info["workers"]) == len(cluster.observed) == 1
        assert cluster.dashboard_link.startswith("http://") and cluster.dashboard_link.endswith("/status")
        cluster.scale(2)
        cluster.wait_for_workers(2, timeout=60)
        with cluster.get_client() as client:
            assert client.submit(sum, [1, 2]).result() == 3
        assert "workers=2" in repr(cluster) and cluster.scheduler_address in cluster._repr_html_()
    assert cluster.status == "closed"
    cluster.close()  # a second time is no error


def test_workers_that_a_client_has_retired_are_replaced_when_it_scales():
    with LocalCluster(**SMALL) as cluster, cluster.get_client() as client:
        client.retire_workers(list(client.nthreads()))
        assert not cluster.plan
        cluster.scale(1)
        cluster.wait_for_workers(1, timeout=60)
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3


async def test_asynchronous_use():
    async with LocalCluster(**SMALL, asynchronous=True) as cluster:
        await cluster.scale(2)
        await cluster.wait_for_workers(2, timeout=60)
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(sum, [1, 2]) == 3
        assert len(cluster.scheduler_info["workers"]) == 2
    assert cluster.status == "closed"


async def test_awaiting_starts_once():
    cluster = LocalCluster(**SMALL, asynchronous=True)
    assert cluster.status == "created"
    first, second = await asyncio.gather(cluster, cluster)
    assert first is second is cluster and cluster.status == "running"
    await cluster.close()
    with pytest.raises(RuntimeError, match="is closed: make a new one"):
        await cluster


def test_with_needs_async_with_when_asynchronous():
    with pytest.raises(TypeError, match="async with"), LocalCluster(**SMALL, asynchronous=True):
        pass


def test_a_cluster_that_does_not_start_says_why(monkeypatch):
    with monkeypatch.context() as without_python, pytest.raises(DaskfleetError, match="workers ended with status 1"):
        without_python.setattr("daskfleet.deploy.local.sys.executable", "/bin/false")
        LocalCluster(**SMALL | {"processes": True})
    monkeypatch.setattr("daskfleet.deploy.local.TIMEOUT", 0.0)
    with pytest.raises(TimeoutError, match="0 of 1 workers have started, and no other for 0 s: is"):
        LocalCluster(**SMALL | {"processes": True})


def test_workers_that_do_not_come_end_the_wait_with_numbers():
    with (
        LocalCluster(**SMALL) as cluster,
        pytest.raises(TimeoutError, match=r"1 of 3 workers after 0\.2 s"),
    ):
        cluster.wait_for_workers(3, timeout=0.2)


@pytest.mark.parametrize("processes", [True, False])
def test_workers_of_a_class_of_the_users(processes):
    class Labelled(Worker):
        label = "mine"

    options = SMALL | {"processes": processes, "worker_dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options, worker_class=Labelled) as cluster, cluster.get_client() as client:
        assert list(client.run(lambda dask_worker: dask_worker.label).values()) == ["mine"]
        (worker,) = client.scheduler_info()["workers"].values()
        assert worker["services"]["dashboard"]
    with pytest.raises(ValueError, match="expected a subclass of"):
        LocalCluster(**options, worker_class=int)


def test_a_dropped_cluster_closes_itself():
    cluster = LocalCluster(**SMALL)
    host, _, port = cluster.scheduler_address.removeprefix("tcp://").partition(":")
    gone = weakref.ref(cluster)
    del cluster
    gc.collect()

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    eventually(lambda: gone() is None and not listens())


def test_adapt_follows_the_load_within_its_bounds():
    with LocalCluster(**SMALL) as cluster, cluster.get_client() as client:
        adaptive = cluster.adapt(minimum=0, maximum=3, interval=0.05, wait_count=2, target_duration=0.1)
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 0)
        futures = client.map(time.sleep, [0.5 + i / 1000 for i in range(12)])
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 3)
        client.gather(futures)
        del futures
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 0)
        adaptive.stop()
        cluster.scale(1)
        cluster.wait_for_workers(1, timeout=60)


async def test_adapting_recommends_and_follows():
    async with LocalCluster(**SMALL, asynchronous=True) as cluster:
        adaptive = Adaptive(cluster, minimum=0, maximum=4, wait_count=2, interval="1s", worker_key=str)
        have = len(cluster.plan)
        assert await adaptive.recommendations(have + 2) == {"status": "up", "n": have + 2}
        assert await adaptive.recommendations(have) == {"status": "same"}
        assert await adaptive.recommendations(0) == {"status": "same"}  # for the first time
        assert await adaptive.recommendations(0) == {"status": "down", "workers": sorted(cluster.plan)}


async def test_adapting_goes_on_after_an_error_and_ends_what_it_has_begun_when_it_is_stopped(caplog):
    asked, begun = asyncio.Event(), asyncio.Event()

    class Mine(Adaptive):
        async def target(self) -> int:
            if not asked.is_set():
                asked.set()
                raise ValueError("not now")
            return 0

        async def scale_down(self, workers: list[str]) -> None:
            begun.set()
            await asyncio.sleep(0.05)
            await super().scale_down(workers)

    async with LocalCluster(**SMALL, asynchronous=True) as cluster, asyncio.timeout(90):
        adaptive = cluster.adapt(0, 1, Adaptive=Mine, interval=0.02, wait_count=1)
        await begun.wait()
        adaptive.stop()
        while cluster.observed:
            await asyncio.sleep(0.01)
            await cluster._refresh()
        assert "adapting failed, and is tried again in 0.02 s" in caplog.text and "not now" in caplog.text


def test_adapt_refuses_bounds_that_contradict():
    with LocalCluster(**SMALL) as cluster, pytest.raises(ValueError, match="minimum=3, maximum=2"):
        cluster.adapt(minimum=3, maximum=2)


@pytest.mark.parametrize(("target", "expected"), [(-1, 1), (0, 1), (2, 2), (9, 4)])
def test_clamp(target, expected):
    assert clamp(target, 1, 4) == expected


def test_logs_show_as_text_and_as_html():
    logs = Logs(a=Log("one <1>"), b=Log("two"))
    assert repr(logs) == "==> a <==\none <1>\n\n==> b <==\ntwo"
    assert "&lt;1&gt;" in logs._repr_html_()
