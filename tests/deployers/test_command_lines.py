"""dask-scheduler and dask-worker as their users call them, each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daskfleet import Client, Nanny, Scheduler, Security, Worker, scheduler_file
from daskfleet.cli.worker import how_many

from tests.deployers.beds.tools import environment

Start = Callable[..., subprocess.Popen[str]]

PRELOAD = """
import click
from pathlib import Path

@click.command()
@click.option("--note", default="")
def dask_setup(server, note):
    server.note = note
    Path({folder!r}, "setup-" + type(server).__name__).write_text(note)

async def dask_teardown(server):
    Path({folder!r}, "teardown-" + type(server).__name__).touch()
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a command; it is gone after the test."""
    running: list[subprocess.Popen[str]] = []

    def run(name: str, *arguments: str, python: str = sys.executable, **environment: str) -> subprocess.Popen[str]:
        command = [python, "-m", f"daskfleet.cli.{name}", *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
        running.append(process)
        return process

    yield run
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        process.communicate(timeout=90)


def scheduler_at(process: subprocess.Popen[str]) -> str:
    """The address that a scheduler logs."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"Scheduler at:\s*(\S+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()  # so that it never blocks
            return found[1]
    raise AssertionError("the scheduler has ended")


def error_of(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=180)
    assert process.returncode in (1, 2), said
    (line,) = [line for line in said.splitlines() if line.startswith("Error")]
    assert "Traceback" not in said
    return line


QUIET = ("--port", "0", "--host", "127.0.0.1", "--no-dashboard")


def test_several_workers_of_one_command(start: Start) -> None:
    address = scheduler_at(start("scheduler", *QUIET))
    start("worker", address, "--nprocs", "3", "--nthreads", "2", "--name", "w", "--memory-limit", "1GB",
          "--resources", "GPU=2 MEM=10e9")  # fmt: skip
    with Client(address) as client:
        client.wait_for_workers(3, timeout=90)
        workers = client.scheduler_info()["workers"].values()
        assert {w["name"] for w in workers} == {"w-0", "w-1", "w-2"}
        assert {w["nthreads"] for w in workers} == {2} and {w["memory_limit"] for w in workers} == {10**9}
        assert all(w["resources"] == {"GPU": 2, "MEM": 10e9} for w in workers)


def test_addresses_of_a_worker(start: Start, free_port: int, tmp_path: Path) -> None:
    address = scheduler_at(start("scheduler", *QUIET))
    local = tmp_path / "local"
    start("worker", address, "--interface", "lo", "--worker-port", f"{free_port}:{free_port + 5}", "--no-nanny",
          "--local-directory", str(local), "--dashboard", "--pid-file", str(tmp_path / "pid"))  # fmt: skip
    with Client(address) as client:
        client.wait_for_workers(1, timeout=90)
        (worker,) = client.scheduler_info()["workers"].values()
        assert worker["host"] == "127.0.0.1" and worker["address"].rpartition(":")[2] == str(free_port)
        assert worker["local_directory"].startswith(str(local))
        assert int((tmp_path / "pid").read_text()) == worker["pid"]
        port = worker["services"]["dashboard"]
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read() == b"ok"


def test_scheduler_file_across_a_restart(start: Start, tmp_path: Path, eventually) -> None:
    file = str(tmp_path / "scheduler.json")
    worker = start("worker", "--scheduler-file", file, "--name", "w")  # before there is a scheduler
    first = start("scheduler", *QUIET, "--scheduler-file", file)
    address = scheduler_at(first)
    assert os.stat(file).st_mode & 0o777 == 0o600
    with pytest.raises(Exception, match="token"):
        Client(address, security=Security(token="no"))
    with Client(scheduler_file=file) as client:
        client.wait_for_workers(1, timeout=90)
    first.kill()
    first.wait()
    second = start("scheduler", *QUIET, "--scheduler-file", file)
    assert scheduler_at(second) == address, "the port and the token of before"
    with Client(scheduler_file=file) as client:
        client.wait_for_workers(1, timeout=90)  # the worker has come back by itself
        assert client.submit(sum, [1, 2]).result() == 3
    assert worker.poll() is None


def test_a_scheduler_file_is_whole_whenever_it_is_read(tmp_path: Path) -> None:
    file, identity = tmp_path / "scheduler.json", {"address": "tcp://10.0.0.1:8786", "workers": ["x" * 100] * 1000}
    security = Security(token="of-the-cluster")
    scheduler_file.write(str(file), identity, security)
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            scheduler_file.write(str(file), identity, security)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(300):
            found = scheduler_file.read(str(file))
            assert found.address == identity["address"] and found.security.token == "of-the-cluster"
    finally:
        stop.set()
        writer.join()
    assert list(tmp_path.iterdir()) == [file], "nothing else is left"


def test_a_scheduler_that_moves_is_found_again_by_its_file(start: Start, tmp_path: Path, free_port: int) -> None:
    file = str(tmp_path / "scheduler.json")
    first = start("scheduler", *QUIET, "--scheduler-file", file)
    before = scheduler_at(first)
    workers = [start("worker", "--scheduler-file", file, nanny) for nanny in ("--nanny", "--no-nanny")]
    with Client(scheduler_file=file) as client:
        client.wait_for_workers(2, timeout=90)
        future = client.submit(sum, [1, 2])
        assert future.result() == 3
        first.kill()
        first.wait()
        second = start("scheduler", "--host", "127.0.0.2", "--port", str(free_port), "--no-dashboard",
                       "--scheduler-file", file)  # fmt: skip
        assert scheduler_at(second) == f"tcp://127.0.0.2:{free_port}" != before
        client.wait_for_workers(2, timeout=180)
        assert client.submit(sum, [future, 4]).result(timeout=90) == 7
    assert [worker.poll() for worker in workers] == [None, None]
    with socket.socket() as taken:  # on the host of the third, the port of the second is somebody else's
        second.kill()
        second.wait()
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        third = scheduler_at(start("scheduler", *QUIET, "--scheduler-file", file))
        assert third.startswith("tcp://127.0.0.1:") and third != f"tcp://127.0.0.1:{free_port}"


def test_preloads_of_every_kind_of_server(start: Start, tmp_path: Path, eventually) -> None:
    preload = tmp_path / "notes.py"
    preload.write_text(PRELOAD.format(folder=str(tmp_path)))
    scheduler = start("scheduler", *QUIET, "--preload", str(preload), "--note", "s")
    address = scheduler_at(scheduler)
    worker = start("worker", address, "--preload", str(preload), "--preload-nanny", str(preload), "--note=w")
    with Client(address) as client:
        client.wait_for_workers(1, timeout=90)
        assert set(client.run(lambda dask_worker: dask_worker.note).values()) == {"w"}
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.note) == "s"
    for process in (worker, scheduler):
        process.terminate()
        process.wait(30)
    written = {path.name: path.read_text() for path in tmp_path.glob("*-*")}
    kinds = ("Scheduler", "Nanny", "Worker")
    assert written == {f"setup-{k}": k[0].lower() if k != "Nanny" else "w" for k in kinds} | {
        f"teardown-{k}": "" for k in kinds
    }


