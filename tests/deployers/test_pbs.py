"""PBSCluster with real qsub, qstat and qdel: those of slurm-wlm-torque, on a real Slurm."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daskfleet import Client
from daskfleet.deploy.jobqueue import PBSCluster
from daskfleet.deploy.jobqueue.system import State
from daskfleet.exceptions import DaskfleetError

from tests.deployers.beds import pbs, slurm


@pytest.fixture(scope="module")
def bed() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="daskfleet-pbs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with slurm.running(Path(folder)) as environment, pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setenv("PATH", f"{pbs.commands(Path(folder))}:{os.environ['PATH']}")
            yield


@pytest.fixture
def options(tmp_path: Path) -> dict[str, object]:
    return {
        "cores": 1, "memory": "1GB", "resource_spec": "nodes=1:ppn=1,mem=500mb", "walltime": "00:30:00",
        "dashboard_address": None, "shared_temp_directory": str(tmp_path),
    }  # fmt: skip


def test_jobs_come_and_go(bed, options, eventually) -> None:
    with PBSCluster(n_workers=2, **options) as cluster, Client(cluster) as client:
        cluster.wait_for_workers(2, timeout=180)
        assert client.gather(client.map(lambda i: i * i, range(20))) == [i * i for i in range(20)]
        eventually(lambda: {status.state for status in cluster.jobs().values()} == {State.running})
        assert "registered with the scheduler" in "".join(cluster.get_logs().values())
        cluster.scale(1)
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 1)
        cluster.scale(3)
        cluster.wait_for_workers(3, timeout=180)


def test_many_are_one_array_job(bed, options, eventually) -> None:
    with PBSCluster(**options) as cluster, Client(cluster) as client:
        cluster.scale(4)
        cluster.wait_for_workers(4, timeout=180)
        ids = sorted(job.job_id for job in cluster.workers.values())
        number = ids[0].partition("[")[0]
        assert ids == [f"{number}[{i}]" for i in range(4)], "one submission"
        assert cluster.observed == {f"{cluster.name}-{i}" for i in range(4)}
        assert set(client.run(lambda: int(os.environ["PBS_ARRAY_INDEX"])).values()) == {0, 1, 2, 3}
        eventually(lambda: {status.state for status in cluster.jobs().values()} == {State.running})
        with PBSCluster.from_name(cluster.name) as again:
            assert again.observed == cluster.observed
            eventually(lambda: again.jobs() == cluster.jobs())
        logs = cluster.get_logs()
        assert all(f"as {name} " in logs[name] for name in cluster.observed), "each has its own"
        cluster.scale(2)
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 2 and len(cluster.jobs()) == 2)


def test_a_job_that_dies_is_shown_with_its_log(bed, options) -> None:
    died = {**options, "job_script_prologue": ["echo the license server is down", "exit 7"]}
    with PBSCluster(**died) as cluster:
        cluster.scale(1)
        with pytest.raises(DaskfleetError, match=r"(?s)job \d+ ended: C .*the license server is down"):
            cluster.wait_for_workers(1, timeout=180)


def test_what_the_queue_refuses_is_an_error_at_once(bed, options) -> None:
    with pytest.raises(DaskfleetError, match="invalid partition"):
        PBSCluster(n_workers=1, queue="nosuch", **options)
