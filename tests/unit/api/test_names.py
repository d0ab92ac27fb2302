"""The public names, and the same under distributed's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import daskfleet
import pytest

NAMES = [
    "Actor",
    "ActorFuture",
    "Adaptive",
    "CancelledError",
    "Client",
    "CompatibleExecutor",
    "CondaInstall",
    "Environ",
    "Event",
    "Future",
    "InstallPlugin",
    "KilledWorker",
    "LocalCluster",
    "Lock",
    "MultiLock",
    "Nanny",
    "NannyPlugin",
    "PipInstall",
    "Queue",
    "Reschedule",
    "SSHCluster",
    "Scheduler",
    "SchedulerPlugin",
    "Security",
    "Semaphore",
    "SpecCluster",
    "Status",
    "SubprocessCluster",
    "TimeoutError",
    "UploadDirectory",
    "UploadFile",
    "Variable",
    "Worker",
    "WorkerPlugin",
    "as_completed",
    "connect",
    "default_client",
    "fire_and_forget",
    "futures_of",
    "get_client",
    "get_task_metadata",
    "get_task_stream",
    "get_worker",
    "local_client",
    "performance_report",
    "print",
    "progress",
    "rejoin",
    "rpc",
    "secede",
    "sync",
    "span",
    "wait",
    "warn",
    "worker_client",
]


@pytest.mark.parametrize("name", NAMES)
def test_name(name: str) -> None:
    assert getattr(daskfleet, name).__name__
    assert name in daskfleet.__all__ and name in dir(daskfleet)


def test_importing_loads_nothing() -> None:
    script = (
        "import daskfleet, sys; print(sorted(m for m in sys.modules if m.startswith(('dask.', 'msgpack', 'asyncio'))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        _ = daskfleet.Clinet


SCRIPT = """
import daskfleet
assert daskfleet.as_distributed() and daskfleet.as_distributed()

import distributed
import distributed.lock
from dask.distributed import Client, LocalCluster, as_completed, wait
from distributed import Future, worker_client
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.utils import iscoroutinefunction
from distributed.worker import get_client
import dask, dask.array as da, dask.delayed

assert Client is daskfleet.Client and distributed.Future is Future is daskfleet.Future
assert distributed.client.Client is Client and distributed.deploy.local.LocalCluster is LocalCluster
assert issubclass(WorkerPlugin, distributed.WorkerPlugin)
try:
    distributed.nothing
except AttributeError as error:
    assert "no 'nothing'" in str(error)
else:
    raise AssertionError


def nested(x):
    from dask.distributed import get_client, get_worker
    assert get_worker().address
    return get_client().submit(lambda y: y + 1, x).result()


async def coroutine(x):
    return x + 1

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        assert client.submit(nested, 1).result() == 2
        assert da.ones(100, chunks=10).sum().compute(scheduler="distributed") == 100
        x = dask.persist(da.ones(100, chunks=10))[0]
        wait(x)
        assert len(distributed.futures_of(x)) == 10
        assert iscoroutinefunction(coroutine)
        assert dask.delayed(coroutine)(1).compute() == 2
        target = [0] * 10
        lock = dask.utils.get_scheduler_lock(scheduler=None)
        assert type(lock) is distributed.Lock, lock
    print("fine")
"""


@pytest.mark.skipif(importlib.util.find_spec("distributed") is not None, reason="distributed is installed here")
def test_as_distributed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_an_installed_distributed_is_left_alone(tmp_path: Path) -> None:
    package = tmp_path / "distributed"
    package.mkdir()
    (package / "__init__.py").write_text("theirs = True\n")
    script = (
        "import daskfleet\nassert daskfleet.as_distributed() is False\nimport distributed\nassert distributed.theirs\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=180)