def test_preload_from_a_url_and_from_a_module(start: Start, tmp_path: Path) -> None:
    (tmp_path / "noting.py").write_text("async def dask_setup(server):\n    server.note = 'from afar'\n")
    handler = lambda *args: http.server.SimpleHTTPRequestHandler(*args, directory=str(tmp_path))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/noting.py"
        address = scheduler_at(start("scheduler", *QUIET, "--preload", url))
        server.shutdown()
    start("worker", address, "--preload", "noting", PYTHONPATH=str(tmp_path))
    with Client(address) as client:
        client.wait_for_workers(1, timeout=90)
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.note) == "from afar"
        assert set(client.run(lambda dask_worker: dask_worker.note).values()) == {"from afar"}


def test_lifetime(start: Start, eventually) -> None:
    address = scheduler_at(start("scheduler", *QUIET))
    once = start("worker", address, "--lifetime", "1s", "--lifetime-stagger", "0.2s")
    assert once.wait(30) == 0
    again = {
        name: start("worker", address, "--lifetime", "1s", "--lifetime-restart", f"--{name}", "--name", name)
        for name in ("nanny", "no-nanny")
    }
    with Client(address) as client:
        seen: dict[str, set[str]] = {}

        def look() -> bool:
            for where, worker in client.scheduler_info()["workers"].items():
                seen.setdefault(worker["name"], set()).add(where)
            return all(len(seen.get(name, ())) > 1 for name in again)

        eventually(look)
    assert [process.poll() for process in again.values()] == [None, None]


