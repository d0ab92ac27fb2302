"""A worker with little memory: results go to disk and come back, and it is ended above its limit."""

import asyncio
import os
import threading
import time

import dask
import numpy
import psutil
import pytest
from daskfleet import Client, LocalCluster, Scheduler, Worker, wait
from daskfleet.exceptions import KilledWorker
from daskfleet.worker.memory import resident_memory
from daskfleet.worker.spill import SpillBuffer

from tests.eventual import eventually

LIMIT = 400 << 20
PIECE = 20 << 20


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=LIMIT, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def piece(i):
    return numpy.full(PIECE, i % 251, dtype="u1")


def spilled(dask_worker):
    return dask_worker.stored.disk_bytes, dask_worker.stored.memory_bytes


def test_an_idle_worker_gives_back_what_a_task_has_freed(client):
    def work():
        numpy.ones(2 * PIECE, "u1")
        return os.getpid(), resident_memory()

    pid, kept = client.submit(work, pure=False).result(timeout=180)
    eventually(lambda: psutil.Process(pid).memory_info().rss < kept - PIECE)  # asking the worker would keep it busy


def test_more_results_than_memory(client):
    pieces = client.map(piece, range(30))
    wait(pieces)
    eventually(lambda: next(iter(client.run(spilled).values()))[1] <= 0.6 * LIMIT)
    ((on_disk, _),) = client.run(spilled).values()
    assert on_disk > 5 * PIECE
    assert client.gather(client.map(lambda array: int(array[7]), pieces)) == [i % 251 for i in range(30)]
    assert (client.gather(pieces[0]) == piece(0)).all()
    del pieces
    while client.run(spilled) != dict.fromkeys(client.run(spilled), (0, 0)):
        pass


@pytest.fixture
def only_the_target():
    """For a worker in this process, whose memory is not the worker's alone."""
    with dask.config.set({"distributed.worker.memory.spill": False, "distributed.worker.memory.pause": False}):
        yield


async def test_a_disk_that_is_slow_holds_up_new_tasks_and_nobody_else(monkeypatch, only_the_target):
    """Peers are served, heartbeats go out, and what is being written can be used and freed meanwhile."""
    writing, go_on = threading.Event(), threading.Event()
    write = SpillBuffer.write

    def slow(buffer, rows):
        writing.set()
        assert go_on.wait(60)
        return write(buffer, rows)

    monkeypatch.setattr(SpillBuffer, "write", slow)
    async with (
        Scheduler(port=0, host="127.0.0.1", dashboard_address=None) as scheduler,
        Worker(scheduler.address, nthreads=1, memory_limit=100 << 20) as worker,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        first = client.submit(bytes, 40 << 20)
        await first
        second = client.submit(bytearray, 40 << 20)
        while not writing.is_set():
            await asyncio.sleep(0.01)
        await second
        beats = scheduler.state.workers[worker.address].last_seen
        third = client.submit(len, first)
        assert len(await first) == 40 << 20
        while scheduler.state.workers[worker.address].last_seen == beats:
            await asyncio.sleep(0.01)
        assert third.status == "pending"
        assert worker.stored.memory_bytes == 80 << 20
        go_on.set()
        assert await third == 40 << 20
        assert worker.stored.memory_bytes < 60 << 20
        assert await client.submit(len, second) == 40 << 20
    assert not os.path.exists(worker.local_directory), "the files are gone with their folder"


def test_a_spilled_result_larger_than_the_limit_is_read_without_a_restart(client):
    """Pages of its file are the system's to take back: they are not the worker's memory."""
    deaths = client.run(os.getpid)
    large = client.submit(numpy.zeros, LIMIT + PIECE, "u1", pure=False)  # never touched: made in no memory
    wait(large, timeout=180)
    assert client.submit(lambda data: int(data[:: 1 << 12].sum()), large).result(timeout=180) == 0
    value = large.result(timeout=180)
    assert len(value) == LIMIT + PIECE and not value[:: 1 << 12].any()
    client.submit(time.sleep, 0.5).result(timeout=180)  # longer than it takes to be looked at
    assert client.run(os.getpid) == deaths


def test_a_task_that_returns_more_than_its_worker_may_have_is_named_and_others_go_on(client):
    """Four gigabytes where a gigabyte is allowed, on a smaller scale; another client's tasks all finish."""
    with Client(client.cluster, set_as_default=False) as other:
        slow = other.map(lambda i: time.sleep(0.01) or i, range(200))
        greedy = client.submit(lambda: numpy.ones(4 * LIMIT, "u1"), key="greedy")
        with pytest.raises(KilledWorker, match=r"'greedy' was running on 4 workers .* Does it need more memory"):
            greedy.result(timeout=180)
        assert other.gather(slow) == list(range(200))
        assert client.submit(sum, [1, 2]).result(timeout=180) == 3
