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
    from daskfleet.client.client import Client as Client
    from daskfleet.client.client import futures_of as futures_of
    from daskfleet.client.future import Future as Future
    from daskfleet.client.waiting import as_completed as as_completed
    from daskfleet.client.waiting import wait as wait
    from daskfleet.deploy.kubernetes import KubeCluster as KubeCluster
    from daskfleet.deploy.local import LocalCluster as LocalCluster
    from daskfleet.exceptions import CancelledError as CancelledError
    from daskfleet.exceptions import KilledWorker as KilledWorker
    from daskfleet.scheduler.server import Scheduler as Scheduler
    from daskfleet.security import Security as Security
    from daskfleet.worker.context import get_worker as get_worker
    from daskfleet.worker.nanny import Nanny as Nanny
    from daskfleet.worker.server import Worker as Worker

_WHERE = {
    "CancelledError": "exceptions",
    "Client": "client.client",
    "Future": "client.future",
    "KilledWorker": "exceptions",
    "KubeCluster": "deploy.kubernetes",
    "LocalCluster": "deploy.local",
    "Nanny": "worker.nanny",
    "Scheduler": "scheduler.server",
    "Security": "security",
    "Worker": "worker.server",
    "as_completed": "client.waiting",
    "futures_of": "client.client",
    "get_worker": "worker.context",
    "wait": "client.waiting",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'daskfleet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"daskfleet.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
