"""daskfleet: Dask clusters that start in a second, run anywhere and outlive your notebook.

The names of ``distributed`` are here, so moving over is one import::

    from daskfleet import Client

Everything is imported when it is first used; ``import daskfleet`` itself loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from daskfleet._version import __version__

if TYPE_CHECKING:
    from daskfleet.client.actors import Actor as Actor
    from daskfleet.client.actors import ActorFuture as ActorFuture
    from daskfleet.client.channels import Queue as Queue
    from daskfleet.client.channels import Variable as Variable
    from daskfleet.client.client import Client as Client
    from daskfleet.client.collections import futures_of as futures_of
    from daskfleet.client.executor import CompatibleExecutor as CompatibleExecutor
    from daskfleet.client.future import Future as Future
    from daskfleet.client.inside import default_client as default_client
    from daskfleet.client.inside import fire_and_forget as fire_and_forget
    from daskfleet.client.inside import get_client as get_client
    from daskfleet.client.inside import local_client as local_client
    from daskfleet.client.inside import worker_client as worker_client
    from daskfleet.client.locks import Event as Event
    from daskfleet.client.locks import Lock as Lock
    from daskfleet.client.locks import MultiLock as MultiLock
    from daskfleet.client.locks import Semaphore as Semaphore
    from daskfleet.client.progress import progress as progress
    from daskfleet.client.reports import get_task_metadata as get_task_metadata
    from daskfleet.client.reports import get_task_stream as get_task_stream
    from daskfleet.client.reports import performance_report as performance_report
    from daskfleet.client.sharing import print as print
    from daskfleet.client.sharing import warn as warn
    from daskfleet.client.spans import span as span
    from daskfleet.client.waiting import as_completed as as_completed
    from daskfleet.client.waiting import wait as wait
    from daskfleet.comm import connect as connect
    from daskfleet.comm.rpc import rpc as rpc
    from daskfleet.compat import as_distributed as as_distributed
    from daskfleet.deploy.adaptive import Adaptive as Adaptive
    from daskfleet.deploy.discovery import adapt_cluster as adapt_cluster
    from daskfleet.deploy.discovery import create_cluster as create_cluster
    from daskfleet.deploy.discovery import delete_cluster as delete_cluster
    from daskfleet.deploy.discovery import discover_cluster_names as discover_cluster_names
    from daskfleet.deploy.discovery import discover_clusters as discover_clusters
    from daskfleet.deploy.discovery import get_cluster as get_cluster
    from daskfleet.deploy.discovery import get_snippet as get_snippet
    from daskfleet.deploy.discovery import list_clusters as list_clusters
    from daskfleet.deploy.discovery import list_discovery_methods as list_discovery_methods
    from daskfleet.deploy.discovery import scale_cluster as scale_cluster
    from daskfleet.deploy.kubernetes import HelmCluster as HelmCluster
    from daskfleet.deploy.kubernetes import KubeCluster as KubeCluster
    from daskfleet.deploy.local import LocalCluster as LocalCluster
    from daskfleet.deploy.mpi.cluster import MPICluster as MPICluster
    from daskfleet.deploy.spec import SpecCluster as SpecCluster
    from daskfleet.deploy.ssh import SSHCluster as SSHCluster
    from daskfleet.deploy.status import Status as Status
    from daskfleet.deploy.subprocess import SubprocessCluster as SubprocessCluster
    from daskfleet.exceptions import CancelledError as CancelledError
    from daskfleet.exceptions import KilledWorker as KilledWorker
    from daskfleet.exceptions import Reschedule as Reschedule
    from daskfleet.exceptions import TimeoutError as TimeoutError
    from daskfleet.exceptions import VersionMismatch as VersionMismatch
    from daskfleet.loop import sync as sync
    from daskfleet.plugins import CondaInstall as CondaInstall
    from daskfleet.plugins import Environ as Environ
    from daskfleet.plugins import InstallPlugin as InstallPlugin
    from daskfleet.plugins import NannyPlugin as NannyPlugin
    from daskfleet.plugins import PipInstall as PipInstall
    from daskfleet.plugins import SchedulerPlugin as SchedulerPlugin
    from daskfleet.plugins import UploadDirectory as UploadDirectory
    from daskfleet.plugins import UploadFile as UploadFile
    from daskfleet.plugins import WorkerPlugin as WorkerPlugin
    from daskfleet.scheduler.server import Scheduler as Scheduler
    from daskfleet.security import Security as Security
    from daskfleet.worker.context import get_worker as get_worker
    from daskfleet.worker.context import rejoin as rejoin
    from daskfleet.worker.context import secede as secede
    from daskfleet.worker.nanny import Nanny as Nanny
    from daskfleet.worker.server import Worker as Worker

_WHERE = {
    "Actor": "client.actors",
    "ActorFuture": "client.actors",
    "Adaptive": "deploy.adaptive",
    "CancelledError": "exceptions",
    "Client": "client.client",
    "CondaInstall": "plugins",
    "CompatibleExecutor": "client.executor",
    "Environ": "plugins",
    "Event": "client.locks",
    "Future": "client.future",
    "HelmCluster": "deploy.kubernetes",
    "InstallPlugin": "plugins",
    "KilledWorker": "exceptions",
    "KubeCluster": "deploy.kubernetes",
    "LocalCluster": "deploy.local",
    "Lock": "client.locks",
    "MultiLock": "client.locks",
    "MPICluster": "deploy.mpi.cluster",
    "Nanny": "worker.nanny",
    "NannyPlugin": "plugins",
    "PipInstall": "plugins",
    "Queue": "client.channels",
    "Reschedule": "exceptions",
    "SSHCluster": "deploy.ssh",
    "SubprocessCluster": "deploy.subprocess",
    "Scheduler": "scheduler.server",
    "SchedulerPlugin": "plugins",
    "Security": "security",
    "Semaphore": "client.locks",
    "SpecCluster": "deploy.spec",
    "Status": "deploy.status",
    "TimeoutError": "exceptions",
    "UploadDirectory": "plugins",
    "UploadFile": "plugins",
    "Variable": "client.channels",
    "VersionMismatch": "exceptions",
    "Worker": "worker.server",
    "WorkerPlugin": "plugins",
    "adapt_cluster": "deploy.discovery",
    "as_completed": "client.waiting",
    "as_distributed": "compat",
    "connect": "comm",
    "create_cluster": "deploy.discovery",
    "default_client": "client.inside",
    "delete_cluster": "deploy.discovery",
    "discover_cluster_names": "deploy.discovery",
    "discover_clusters": "deploy.discovery",
    "fire_and_forget": "client.inside",
    "futures_of": "client.collections",
    "get_client": "client.inside",
    "get_cluster": "deploy.discovery",
    "get_snippet": "deploy.discovery",
    "get_task_metadata": "client.reports",
    "get_task_stream": "client.reports",
    "get_worker": "worker.context",
    "list_clusters": "deploy.discovery",
    "list_discovery_methods": "deploy.discovery",
    "local_client": "client.inside",
    "performance_report": "client.reports",
    "print": "client.sharing",
    "progress": "client.progress",
    "rejoin": "worker.context",
    "rpc": "comm.rpc",
    "scale_cluster": "deploy.discovery",
    "secede": "worker.context",
    "span": "client.spans",
    "sync": "loop",
    "wait": "client.waiting",
    "warn": "client.sharing",
    "worker_client": "client.inside",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'daskfleet' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"daskfleet.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
