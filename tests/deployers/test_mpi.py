"""dask-mpi, initialize and execute under real mpiruns: OpenMPI's and MPICH's."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from daskfleet import Client
from daskfleet.deploy import registry

from tests.deployers.beds import mpi

SCRIPT = """
import os, sys
from daskfleet import Client
from daskfleet.deploy.mpi import initialize
initialize(dashboard=False, memory_limit="1GB")
client = Client()
client.wait_for_workers(2, timeout=90)
print("sum", client.submit(sum, client.map(lambda i: i * i, range(10))).result())
print("workers", sorted(w["name"] for w in client.scheduler_info()["workers"].values()))
"""

EXECUTE = """
import sys
from daskfleet import Client
from daskfleet.deploy.mpi import execute

def work(n, *, fail=False):
    client = Client()
    client.wait_for_workers({workers}, timeout=90)
    if fail:
        raise RuntimeError("the sums do not add up")
    return sum(client.gather(client.map(lambda i: i + 1, range(n))))

result = execute(work, 10, function_kwargs=dict(fail={fail}), dashboard=False, exclusive_workers={exclusive})
if result is not None:
    print("result", result)
"""


@pytest.fixture(scope="module", params=mpi.MAKES)
def mpirun(request: pytest.FixtureRequest) -> mpi.Mpi:
    return mpi.provide(request.param)


def test_a_script_is_the_client_of_its_own_job(mpirun: mpi.Mpi, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = mpirun.run(4, mpirun.python, str(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["sum 285", "workers ['2', '3']"]


@pytest.mark.parametrize("ending", ["raise ValueError('wrong')", "sys.exit(3)"])
def test_the_exit_status_is_the_scripts(mpirun: mpi.Mpi, tmp_path: Path, ending: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + ending + "\n")
    done = mpirun.run(4, mpirun.python, str(script))
    assert done.returncode == (3 if "exit" in ending else 1), done.stderr
    assert "sum 285" in done.stdout


LATE = """
from mpi4py import MPI
from daskfleet import Client
from daskfleet.deploy.mpi import initialize, send_close_signal
world = MPI.COMM_WORLD
if world.Get_rank() == 3:
    world.recv(source=1)
if initialize(dashboard=False, memory_limit="1GB", comm=world, exit=False):
    with Client() as client:
        client.submit(sum, [1, 2]).result()
    send_close_signal()
    world.send(None, dest=3)
