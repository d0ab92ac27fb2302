"""``dask-scheduler`` and ``dask-worker`` as processes: their options, their mistakes, their ends."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from daskfleet import Client, Security

from tests.eventual import eventually


def run(name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DASK")}
    command = [sys.executable, "-m", f"daskfleet.cli.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=kept | env, check=False)


@pytest.mark.parametrize("name", ["scheduler", "worker"])
def test_help_and_version(name: str) -> None:
    told = run(name, "--help")
    assert told.returncode == 0 and "Usage:" in told.stdout and "--pid-file" in told.stdout
    assert "daskfleet" in run(name, "--version").stdout


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("scheduler", ["--port", "http"], "'http' is not a valid integer"),
        ("scheduler", ["--port", "70000"], "70000 is not in the range"),
        ("scheduler", ["--interface", "no0"], "interface 'no0' has no IP address; this machine has"),
        ("scheduler", ["--tls-ca-file", "/nowhere.pem"], "/nowhere.pem"),
        ("scheduler", ["--host", "192.0.2.1", "--port", "0"], "cannot listen on tcp://192.0.2.1:0"),
        ("worker", [], "no scheduler given: name its address"),
        ("worker", ["carrier-pigeon://x:1"], "unknown scheme 'carrier-pigeon'"),
        ("worker", ["tcp://x:y"], "expected something like tcp://10.0.0.1:8786"),
        ("worker", ["tcp://x:1", "--memory-limit", "lots"], "memory limit 'lots': expected something like"),
        ("worker", ["tcp://x:1", "--nworkers", "many"], "--nworkers 'many': expected a number or auto"),
        ("worker", ["tcp://x:1", "--nthreads", "0"], "0 is not in the range"),
        ("worker", ["tcp://x:1", "--resources", "GPU"], 'expected something like "GPU=2 MEM=10e9"'),
        ("worker", ["tcp://x:1", "--worker-port", "a:b"], "expected a port such as 3000"),
    ],
)
def test_mistakes_are_one_clear_line(name: str, arguments: list[str], says: str) -> None:
    told = run(name, *arguments)
    assert told.returncode in (1, 2)
    assert says in told.stderr
    assert "Traceback" not in told.stderr
    assert told.stderr.strip().splitlines()[-1].startswith("Error: ")


def test_a_port_that_is_taken(scheduler: Any) -> None:
    port = scheduler[1].rpartition(":")[2]
    told = run("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
    assert told.returncode == 1
    assert f"cannot listen on tcp://127.0.0.1:{port}" in told.stderr and "choose another port or 0" in told.stderr


def test_a_scheduler_that_is_not_there() -> None:
    told = run("worker", "tcp://127.0.0.1:1", "--death-timeout", "0.5")
    assert told.returncode == 1
    assert "no scheduler at tcp://127.0.0.1:1 within 0.5 s" in told.stderr


def test_a_worker_that_comes_first_waits_for_the_scheduler(command: Any, scheduler: Any) -> None:
    one, address = scheduler
    assert one.stop() == 0
    worker = command("worker", address, "--nthreads", "1", "--name", "early")
    worker.says("waiting for the scheduler")
    command("scheduler", "--port", address.rpartition(":")[2], "--no-dashboard", "--host", "127.0.0.1")
    worker.says("Start worker at")
    assert worker.stop() == 0


def test_a_worker_whose_scheduler_does_not_come_ends_when_it_is_told_to(command: Any, tmp_path: Path) -> None:
    worker = command("worker", "tcp://127.0.0.1:1", "--local-directory", str(tmp_path))
    worker.says("waiting for the scheduler")
    assert list(tmp_path.iterdir())
    assert worker.stop() == 0
    assert any("told to stop before it was up" in line for line in worker.log)
    assert not any("killing it" in line for line in worker.log) and not list(tmp_path.iterdir())


def test_unix_sockets_and_no_port_at_all(command: Any) -> None:
    one = command("scheduler", "--protocol", "unix", "--port", "0", "--no-dashboard", "--host", "127.0.0.1")
    address = one.says("Scheduler at").split()[-1]
    assert address.startswith("unix://127.0.0.1:")
    command("worker", address, "--nthreads", "1").says("Start worker at")
    with Client(address) as client:
        assert client.submit(sum, [1, 2]).result(timeout=180) == 3
        assert [worker.partition(":")[0] for worker in client.has_what()] == ["unix"]
        assert not psutil.Process(one.process.pid).net_connections("inet")
    assert not any("No token" in line for line in one.log), "nobody but this user can reach it"


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_two_workers_of_one_name(command: Any, scheduler: Any, nanny: str) -> None:
    command("worker", scheduler[1], "--name", "twin", "--nthreads", "1", nanny).says("Start worker at")
    told = run("worker", scheduler[1], "--name", "twin", "--nthreads", "1", nanny)
    assert told.returncode == 1
    assert "a worker named 'twin' is connected already" in told.stderr
    with Client(scheduler[1], set_as_default=False) as client:
        assert client.submit(sum, [1, 2]).result(timeout=180) == 3, "the first goes on"


def test_a_token_is_needed_by_all(command: Any) -> None:
    token = {"DASKFLEET_TOKEN": "5" * 64}
    one = command("scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1", env=token)
    address = one.says("Scheduler at").split()[-1]
    told = run("worker", address, "--nthreads", "1")
    assert told.returncode == 1 and "asks for a token" in told.stderr
    told = run("worker", address, "--nthreads", "1", DASKFLEET_TOKEN="6" * 64)
    assert told.returncode == 1 and "another token" in told.stderr
    with pytest.raises(ConnectionError, match="asks for a token"):
        Client(address)
    command("worker", address, "--nthreads", "1", env=token).says("Start worker at")
    with Client(address, security=Security(token="5" * 64)) as client:
        assert client.submit(sum, [1, 2]).result(timeout=180) == 3
    assert "5" * 64 not in "\n".join(one.log)


def test_scheduler_and_pid_files(command: Any, tmp_path: Path) -> None:
    file, pid_file = tmp_path / "scheduler.json", tmp_path / "pid"
    options = ["--scheduler-file", str(file), "--pid-file", str(pid_file), "--no-dashboard", "--host", "127.0.0.1"]
    worker = command("worker", "--scheduler-file", str(file), "--nthreads", "1")  # it waits for the file
    one = command("scheduler", "--port", "0", *options)
    one.says("Scheduler at")
    worker.says("Start worker at")
    assert int(pid_file.read_text()) == one.process.pid
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["token"] not in "\n".join(one.log)
    with Client(scheduler_file=str(file)) as client:
        assert client.submit(sum, [1, 2]).result(timeout=180) == 3
    assert worker.stop() == 0
    assert one.stop(signal.SIGINT) == 0
    assert not pid_file.exists()


def test_sigterm_to_the_command_hands_its_data_over(command: Any, scheduler: Any) -> None:
    workers = [command("worker", scheduler[1], "--name", str(n), "--nthreads", "1") for n in range(2)]
    for worker in workers:
        worker.says("Start worker at")
    with Client(scheduler[1]) as client:
        client.wait_for_workers(2, timeout=90)
        data = client.scatter([bytes(50_000) + bytes([n]) for n in range(8)])
        assert workers[0].stop() == 0
        assert [value[-1] for value in client.gather(data)] == list(range(8))
        assert len(client.has_what()) == 1


def test_a_stuck_worker_ends_with_its_nanny(command: Any, scheduler: Any, tmp_path: Path) -> None:
    async def stick() -> None:
        (tmp_path / "stuck").touch()
        ctypes.PyDLL(None).sleep(600)  # neither the event loop nor any other thread goes on

    nanny = command("worker", scheduler[1], "--nthreads", "1")
    nanny.says("Start worker at")
    with Client(scheduler[1]) as client:
        [pid] = client.run(os.getpid).values()
        worker = psutil.Process(pid)
        future = client.submit(stick)
        eventually((tmp_path / "stuck").exists)
        nanny.stop(signal.SIGKILL)
        eventually(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
        future.release()


def test_more_files_may_be_open_than_usual(command: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    aim = min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, soft), hard))
    try:
        one = command("scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1")
        address = one.says("Scheduler at").split()[-1]
        worker = command("worker", address, "--nthreads", "1")
        worker.says("Start worker at")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE)[0] == aim
    with Client(address) as client:
        assert list(client.run(lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]).values()) == [aim]


def test_sigterm_ends_the_nanny_s_worker_too(command: Any, scheduler: Any) -> None:
    worker = command("worker", scheduler[1], "--nthreads", "1")
    worker.says("Start worker at")
    with Client(scheduler[1]) as client:
        [pid] = client.run(os.getpid).values()
        assert pid != worker.process.pid
    assert worker.stop() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_container_that_is_ended_as_it_starts_does_not_come_up() -> None:
    """The kernel keeps signals without a handler from process 1: one that was sent too early is as if never sent."""
    script = "import daskfleet.cli, os, signal; os.kill(1, signal.SIGTERM); print('came up')"
    space = ["unshare", "--pid", "--fork", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*space, "true"], capture_output=True, timeout=90).returncode:
        pytest.skip("this account may have no processes 1")
    done = subprocess.run([*space, sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
