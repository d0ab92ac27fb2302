"""SGECluster on a real Grid Engine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daskfleet import Client
from daskfleet.deploy.jobqueue import SGECluster
from daskfleet.deploy.jobqueue.system import State
from daskfleet.exceptions import DaskfleetError

from tests.deployers.beds import sge

SMALL = {"cores": 1, "memory": "1GB", "walltime": "00:30:00", "dashboard_address": ":0"}


@pytest.fixture(scope="module")
def bed() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="daskfleet-sge-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with sge.running(Path(folder)) as commands, pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
            yield


@pytest.fixture
def shared(tmp_path: Path) -> dict[str, object]:
    return {**SMALL, "shared_temp_directory": str(tmp_path)}


def in_queue() -> list[str]:
    done = subprocess.run(["qstat", "-u", "root"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[2:]


def test_jobs_come_and_go(bed, shared, eventually, tmp_path: Path) -> None:
    with SGECluster(n_workers=4, **shared) as cluster, Client(cluster) as client:
        cluster.wait_for_workers(4, timeout=240)
        assert client.gather(client.map(lambda i: i * i, range(20))) == [i * i for i in range(20)]
        assert cluster.observed == {f"{cluster.name}-{i}" for i in range(4)}
        # Tasks of an array count from 1: the first job is one of its own.
        assert len({job.job_id.partition(".")[0] for job in cluster.workers.values()}) == 2
        eventually(lambda: {status.state for status in cluster.jobs().values()} == {State.running})
        with SGECluster.from_name(cluster.name) as again:
            assert again.observed == cluster.observed
            eventually(lambda: again.jobs() == cluster.jobs())
        cluster.scale(2)
        eventually(lambda: len(in_queue()) == 2 and len(cluster.scheduler_info["workers"]) == 2)
        assert "registered with the scheduler" in cluster.get_logs()[next(iter(cluster.workers))]
    eventually(lambda: not in_queue())
    assert not list(tmp_path.iterdir())


def test_what_the_queue_refuses_is_an_error_at_once(bed, shared) -> None:
    with pytest.raises(DaskfleetError, match=r"qsub: .*project \"nosuch\" does not exist"):
        SGECluster(n_workers=1, project="nosuch", **shared)


def test_a_job_that_dies_is_shown_with_its_exit_status_and_log(bed, shared) -> None:
    options = {**shared, "job_script_prologue": ["echo the license server is down", "exit 7"]}
    with SGECluster(**options) as cluster:
        cluster.scale(1)
        with pytest.raises(DaskfleetError, match=r"(?s)job \d+ ended: .*exit status 7.*the license server is down"):
            cluster.wait_for_workers(1, timeout=300)


def test_pending_jobs_are_told_of_and_go_first(bed, shared, eventually) -> None:
    with SGECluster(**shared) as cluster:
        cluster.scale(10)  # there are 8 slots
        cluster.wait_for_workers(8, timeout=300)
        with pytest.raises(TimeoutError, match=r"8 of 10 workers.*is qw \(waiting for a free slot\)"):
            cluster.wait_for_workers(10, timeout=3)
        cluster.scale(8)
        eventually(lambda: len(in_queue()) == 8)
        assert len(cluster.scheduler_info["workers"]) == 8


def test_a_scheduler_file_and_an_array_job_by_hand(bed, tmp_path: Path, eventually) -> None:
    """As the "HPC" page has it: ``qsub -b y dask-scheduler …``, ``qsub -b y -t 1-3 dask-worker …``."""
    commands, file = Path(sys.executable).parent, str(tmp_path / "scheduler.json")
    submit = ["qsub", "-terse", "-b", "y", "-j", "y", "-o", str(tmp_path)]
    run = lambda *words: subprocess.run([*submit, *words], capture_output=True, text=True, check=True).stdout  # noqa: E731
    ids = [
        run(f"{commands}/dask-scheduler", "--scheduler-file", file, "--port", "0", "--no-dashboard"),
        run("-t", "1-3", f"{commands}/dask-worker", "--scheduler-file", file, "--nthreads", "1", "--no-nanny"),
    ]
    try:
        with Client(scheduler_file=file, timeout=180) as client:
            client.wait_for_workers(3, timeout=180)
            assert set(client.run(lambda: os.environ["SGE_TASK_ID"]).values()) == {"1", "2", "3"}
    finally:
        subprocess.run(["qdel", *(id.strip().partition(".")[0] for id in ids)], capture_output=True, check=True)
    eventually(lambda: not in_queue())
