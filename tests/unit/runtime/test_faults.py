"""Faults of graphs, clients, disks and clocks, and tasks that go too far: what is said, and that the others go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
from dask._task_spec import Task, TaskRef
from daskfleet import CancelledError, Client, LocalCluster, Scheduler, Worker, wait
from daskfleet.protocol.frames import ProtocolError

from tests.eventual import eventually

MEGABYTE = 1 << 20


def increment(x: int) -> int:
    return x + 1


def still_works(client: Client) -> bool:
    return client.submit(sum, [1, 2], pure=False).result(timeout=180) == 3


# Graphs and keys ---------------------------------------------------------------------------------------------------


def test_a_graph_with_a_cycle_names_it(client: Client) -> None:
    graph = {"a": (increment, "b"), "b": (increment, "c"), "c": (increment, "a")}
    with pytest.raises(RuntimeError, match=r"Cycle detected(.|\n)*a(.|\n)*b(.|\n)*c"):
        client.get(graph, "c")
    assert still_works(client)


def test_a_graph_without_a_key_that_it_needs_names_it(client: Client) -> None:
    graph = {"a": Task("a", increment, TaskRef("nosuch")), "b": Task("b", increment, TaskRef("a")), "c": 1}
    with pytest.raises(CancelledError, match=r"'a': its input 'nosuch' is neither in the graph nor on the cluster"):
        client.get(graph, "a")
    with pytest.raises(CancelledError, match="'b': "):
        client.get(graph, "b")
    with pytest.raises(KeyError, match="the graph has no task for 'd'"):
        client.get(graph, "d")
    assert client.get(graph, "c") == 1 and still_works(client)


def test_gather_says_why_there_is_no_result(client: Client) -> None:
    future = client.submit(increment, 1, pure=False)
    client.cancel(future, reason="no longer needed")
    with pytest.raises(CancelledError, match="no longer needed"):
        client.gather([future])


def test_a_key_used_twice_is_told_and_stands_for_the_first_work(client: Client, cluster: LocalCluster) -> None:
    first = client.submit(increment, 1, key="mine")
    same = client.submit(increment, 1, key="mine")
    with pytest.warns(UserWarning, match="the key 'mine' stands for other work already"):
        other_function = client.submit(abs, 1, key="mine")
    with pytest.warns(UserWarning, match="choose another key"):
        other_argument = client.submit(increment, 5, key="mine")
    with Client(cluster, set_as_default=False) as second:
        other_client = second.submit(abs, -7, key="mine")
        found = [future.result(timeout=180) for future in (first, same, other_function, other_argument, other_client)]
        assert found == [2] * 5
        del other_client
    del first, same, other_function, other_argument
    assert client.submit(abs, -9, key="mine").result(timeout=180) == 9, "nobody holds it: it is free for other work"
    futures = client.map(abs, [-1, -2], key=["one", "two"])
    assert client.gather(futures) == [1, 2]
    del futures
    assert client.gather(client.map(increment, [1, 2], key=["one", "two"])) == [2, 3]


# What tasks do -----------------------------------------------------------------------------------------------------

PRINTING = """
import resource
import sys
from daskfleet import Client, LocalCluster

def prints(end):
    piece = "x" * (1 << 20) + end
    for _ in range({megabytes}):
        sys.stdout.write(piece)
    sys.stdout.flush()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