def test_worker_class(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from daskfleet import Worker\n\n\nclass Mine(Worker):\n    mark = 'mine'\n")
    address = scheduler_at(start("scheduler", *QUIET))
    start("worker", address, "--worker-class", "mine.Mine", PYTHONPATH=str(tmp_path))
    with Client(address) as client:
        client.wait_for_workers(1, timeout=90)
        assert set(client.run(lambda dask_worker: dask_worker.mark).values()) == {"mine"}


def test_dashboard_prefix(start: Start, free_port: int) -> None:
    start_ = start("scheduler", "--port", "0", "--dashboard-address", f":{free_port}", "--dashboard-prefix", "/dask")
    scheduler_at(start_)
    for path in ("/dask/health", "/health"):
        assert urllib.request.urlopen(f"http://127.0.0.1:{free_port}{path}").read() == b"ok"
    assert b"<html" in urllib.request.urlopen(f"http://127.0.0.1:{free_port}/dask/status").read()


def test_idle_timeout_ends_the_scheduler(start: Start) -> None:
    assert start("scheduler", *QUIET, "--idle-timeout", "1s").wait(30) == 0


def test_a_port_in_use(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = error_of(start("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"))
        assert f"cannot listen on tcp://127.0.0.1:{port}" in said and "in use" in said
        said = error_of(start("scheduler", "--port", "0", "--dashboard-address", f"127.0.0.1:{port}"))
        assert "cannot serve the dashboard" in said and "in use" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["worker"], "no scheduler given"),
        (["worker", "tcp://127.0.0.1:1", "--death-timeout", "1s"], "no scheduler at tcp://127.0.0.1:1 within 1 s"),
        (["worker", "tcp://127.0.0.1:1", "--death-timeout", "soon"], "--death-timeout 'soon': expected something like"),
        (["worker", "tcp://127.0.0.1:1", "--lifetime", "1 fortnight"], "--lifetime '1 fortnight'"),
        (["worker", "tcp://127.0.0.1:1", "--nworkers", "many"], "--nworkers 'many'"),
        (["worker", "tcp://127.0.0.1:1", "--memory-limit", "lots"], "memory limit 'lots'"),
        (["worker", "tcp://127.0.0.1:1", "--resources", "GPU"], 'expected something like "GPU=2'),
        (["worker", "tcp://127.0.0.1:1", "--worker-port", "a:b"], "expected a port such as 3000"),
        (["worker", "tcp://127.0.0.1:1", "--worker-class", "no.Such"], "class 'no.Such' cannot be found"),
        (["worker", "tcp://127.0.0.1:1", "--worker-class", "builtins.int"], "neither a Worker nor a Nanny"),
        (["worker", "tcp://127.0.0.1:1", "--lifetiem", "3"], "No such option '--lifetiem'"),
        (["worker", "tcp://127.0.0.1:1", "more"], "unexpected argument 'more'"),
        (["worker", "ftp://127.0.0.1:1"], "unknown scheme 'ftp'"),
        (["scheduler", "--interface", "nosuch0"], "interface 'nosuch0' has no IP address"),
        (["scheduler", "--port", "99999"], "99999"),
        (["scheduler", "--idle-timeout", "x"], "--idle-timeout 'x'"),
        (["scheduler", "--port", "0", "--no-dashboard", "--preload", "nosuchmodule"], "preload nosuchmodule"),
        (["scheduler", "--port", "0", "--no-dashboard", "--jupyter"], "jupyter needs the dashboard"),
    ],
)
def test_errors_are_one_clear_line(start: Start, arguments: list[str], expected: str) -> None:
    assert expected in error_of(start(*arguments))