print("rank", world.Get_rank(), "goes on", flush=True)
"""


def test_a_rank_that_comes_when_all_is_over(mpirun: mpi.Mpi, tmp_path: Path) -> None:
    """Of many ranks, some may still be importing while others have done all the work; here they all go on, besides."""
    script = tmp_path / "script.py"
    script.write_text(LATE)
    done = mpirun.run(4, mpirun.python, str(script))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} goes on" for rank in range(4)]


def test_execute(mpirun: mpi.Mpi, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(EXECUTE.format(workers=2, fail=False, exclusive=True))
    done = mpirun.run(4, mpirun.python, str(script))
    assert (done.returncode, done.stdout) == (0, "result 55\n"), done.stderr
    script.write_text(EXECUTE.format(workers=2, fail=False, exclusive=False))
    done = mpirun.run(2, mpirun.python, str(script))
    assert (done.returncode, done.stdout) == (0, "result 55\n"), done.stderr
    script.write_text(EXECUTE.format(workers=2, fail=True, exclusive=True))
    done = mpirun.run(4, mpirun.python, str(script))
    assert done.returncode == 1 and "the sums do not add up" in done.stderr


def test_too_few_ranks(mpirun: mpi.Mpi, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = mpirun.run(2, mpirun.python, str(script))
    assert done.returncode == 1 and "2 MPI ranks are too few, 3 are needed" in done.stderr


def test_a_scheduler_that_cannot_start_ends_every_rank(mpirun: mpi.Mpi, tmp_path: Path, monkeypatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__PRELOAD", "nosuchmodule")
    done = mpirun.run(3, mpirun.python, str(script))
    assert done.returncode == 1 and "the scheduler on rank 0 cannot start: preload nosuchmodule" in done.stderr


def test_a_worker_that_cannot_start_ends_every_rank(mpirun: mpi.Mpi, tmp_path: Path) -> None:
    """Its rank would wait for the others where MPI ends, and the script for its workers."""
    (tmp_path / "broken.py").write_text(
        "from daskfleet import Worker\n\n\nclass Broken(Worker):\n    async def start(self):\n        1 / 0\n"
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace('memory_limit="1GB"', 'worker_class="broken.Broken"'))
    done = mpirun.run(4, mpirun.python, str(script))
    assert done.returncode, "mpirun tells that the job has failed"
    assert "Error: the worker on rank " in done.stderr and "sum" not in done.stdout


def test_dask_mpi_until_a_client_ends_it(mpirun: mpi.Mpi, tmp_path: Path, eventually, free_port: int) -> None:
    """With every option of its page, and listed as long as it runs."""
    file = tmp_path / "scheduler.json"
    sharing, ranks = ("exclusive", {0, 2, 3}) if mpirun.make == "openmpi" else ("inclusive", {0, 1, 2, 3})
    options = [
        "--scheduler-file",
        str(file),
        "--no-dashboard", "--dashboard-address", ":0", "--nthreads", "2", "--memory-limit", "1GB", "--name", "r",
        "--interface", "lo", "--protocol", "tcp", "--scheduler-port", str(free_port), "--scheduler-rank", "1",
        "--local-directory", str(tmp_path / "local"), "--nanny", "--worker-class", "daskfleet.Nanny",
        "--worker-options", "{}", "--scheduler", f"--{sharing}-workers",
    ]  # fmt: skip
    command = mpirun.command(4, str(mpirun.folder / "bin" / "dask-mpi"), *options)
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        eventually(file.exists)
        assert json.loads(file.read_text())["token"] and file.stat().st_mode & 0o777 == 0o600
        with Client(scheduler_file=str(file)) as client:
            client.wait_for_workers(len(ranks), timeout=90)
            workers = client.scheduler_info()["workers"].values()
            assert {(w["name"], w["nthreads"]) for w in workers} == {(f"r-{rank}", 2) for rank in ranks}
            assert {w["host"] for w in workers} == {"127.0.0.1"} and client.scheduler_address.endswith(f":{free_port}")
            assert all(w["local_directory"].startswith(str(tmp_path / "local")) for w in workers)
            (entry,) = registry.entries()
            assert entry.address == client.scheduler_address and entry.name.startswith("mpi-")
            assert client.submit(sum, [1, 2]).result() == 3
            client.shutdown()
        assert job.wait(30) == 0
        assert registry.entries() == []
    finally:
        job.kill()
        job.wait()


def test_dask_mpi_joins_a_scheduler_that_is_there(mpirun: mpi.Mpi, tmp_path: Path) -> None:
    from daskfleet import LocalCluster, scheduler_file

    with LocalCluster(n_workers=0, dashboard_address=None) as cluster, Client(cluster) as client:
        file = tmp_path / "scheduler.json"
        scheduler_file.write(str(file), cluster.scheduler_info, cluster.security)
        options = ["--no-scheduler", "--scheduler-file", str(file), "--worker-options", '{"resources": {"GPU": 2}}']
        job = subprocess.Popen(mpirun.command(2, str(mpirun.folder / "bin" / "dask-mpi"), *options))
        try:
            client.wait_for_workers(2, timeout=90)
            assert {w["resources"]["GPU"] for w in client.scheduler_info()["workers"].values()} == {2}
            job.send_signal(signal.SIGTERM)
            job.wait(30)
        finally:
            job.kill()
            job.wait()


def test_dask_mpi_says_what_is_wrong(mpirun: mpi.Mpi) -> None:
    dask_mpi = str(mpirun.folder / "bin" / "dask-mpi")
    done = mpirun.run(2, dask_mpi, "--no-scheduler")
    assert done.returncode and "Error: --no-scheduler: say where it is" in done.stderr
    done = mpirun.run(2, dask_mpi, "--interface", "nosuch0")
    assert done.returncode and "interface 'nosuch0' has no IP address; this machine has" in done.stderr
    done = mpirun.run(2, dask_mpi, "--worker-options", "[1]")
    assert done.returncode and "expected a JSON object" in done.stderr