if __name__ == "__main__":
    with LocalCluster(1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        for end in ("\\n", ""):
            client.submit(prints, end, pure=False).result(timeout=180)
        for most in (*client.run(peak).values(), *client.run(peak, nanny=True).values()):
            assert most < 250 << 20, most
        client.submit(print, "the end", flush=True).result(timeout=180)
"""


def test_a_task_that_prints_a_gigabyte_is_neither_stuck_nor_kept(tmp_path: Path) -> None:
    """Half of it in lines, half without an end of a line; it goes where this process prints to."""
    (tmp_path / "printing.py").write_text(PRINTING.format(megabytes=500))
    with (tmp_path / "errors").open("w+") as errors:
        program = subprocess.Popen(
            [sys.executable, str(tmp_path / "printing.py")], stdout=subprocess.PIPE, stderr=errors
        )
        assert program.stdout is not None
        total, tail = 0, b""
        while piece := program.stdout.read(MEGABYTE):
            total, tail = total + len(piece), (tail + piece)[-100:]
        assert program.wait(60) == 0, errors.seek(0) or errors.read()
    assert total > 1000 * MEGABYTE and tail.endswith(b"the end\n")


@pytest.mark.timeout(1200)  # what moves 4 GB twice is as quick as the machine's other work lets it be
def test_a_result_of_more_than_four_gigabytes_moves_and_arrives_whole(client: Client) -> None:
    """Over what 32 bits count, in one piece; and from worker to worker over what the system copies at a time."""
    size, most_at_a_time = (1 << 32) + 4096, 1 << 31

    def large(size: int) -> numpy.ndarray:
        data = numpy.zeros(size, "u1")  # never touched: pages of zeros cost nothing
        data[0], data[-1] = 1, 2
        return data

    def ends(data: numpy.ndarray) -> tuple[int, int, int]:
        return len(data), int(data[0]), int(data[-1])

    smallest = min(info["memory_limit"] for info in client.scheduler_info()["workers"].values())
    if psutil.virtual_memory().available < 4 * size or smallest < 2 * size:
        pytest.skip(f"needs {4 * size >> 30} GiB of free memory, and workers that may have {2 * size >> 30}")
    here, there = client.scheduler_info()["workers"]
    future = client.submit(large, size, workers=[here], pure=False)
    assert ends(future.result(timeout=600)) == (size, 1, 2)  # and gone again before the next copy is made
    del future
    size = most_at_a_time + 4096
    future = client.submit(large, size, workers=[here], pure=False)
    assert client.submit(ends, future, workers=[there]).result(timeout=600) == (size, 1, 2)
    del future
    assert still_works(client)


def of_a_module_that_is_only_there(name: str) -> type:
    """A class of a module that the client cannot import."""
    import types

    module = types.ModuleType("only_there")
    exec("class Trouble(Exception):\n    pass\n\n\nclass Value:\n    pass\n", module.__dict__)
    sys.modules["only_there"] = module
    found: type = getattr(module, name)
    return found


def test_results_and_exceptions_that_cannot_be_read_here_name_what_is_missing(client: Client) -> None:
    make = of_a_module_that_is_only_there

    def fail(make: Callable[[str], type]) -> None:
        raise make("Trouble")("from afar")

    with pytest.raises(
        Exception, match=r"task 'fail-\w+' failed with an exception that cannot be read here: No module"
    ):
        client.submit(fail, make).result(timeout=180)
    future = client.submit(lambda make: make("Value")(), make)
    for read in (future.result, lambda: client.gather([future])):
        with pytest.raises(ModuleNotFoundError, match="No module named 'only_there'"):
            read()
    assert still_works(client)


# Clients -----------------------------------------------------------------------------------------------------------

SUBMITTING = """
import sys
from daskfleet import Client, Security
client = Client(sys.argv[1], security=Security(token=sys.argv[2]))
futures = []
while True:
    futures.append(client.map(lambda i: i, range(2000), pure=False))
    futures.append(client.scatter(bytes(10_000_000), hash=False))
    print(len(futures), flush=True)
"""


def test_a_client_that_dies_in_the_middle_of_a_submit_takes_nothing_with_it(
    cluster: LocalCluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daskfleet.scheduler.peers.CLIENT_GRACE", 0.1)
    scheduler = cluster.scheduler
    ours = client.map(increment, range(200), pure=False)
    wait(ours, timeout=180)
    for _ in range(2):
        command = [sys.executable, "-c", SUBMITTING, cluster.scheduler_address, cluster.security.token]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None and other.stdout.readline()
            more = client.map(increment, range(100), pure=False)
            time.sleep(0.05)
            other.kill()
        assert client.gather(more) == list(range(1, 101))
    del more
    assert client.gather(ours) == list(range(1, 201))
    eventually(lambda: len(scheduler.state.clients) == 1)
    eventually(lambda: len(scheduler.state.tasks) == len(ours))
    eventually(lambda: not any(client.run(lambda dask_worker: len(dask_worker.machine.data) > 200).values()))


# Disks -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[str | None]:
    """A file system of this size there; None where none may be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield str(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def limit_files(megabytes: int) -> None:
    """No file of this process may grow larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes * MEGABYTE, resource.RLIM_INFINITY))


def test_a_full_disk_under_spill_costs_memory_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def piece(i: int) -> bytes:
        return bytes([i]) * (10 * MEGABYTE)

    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__MEMORY__TARGET", "0.2")  # 80 of 400 MB
    options = {"threads_per_worker": 1, "memory_limit": 400 * MEGABYTE, "dashboard_address": None}
    with (
        small_disk(tmp_path, 30) as folder,
        LocalCluster(1, **options, local_directory=folder or str(tmp_path)) as cluster,
        Client(cluster) as client,
    ):
        if folder is None:
            client.run(limit_files, 5)
        pieces = client.map(piece, range(16))  # half of which should go to the disk, where there is no room for them
        wait(pieces, timeout=180)
        said, stored = _spilled(client)
        assert any("cannot spill to" in line and "what is in memory stays there" in line for line in said)
        assert stored >= 160 * MEGABYTE
        assert [value[0] for value in client.gather(pieces)] == list(range(16))
        del pieces
        assert still_works(client)


def _spilled(client: Client) -> tuple[list[str], int]:
    ((lines),) = client.get_worker_logs().values()
    (stored,) = client.run(lambda dask_worker: dask_worker.stored.disk_bytes + dask_worker.stored.memory_bytes).values()
    return [line for _, line in lines], stored


async def test_users_are_told_when_all_workers_are_too_full_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskfleet.scheduler.server.FULL", 0.2)
    async with (
        Scheduler(port=0, host="127.0.0.1", dashboard_address=None) as scheduler,
        Worker(scheduler.address, nthreads=1, memory_limit=0) as worker,
        Client(scheduler.address, asynchronous=True, set_as_default=False) as client,
    ):
        said: asyncio.Queue[str] = asyncio.Queue()

        async def hear(event: tuple[float, Any]) -> None:
            said.put_nowait(event[1][1])

        client.subscribe_topic("warn", hear)
        worker.machine.paused = True
        worker._scheduler.send(("status", "paused"))
        future = client.submit(increment, 1)
        assert "1 tasks wait, and all workers have paused" in await asyncio.wait_for(said.get(), 180)
        worker.machine.paused = False
        worker._scheduler.send(("status", "running"))
        assert await asyncio.wait_for(future.result(), 180) == 2


# Versions ----------------------------------------------------------------------------------------------------------


async def test_a_worker_and_a_client_of_another_version_are_told_and_the_others_go_on(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, address = scheduler
    with monkeypatch.context() as patch:
        patch.setattr("daskfleet.protocol.handshake.VERSION", 2)
        why = f"^{address}: the peer speaks version 1 of the protocol, this is version 2: install the same daskfleet"
        with pytest.raises(ProtocolError, match=why):
            await Worker(address)
        with pytest.raises(ProtocolError, match=why):
            await Client(address, asynchronous=True)
    assert "dropped a connection" in process.says("speaks version 2 of the protocol, this is version 1")
    async with Worker(address, nthreads=1), Client(address, asynchronous=True) as client:
        assert await client.submit(increment, 1) == 2


# Clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
async def test_a_clock_that_jumps_ends_nothing(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Timeouts, the idle timeout and the workers' heartbeats count seconds that nobody sets."""
    real = time.time
    async with (
        Scheduler(port=0, host="127.0.0.1", dashboard_address=None, idle_timeout=60) as scheduler,
        Worker(scheduler.address, nthreads=1) as worker,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        running = client.submit(time.sleep, 0.7, timeout=90)
        endless = client.submit(asyncio.sleep, 600, timeout=1)
        while not scheduler.state.workers[worker.address].processing:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        await running
        with pytest.raises(TimeoutError, match="longer than its timeout of 1 s"):
            await asyncio.wait_for(endless.result(), 180)
        assert scheduler.status == "running" and worker.status == "running"
        assert await client.submit(increment, 1, timeout=90) == 2
        while scheduler.idle_since is None:
            await asyncio.sleep(0.01)
        assert abs(time.time() - scheduler.idle_since) < 30, "told by the clock as it is now"


# Logging -----------------------------------------------------------------------------------------------------------


LOGGING = """
import logging

def state():
    names = ("", "daskfleet", "distributed", "asyncio", "tornado", "tornado.access", "tornado.application", "dask")
    return [
        (logger.level, list(logger.handlers) if name != "daskfleet" else None, logger.propagate, logger.disabled)
        for name in names
        for logger in (logging.getLogger(name or None),)
    ]

logging.getLogger("daskfleet").setLevel(logging.ERROR)
before = state()
from daskfleet import Client, LocalCluster

if __name__ == "__main__":
    with LocalCluster(1, threads_per_worker=1) as cluster, Client(cluster) as client:
        assert client.submit(sum, [1, 2]).result(timeout=180) == 3
        assert state() == before
        kept = [type(handler).__module__ for handler in logging.getLogger("daskfleet").handlers]
        assert set(kept) <= {"daskfleet.http.logs"}, "only what keeps the last lines for the dashboard"
    assert state() == before
"""


def test_logging_is_left_as_the_application_set_it(tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(LOGGING)
    subprocess.run([sys.executable, str(tmp_path / "application.py")], check=True, timeout=360)
