"""SLURMCluster on a real Slurm: jobs, arrays, their states and deaths, walltimes, a scheduler that is a job."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daskfleet import Client, MPICluster
from daskfleet.deploy.jobqueue import SLURMCluster
from daskfleet.deploy.jobqueue.system import State
from daskfleet.exceptions import DaskfleetError

from tests.deployers.beds import mpi, slurm

SMALL = {"cores": 1, "memory": "1GB", "walltime": "00:30:00", "dashboard_address": ":0"}


@pytest.fixture(scope="module")
def bed() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="daskfleet-slurm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with slurm.running(Path(folder)) as environment, pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            yield environment


def in_queue() -> list[str]:
    done = subprocess.run(["squeue", "-h", "--array", "-o", "%i %j %T"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture
def shared(tmp_path: Path) -> dict[str, object]:
    return {**SMALL, "shared_temp_directory": str(tmp_path)}


def test_jobs_come_and_go(bed, shared, eventually, tmp_path: Path) -> None:
    with SLURMCluster(n_workers=2, **shared) as cluster, Client(cluster) as client:
        cluster.wait_for_workers(2, timeout=180)
        assert client.gather(client.map(lambda i: i * i, range(20))) == [i * i for i in range(20)]
        names = set(client.run(lambda: os.environ["SLURM_JOB_NAME"]).values())
        assert names == {"dask-worker"}
        assert cluster.observed == {f"{cluster.name}-0", f"{cluster.name}-1"}
        eventually(lambda: {status.state for status in cluster.jobs().values()} == {State.running})
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        token = cluster.security.token
        assert token and token not in cluster.job_script()
        assert f"--scheduler-file {folder}/scheduler.json" in cluster.job_script()
        assert "registered with the scheduler" in cluster.get_logs()[f"{cluster.name}-0"]
        cluster.scale(jobs=3)
        cluster.wait_for_workers(3, timeout=180)
        cluster.scale(0)
        eventually(lambda: not in_queue() and not cluster.scheduler_info["workers"])
    assert not list(tmp_path.iterdir()), "nothing is left in the shared folder"


def test_many_are_one_array_job(bed, shared, eventually) -> None:
    with SLURMCluster(**shared) as cluster:
        cluster.scale(6)
        cluster.wait_for_workers(6, timeout=240)
        ids = {line.split()[0] for line in in_queue()}
        assert len({id.partition("_")[0] for id in ids}) == 1 and len(ids) == 6, "one submission"
        assert cluster.observed == {f"{cluster.name}-{i}" for i in range(6)}
        cluster.scale(4)
        eventually(lambda: len(in_queue()) == 4 and len(cluster.scheduler_info["workers"]) == 4)
    eventually(lambda: not in_queue())


def test_a_job_of_several_workers_and_units_of_scale(bed, shared) -> None:
    options = {**shared, "cores": 4, "memory": "4GB", "processes": 2}
    with SLURMCluster(**options) as cluster:
        cluster.scale(cores=5)
        cluster.wait_for_workers(4, timeout=180)
        assert len(in_queue()) == 2
        workers = cluster.scheduler_info["workers"].values()
        assert {w["nthreads"] for w in workers} == {2} and {w["memory_limit"] for w in workers} == {2 * 10**9}
        cluster.scale(memory="1GB")
        assert len(cluster.plan) == 2


def test_adapt_counts_pending_jobs(bed, shared, eventually) -> None:
    # Each job takes a whole node, so of five only two can run: the others stay pending.
    options = {**shared, "cores": slurm.CPUS, "processes": 1}
    with SLURMCluster(**options) as cluster:
        cluster.adapt(minimum_jobs=5, maximum_jobs=5, interval=0.2)
        cluster.wait_for_workers(2, timeout=180)
        eventually(lambda: sum(s.state is State.pending for s in cluster.jobs().values()) == 3)
        assert len(in_queue()) == 5, "pending jobs are not asked for again"
        with pytest.raises(TimeoutError, match=r"2 of 5 workers.*PENDING \(Resources\)"):
            cluster.wait_for_workers(5, timeout=2)
        cluster.adapt(minimum_jobs=1, maximum_jobs=1, interval=0.2)
        eventually(lambda: len(in_queue()) == 1)
        assert len(cluster.scheduler_info["workers"]) == 1, "pending jobs go before running ones"


def test_what_the_queue_refuses_is_an_error_at_once(bed, shared, tmp_path: Path) -> None:
    with pytest.raises(DaskfleetError, match=r"sbatch: .*[Ii]nvalid partition"):
        SLURMCluster(n_workers=1, queue="nosuch", **shared)
    with SLURMCluster(queue="nosuch", **shared) as cluster:
        cluster.scale(2)
        with pytest.raises(DaskfleetError, match="invalid partition"):
            cluster.wait_for_workers(1, timeout=180)
    down = pytest.raises(TimeoutError, match=r"job \d+ is PENDING \(PartitionDown\)")
    with SLURMCluster(n_workers=1, queue="tiny", **shared) as cluster, down:
        cluster.wait_for_workers(1, timeout=3)


def test_a_job_that_dies_is_shown_with_its_reason_and_log(bed, shared) -> None:
    options = {**shared, "job_script_prologue": ["echo the license server is down", "exit 7"]}
    with SLURMCluster(**options) as cluster:
        cluster.scale(1)
        why = r"(?s)job \d+ ended: FAILED \(NonZeroExitCode, on n[12]\).*the license server is down"
        with pytest.raises(DaskfleetError, match=why):
            cluster.wait_for_workers(1, timeout=240)


def test_a_job_that_is_killed_is_replaced(bed, shared, eventually) -> None:
    with SLURMCluster(n_workers=1, **shared) as cluster, Client(cluster) as client:
        cluster.wait_for_workers(1, timeout=180)
        (job,) = cluster.workers.values()
        future = client.submit(sum, [1, 2])
        assert future.result() == 3
        os.kill(next(iter(client.run(os.getppid).values())), 9)  # the nanny, and with it the job's script
        eventually(lambda: {j.job_id for j in cluster.workers.values()} not in ({job.job_id}, set()), 240)
        cluster.wait_for_workers(1, timeout=180)
        assert client.submit(sum, [2, 3]).result() == 5


def test_workers_retire_before_their_walltime(bed, shared, eventually) -> None:
    options = {**shared, "walltime": "00:01:00", "worker_extra_args": ["--lifetime", "6s"]}
    with SLURMCluster(n_workers=1, **options) as cluster, Client(cluster) as client:
        cluster.wait_for_workers(1, timeout=180)
        (data,) = client.scatter(["kept"])
        cluster.scale(2)
        cluster.wait_for_workers(2, timeout=180)
        (first,) = [job.job_id for name, job in cluster.workers.items() if name.endswith("-0")]
        eventually(lambda: first not in {line.split()[0] for line in in_queue()}, 180)
        assert data.result() == "kept", "handed over before the job's end"
    with SLURMCluster(**{**shared, "walltime": "02:00:00"}) as cluster:
        assert "--lifetime 6900s" in cluster.job_script()


SESSION = """
import time
from daskfleet import Client
from daskfleet.deploy.jobqueue import SLURMCluster
cluster = SLURMCluster(n_workers=1, name="longlived", shutdown_on_close=False, **{options!r})
cluster.wait_for_workers(1, timeout=180)
client = Client(cluster)
client.publish_dataset(answer=client.submit(sum, [20, 22]))
print("up", flush=True)
time.sleep(300)
"""


def test_the_scheduler_is_a_job_that_outlives_the_session(bed, shared, eventually, free_port: int) -> None:
    options = {**shared, "scheduler_in_job": True, "scheduler_options": {"dashboard_address": f":{free_port}"}}
    command = [sys.executable, "-c", SESSION.format(options=options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        said = session.stdout.readline()
        session.kill()  # as where a login session ends
    assert said == "up\n"
    assert {line.split()[1] for line in in_queue()} == {"dask-worker", "dask-worker-scheduler"}
    daskfleet = [str(Path(sys.executable).with_name("daskfleet"))]
    run = lambda *words: subprocess.run([*daskfleet, *words], capture_output=True, text=True, check=True).stdout  # noqa: E731
    assert "longlived" in run("list") and "SLURMCluster" in run("list")
    run("scale", "longlived", "2")
    eventually(lambda: sum(line.split()[1] == "dask-worker" for line in in_queue()) == 2)
    run("scale", "longlived", "1")
    eventually(lambda: sum(line.split()[1] == "dask-worker" for line in in_queue()) == 1)
    with SLURMCluster.from_name("longlived", shutdown_on_close=False) as cluster, Client(cluster) as client:
        assert client.get_dataset("answer").result() == 42
        assert len(cluster.plan) == 1
        cluster.scale(3)
        cluster.wait_for_workers(3, timeout=180)
        assert cluster.observed == {"longlived-0", "longlived-1", "longlived-2"}
    run("delete", "longlived")
    eventually(lambda: not in_queue())
    assert "longlived" not in run("list")


def test_ranks_that_srun_starts_on_two_nodes(bed, eventually) -> None:
    srun = ["srun", "--mpi=pmi2", "--nodes=2", "--mem-per-cpu=100"]
    python = mpi.provide("mpich").python
    with MPICluster(2, launcher=srun, python=python, dashboard_address=":0") as cluster, Client(cluster) as client:
        cluster.wait_for_workers(2, timeout=180)
        nodes = client.run(lambda dask_worker: (dask_worker.name, os.environ["SLURMD_NODENAME"])).values()
        assert set(nodes) == {("0-0", "n1"), ("0-1", "n2")}
    eventually(lambda: not in_queue())


def test_configuration(bed, shared) -> None:
    import dask

    with dask.config.set({"jobqueue.slurm.cores": 2, "jobqueue.big.cores": 3, "jobqueue.big.memory": "3GB"}):
        options = {key: value for key, value in shared.items() if key != "cores"}
        with SLURMCluster(**options) as cluster:
            assert cluster.cores == 2
        del options["memory"]
        with SLURMCluster(config_name="big", **options) as cluster:
            assert (cluster.cores, cluster.memory) == (3, 3 * 10**9)
