"""A worker with little memory: results go to disk and come back, and it is ended above its limit."""

import os

import numpy
import psutil
import pytest
from daskfleet import Client, LocalCluster, wait
from daskfleet.exceptions import KilledWorker
from daskfleet.worker.memory import resident_memory

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

    pid, kept = client.submit(work, pure=False).result(timeout=60)
    eventually(lambda: psutil.Process(pid).memory_info().rss < kept - PIECE)  # asking the worker would keep it busy


def test_more_results_than_memory(client):
    pieces = client.map(piece, range(30))
    wait(pieces)
    ((on_disk, in_memory),) = client.run(spilled).values()
    assert on_disk > 5 * PIECE
    assert in_memory <= 0.6 * LIMIT
    assert client.gather(client.map(lambda array: int(array[7]), pieces)) == [i % 251 for i in range(30)]
    assert (client.gather(pieces[0]) == piece(0)).all()
    del pieces
    while client.run(spilled) != dict.fromkeys(client.run(spilled), (0, 0)):
        pass


def test_a_task_that_eats_all_memory_is_named_and_others_go_on(client):
    greedy = client.submit(lambda: len(bytearray(2 * LIMIT).replace(b"\0", b"x")), key="greedy")
    with pytest.raises(KilledWorker, match="greedy"):
        greedy.result(timeout=60)
    assert client.submit(sum, [1, 2]).result(timeout=60) == 3
