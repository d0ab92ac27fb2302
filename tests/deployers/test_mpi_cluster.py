"""MPICluster: workers that real mpiruns start, OpenMPI's and MPICH's."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from daskfleet import Client, MPICluster
from daskfleet.deploy import registry
from daskfleet.deploy.mpi.cluster import Launch
from daskfleet.deploy.session import Here
from daskfleet.exceptions import DaskfleetError

from tests.deployers.beds import mpi
from tests.deployers.beds.tools import processes_of_cluster


@pytest.fixture(scope="module", params=mpi.MAKES)
def mpirun(request: pytest.FixtureRequest) -> mpi.Mpi:
    return mpi.provide(request.param)


def options(mpirun: mpi.Mpi, **more: Any) -> dict[str, Any]:
    return {"launcher": mpirun.launcher, "python": mpirun.python, "interface": "lo", "dashboard_address": ":0", **more}


def test_launches_of_two_ranks_come_and_go(mpirun: mpi.Mpi, tmp_path: Path, state_home: Path, eventually) -> None:
    workers = {"nthreads": 2, "memory_limit": "1GB", "local_directory": str(tmp_path), "protocol": "tcp"}
    workers |= {"worker_class": "daskfleet.Worker", "worker_options": {"resources": {"GPU": 2}}, "nanny": True}
    marker = str(state_home)
    with MPICluster(2, **options(mpirun, **workers)) as cluster, Client(cluster) as client:
        cluster.wait_for_workers(2, timeout=180)
        assert client.gather(client.map(lambda i: i + 1, range(20))) == list(range(1, 21))
        infos = client.scheduler_info()["workers"].values()
        assert {w["name"] for w in infos} == cluster.plan == cluster.observed == {"0-0", "0-1"}
        assert {(w["nthreads"], w["memory_limit"], w["host"]) for w in infos} == {(2, 10**9, "127.0.0.1")}
        assert {w["resources"]["GPU"] for w in infos} == {2}
        assert all(w["local_directory"].startswith(str(tmp_path)) for w in infos)
        token = cluster.security.token
        running = [Path(f"/proc/{line.split()[0]}/cmdline").read_bytes() for line in processes_of_cluster(marker)]
        assert len(running) >= 3 and not any(token.encode() in words for words in running), "on no command line"
        assert "registered with the scheduler" in cluster.get_logs()["0"]
        assert [entry.name for entry in registry.entries()] == [cluster.name], "daskfleet list shows it"
        with MPICluster.from_name(cluster.name) as again:
            assert again.observed == {"0-0", "0-1"}
        cluster.scale(memory="3GB")
        cluster.wait_for_workers(4, timeout=180)
        (kept,) = client.scatter(["kept"])
        cluster.scale(cores=4)
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 2)
        assert len({name[0] for name in cluster.observed}) == 1, "the ranks of a launch go together"
        assert kept.result() == "kept"
    eventually(lambda: not processes_of_cluster(marker))
    assert registry.entries() == []


def test_adaptive_and_a_rank_that_dies_on_another_host(mpirun: mpi.Mpi, tmp_path: Path, eventually) -> None:
    """Which gets the token, too, although OpenMPI takes no variables there by itself."""
    there = options(mpirun, launcher=mpirun.elsewhere(tmp_path))
    with MPICluster(ranks=1, **there) as cluster, Client(cluster) as client:
        cluster.adapt(minimum=0, maximum=1, interval=0.1)
        (pid,) = {client.submit(os.getpid).result(timeout=180)}
        os.kill(pid, signal.SIGKILL)  # its mpirun ends by that, and there is to be another
        assert client.submit(os.getpid, pure=False).result(timeout=180) != pid
        eventually(lambda: not cluster.workers and not cluster.scheduler_info["workers"])


async def test_what_keeps_ranks_from_starting_is_said(mpirun: mpi.Mpi) -> None:
    launch = Launch(
        "tcp://127.0.0.1:1",
        place=Here(),
        launcher=[*mpirun.launcher, "-n", "1"],
        python=mpirun.python,
        options={"worker_options": {"no_such_option": 1}},
    )
    await launch
    async with asyncio.timeout(180):
        await launch.finished()
    assert re.search(r"(?s)status \d+: .*worker on rank 0 cannot start: .*takes no no_such_option=", launch.failure)


def test_without_a_launcher() -> None:
    with pytest.raises(DaskfleetError, match="no command 'nosuchrun' here: load the module of your MPI"):
        MPICluster(1, launcher="nosuchrun -x A")


LEFT = """
import subprocess, time
from daskfleet import Client, MPICluster
client = Client(MPICluster(2, **{options!r}))
client.wait_for_workers(2, timeout=180)
futures = client.map(lambda i: subprocess.run(["sleep", "300"]), range(2))
time.sleep(0.5)
print("up", flush=True)
time.sleep(300)
"""


def test_nothing_is_left_when_the_client_is_killed(mpirun: mpi.Mpi, state_home: Path, eventually) -> None:
    program = LEFT.format(options=options(mpirun))
    client = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout is not None and client.stdout.readline() == "up\n"
        assert len(processes_of_cluster(str(state_home))) >= 5
        client.send_signal(signal.SIGKILL)
        client.wait()
        eventually(lambda: not processes_of_cluster(str(state_home)))
    finally:
        client.kill()
        client.wait()