def test_ctrl_c(start: Start) -> None:
    scheduler = start("scheduler", *QUIET)
    address = scheduler_at(scheduler)
    worker = start("worker", address)
    with Client(address) as client:
        client.wait_for_workers(1, timeout=90)
    for process in (worker, scheduler):
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_as_subcommands_of_dask(start: Start, free_port: int) -> None:
    dask = [sys.executable, "-m", "dask"]
    help_ = subprocess.run([*dask, "--help"], capture_output=True, text=True, check=True).stdout
    assert {"scheduler", "worker", "ssh", "spec"} <= set(help_.split())
    spec = '{"cls": "dask.distributed.Worker", "opts": {"nthreads": 3, "host": "127.0.0.1"}}'
    scheduler = subprocess.Popen([*dask, "scheduler", *QUIET], stderr=subprocess.PIPE, text=True)
    worker = None
    try:
        address = scheduler_at(scheduler)
        worker = subprocess.Popen([*dask, "spec", address, "--spec", spec], stderr=subprocess.DEVNULL)
        with Client(address) as client:
            client.wait_for_workers(1, timeout=90)
            assert {w["nthreads"] for w in client.scheduler_info()["workers"].values()} == {3}
        worker.terminate()
        assert worker.wait(30) == 0
    finally:
        for process in filter(None, (worker, scheduler)):
            process.terminate()
            process.wait(30)
    assert "expected {" in error_of(start("spec", "--spec", "{"))


async def test_a_client_waits_for_its_scheduler_file_as_long_as_for_a_scheduler(tmp_path: Path) -> None:
    file = str(tmp_path / "scheduler.json")
    with pytest.raises(FileNotFoundError, match=f"no scheduler file {file}: start the scheduler with"):
        await Client(scheduler_file=file, asynchronous=True, timeout=0.2)
    client = Client(scheduler_file=file, asynchronous=True, timeout=90)
    waiting = asyncio.ensure_future(client.start())
    await asyncio.sleep(0.2)
    async with Scheduler(port=0, dashboard_address=None) as scheduler:
        scheduler_file.write(file, scheduler.identity(), Security())
        await waiting
        assert client.status == "running"
        await client.close()


async def test_servers_in_ones_own_program() -> None:
    """The example of the "Python API (advanced)" page."""
    async with (
        Scheduler(port=0, dashboard_address=None) as s,
        Worker(s.address) as w1,
        Worker(s.address) as w2,
        Client(s.address, asynchronous=True) as client,
    ):
        future = client.submit(lambda x: x + 1, 10)
        assert await future == 11
        assert {w1.address, w2.address} == set(s.identity()["workers"])
    scheduler = await Scheduler(port=0, dashboard_address=None)
    nanny = await Nanny(scheduler.address, nthreads=1)
    async with Client(scheduler.address, asynchronous=True) as client:
        assert await client.submit(os.getpid) == nanny.pid != os.getpid()
    await nanny.close()
    await scheduler.close()
    await scheduler.finished()
    assert scheduler.status == "closed"


