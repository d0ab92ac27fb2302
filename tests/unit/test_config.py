"""Settings: by file, by environment and in code, as dask has them, and that each is heeded."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import dask
import pytest
from daskfleet import Client, LocalCluster, Nanny, Scheduler, Worker, config
from daskfleet.deploy.adaptive import Adaptive
from daskfleet.exceptions import NoValidWorker

READ = """
import sys
from daskfleet import config
print(config.seconds("distributed.scheduler.worker-ttl"), "dask" in sys.modules)
"""


def read(**env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
    done = subprocess.run(
        [sys.executable, "-c", READ], env={**clean, **env}, capture_output=True, text=True, check=True, timeout=180
    )
    return done.stdout.strip()


def test_by_file_and_environment_and_not_at_all(tmp_path: Path) -> None:
    nowhere = {"HOME": str(tmp_path / "home"), "DASK_ROOT_CONFIG": str(tmp_path)}
    assert read(HOME=nowhere["HOME"]) == "300.0 False"  # nothing is configured: dask is not even imported
    assert read(**nowhere, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="2 minutes") == "120.0 True"
    (tmp_path / "dask.yaml").write_text("distributed:\n  scheduler:\n    worker-ttl: 7s\n")
    assert read(**nowhere) == "7.0 True"


async def test_scheduler() -> None:
    settings = {
        "distributed.scheduler.allowed-failures": 7,
        "distributed.scheduler.bandwidth": "1 GB",
        "distributed.scheduler.idle-timeout": "90s",
        "distributed.scheduler.unknown-task-duration": "2s",
        "distributed.scheduler.work-stealing": False,
        "distributed.admin.log-length": 2,
    }
    with dask.config.set(settings):
        scheduler = Scheduler(port=0, dashboard_address=None)
    state = scheduler.state
    assert (state.allowed_failures, state.bandwidth, state.unknown_duration, state.stealing) == (7, 1e9, 2.0, False)
    assert scheduler.idle_timeout == 90
    for number in range(3):
        scheduler.extensions["events"].log("topic", number)
    assert [message for _, message in scheduler.extensions["events"]._topics["topic"]] == [1, 2]


async def test_work_for_which_no_worker_comes_is_given_up() -> None:
    with dask.config.set({"distributed.scheduler.no-workers-timeout": "300ms"}):
        scheduler = Scheduler(port=0, dashboard_address=None)
    async with scheduler, Client(scheduler.address, asynchronous=True) as client:
        future, other = client.submit(abs, -1), client.submit(abs, -2, resources={"GPU": 1})
        with pytest.raises(NoValidWorker, match="no worker came for task 'abs-"):
            await future
        with pytest.raises(NoValidWorker):
            await other
        async with Worker(scheduler.address, nthreads=1):
            assert await client.submit(abs, -3) == 3
            with pytest.raises(NoValidWorker):
                await client.submit(abs, -4, resources={"GPU": 1})
            assert await client.submit(time.sleep, 0.5) is None  # what runs is not concerned


async def test_worker_and_nanny(tmp_path: Path) -> None:
    settings = {
        "temporary-directory": str(tmp_path),
        "distributed.worker.resources": {"GPU": "2"},
        "distributed.worker.profile.enabled": False,
        "distributed.nanny.environ": {"SET_BY_NANNY": "1"},
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 3},
    }
    async with Scheduler(port=0, dashboard_address=None) as scheduler:
        with dask.config.set(settings):
            async with Worker(scheduler.address, nthreads=1) as worker:
                assert Path(worker.local_directory).parent == tmp_path
                assert worker.resources == {"GPU": 2.0}
                await worker.close()
            assert Nanny(scheduler.address, env={"MORE": "x"})._environment() == {
                "SET_BY_NANNY": "1",
                "OMP_NUM_THREADS": "3",
                "MORE": "x",
            }
    assert "SET_BY_NANNY" not in Nanny(scheduler.address)._environment()


def test_adaptive_and_dashboard_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIX_OF_HUB", "/user/ada/")
    settings = {
        "distributed.adaptive": {"interval": "50 ms", "minimum": 1, "maximum": 2, "wait-count": 1},
        "distributed.dashboard.link": "{PREFIX_OF_HUB}proxy/{port}/status",
    }
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=0, processes=False, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        adaptive = cluster.adapt()
        assert isinstance(adaptive, Adaptive)
        bounds = adaptive.interval, adaptive.minimum, adaptive.maximum, adaptive.wait_count, adaptive.target_duration
        assert bounds == (0.05, 1, 2, 1, 5.0)
        cluster.wait_for_workers(1, timeout=90)
        port = cluster.scheduler.dashboard_port
        assert cluster.dashboard_link == f"/user/ada/proxy/{port}/status"
        with Client(cluster) as client:
            assert client.dashboard_link == cluster.dashboard_link


def test_levels_of_logging_are_for_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    from daskfleet.cli.common import set_up_logging

    logger = logging.getLogger("daskfleet.only.here")
    with dask.config.set({"distributed.logging": {"daskfleet.only.here": "debug"}}):
        assert logger.level == logging.NOTSET
        set_up_logging()
    assert logger.level == logging.DEBUG


def test_all_that_is_read_is_listed() -> None:
    read = re.compile(r'config\.(?:get|seconds|size)\(\s*"([^"]+)"')
    package = Path(config.__file__).parent
    keys = {key for path in package.rglob("*.py") for key in read.findall(path.read_text())}
    dasks = ("array.", "dataframe.", "optimization.")  # with defaults of its own
    keys = {key for key in keys if not key.startswith(dasks)}
    assert len(keys) > 20 and keys <= {*config.DEFAULTS, "kubernetes.context", "scheduler"}