@pytest.fixture
def certificate(tmp_path: Path) -> str:
    """A certificate that vouches for itself, and its key, in one file."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "1"]
    done = subprocess.run([*command, "-keyout", "-", "-out", "-"], capture_output=True, check=True)
    (tmp_path / "pair.pem").write_bytes(done.stdout)
    return str(tmp_path / "pair.pem")


def test_every_documented_option_at_once(start: Start, certificate: str, tmp_path: Path, free_port: int) -> None:
    """What "Command line" of Dask's documentation lists; those that exclude others are in the next test."""
    tls = ["--tls-ca-file", certificate, "--tls-cert", certificate, "--tls-key", certificate]
    preload, file = tmp_path / "notes.py", tmp_path / "scheduler.json"
    preload.write_text(PRELOAD.format(folder=str(tmp_path)))
    scheduler = start(
        "scheduler", "--host", "127.0.0.1", "--port", "0", "--protocol", "tls", *tls,
        "--dashboard-address", f"127.0.0.1:{free_port}", "--dashboard", "--no-jupyter", "--no-show",
        "--dashboard-prefix", "dask", "--pid-file", str(tmp_path / "scheduler.pid"), "--scheduler-file", str(file),
        "--preload", str(preload), "--idle-timeout", "1 hour", "--note", "s",
    )  # fmt: skip
    address = scheduler_at(scheduler)
    assert address.startswith("tls://127.0.0.1:")
    start(
        "worker", *tls, "--worker-port", "3000:60000", "--nanny-port", "0", "--dashboard-address", ":0",
        "--dashboard", "--listen-address", "tls://127.0.0.1:0", "--contact-address", "tls://127.0.0.1",
        "--host", "127.0.0.1", "--protocol", "tls", "--nthreads", "2", "--nworkers", "2", "--name", "w",
        "--memory-limit", "1 GiB", "--nanny", "--pid-file", str(tmp_path / "worker.pid"),
        "--local-directory", str(tmp_path / "local"), "--resources", "GPU=2 MEM=10e9", "--scheduler-file", str(file),
        "--death-timeout", "60", "--dashboard-prefix", "w", "--lifetime", "1 hour", "--lifetime-stagger", "5 minutes",
        "--lifetime-restart", "--worker-class", "dask.distributed.Worker", "--preload", str(preload),
        "--preload-nanny", str(preload), "--scheduler-sni", "scheduler.example", "--note", "w",
    )  # fmt: skip
    security = Security(
        tls_ca_file=certificate, tls_client_cert=certificate, tls_client_key=certificate, require_encryption=True
    )
    with Client(scheduler_file=str(file), security=security) as client:
        client.wait_for_workers(2, timeout=90)
        workers = client.scheduler_info()["workers"]
        assert {w["name"] for w in workers.values()} == {"w-0", "w-1"}
        assert all(w["memory_limit"] == 2**30 and w["nthreads"] == 2 for w in workers.values())
        assert all(address.startswith("tls://127.0.0.1:") for address in workers)
        assert set(client.run(lambda dask_worker: dask_worker.note).values()) == {"w"}
        for seconds in client.run(lambda dask_worker: dask_worker.lifetime.seconds).values():
            assert 3300 <= seconds <= 3900 and seconds != 3600
        assert client.submit(sum, [1, 2], resources={"GPU": 1}).result(timeout=90) == 3
        for worker in workers.values():
            url = f"http://127.0.0.1:{worker['services']['dashboard']}/w/health"
            assert urllib.request.urlopen(url).read() == b"ok"
    assert int((tmp_path / "scheduler.pid").read_text()) == scheduler.pid
    assert urllib.request.urlopen(f"http://127.0.0.1:{free_port}/dask/health").read() == b"ok"


def test_the_other_documented_options(start: Start, tmp_path: Path) -> None:
    for name in ("scheduler", "worker", "ssh"):
        said = subprocess.run(
            [Path(sys.executable).with_name(f"dask-{name}"), "--version"], capture_output=True, text=True, check=True
        )
        assert re.fullmatch(rf"dask-{name}, daskfleet \d+\.\S+\n", said.stdout), said.stdout
    address = scheduler_at(start("scheduler", "--port", "0", "--interface", "lo", "--no-dashboard", "--show"))
    assert address.startswith("tcp://127.0.0.1:")
    start("worker", address, "--interface", "lo", "--no-nanny", "--no-dashboard", "--nworkers", "-1", "--name", "w")
    with Client(address) as client:
        processors = len(os.sched_getaffinity(0))
        client.wait_for_workers(processors, timeout=90)
        assert len(client.scheduler_info()["workers"]) == processors


def test_how_many_workers() -> None:
    processors = len(os.sched_getaffinity(0))
    assert how_many("3") == 3 and how_many("-1") == processors and 1 <= how_many("auto") <= processors
    with pytest.raises(ValueError, match="leaves no worker"):
        how_many(str(-processors - 1))


def test_jupyter_below_the_dashboard(start: Start, free_port: int) -> None:
    python = str(environment("jupyter", "jupyter_server") / "bin" / "python")
    scheduler = start("scheduler", "--port", "0", "--dashboard-address", f"127.0.0.1:{free_port}", "--jupyter",
                      "--host", "127.0.0.1", python=python, DASKFLEET_TOKEN="of-the-cluster")  # fmt: skip
    assert scheduler.stderr is not None
    assert "with the cluster's token" in next(line for line in scheduler.stderr if "Jupyter at:" in line)
    threading.Thread(target=scheduler.stderr.read, daemon=True).start()
    url = f"http://127.0.0.1:{free_port}/jupyter/api/status"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url)
    status = json.load(urllib.request.urlopen(f"{url}?token=of-the-cluster"))
    assert status["kernels"] == 0
    assert urllib.request.urlopen(f"http://127.0.0.1:{free_port}/health").read() == b"ok", "the dashboard is there, too"
