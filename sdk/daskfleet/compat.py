"""``import distributed`` without distributed: see `as_distributed`.

The modules below hold what programs import from distributed's submodules, by the names these have there. Each is made
when it is first imported, by a finder that stands last in line: an installed distributed always comes before it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

#: Processes that find this variable set alias themselves: workers do, so that tasks may import distributed too.
VARIABLE = "DASKFLEET_AS_DISTRIBUTED"

_PLUGINS = (
    "CondaInstall",
    "Environ",
    "InstallPlugin",
    "NannyPlugin",
    "PipInstall",
    "SchedulerPlugin",
    "UploadDirectory",
    "UploadFile",
    "WorkerPlugin",
)
#: What each module has: names of `daskfleet`, or submodules (in which case there is nothing to list).
MODULES: dict[str, tuple[str, ...]] = {
    "active_memory_manager": ("ActiveMemoryManagerPolicy", "ReduceReplicas"),
    "actor": ("Actor", "ActorFuture"),
    "client": (
        "CancelledError",
        "Client",
        "CompatibleExecutor",
        "Future",
        "as_completed",
        "default_client",
        "fire_and_forget",
        "futures_of",
        "get_task_stream",
        "performance_report",
        "wait",
    ),
    "comm": ("connect",),
    "core": ("Status", "connect"),
    "deploy": ("Adaptive", "LocalCluster", "SSHCluster", "SpecCluster", "SubprocessCluster"),
    "deploy.adaptive": ("Adaptive",),
    "deploy.cluster": ("Cluster",),
    "deploy.local": ("LocalCluster",),
    "deploy.spec": ("ProcessInterface", "SpecCluster"),
    "deploy.ssh": ("SSHCluster",),
    "deploy.subprocess": ("SubprocessCluster",),
    "diagnostics": ("progress",),
    "diagnostics.plugin": _PLUGINS,
    "diagnostics.progressbar": ("progress",),
    "event": ("Event",),
    "exceptions": ("Reschedule",),
    "lock": ("Lock",),
    "multi_lock": ("MultiLock",),
    "nanny": ("Nanny",),
    "queues": ("Queue",),
    "scheduler": ("KilledWorker", "Scheduler"),
    "security": ("Security",),
    "semaphore": ("Semaphore",),
    "utils": ("CancelledError", "TimeoutError", "iscoroutinefunction", "sync"),
    "variable": ("Variable",),
    "worker": ("Reschedule", "Worker", "get_client", "get_worker", "print", "secede", "warn"),
    "worker_client": ("get_client", "get_worker", "local_client", "rejoin", "secede", "worker_client"),
}
#: Needs more than the plain installation, so that ``from distributed import *`` has to do without.
_EXTRA = ("KubeCluster",)
_ELSEWHERE = {
    "ActiveMemoryManagerPolicy": "daskfleet.scheduler.active_memory",
    "ReduceReplicas": "daskfleet.scheduler.active_memory",
    "Cluster": "daskfleet.deploy.cluster",
    "ProcessInterface": "daskfleet.deploy.spec",
}


def iscoroutinefunction(function: Any) -> bool:
    """Whether calling it gives a coroutine; `functools.partial` and the like are looked into."""
    while not inspect.iscoroutinefunction(function) and hasattr(function, "func"):
        function = function.func
    return inspect.iscoroutinefunction(function)


def as_distributed() -> bool:
    """Let ``import distributed`` and ``from dask.distributed import Client`` give what is here.

    Call it before anything else uses dask. In this process's workers it holds too.

    Returns
    -------
    bool
        False where distributed is installed: then nothing changes, and ``import distributed`` is that.

    Examples
    --------
    >>> import daskfleet
    >>> daskfleet.as_distributed()  # doctest: +SKIP
    True
    >>> from dask.distributed import Client  # doctest: +SKIP
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        if importlib.util.find_spec("distributed") is not None:
            return False
        sys.meta_path.append(_Finder())
        os.environ[VARIABLE] = "1"
        base = sys.modules.get("dask.base")
        if base is not None:  # it may have looked for distributed, in vain, and remembers that
            base._DISTRIBUTED_AVAILABLE = None  # type: ignore[attr-defined]
    return True


class _Finder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        root, _, rest = fullname.partition(".")
        if root != "distributed" or (rest and rest not in MODULES):
            return None
        is_package = not rest or f"{rest}." in ".".join(MODULES)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=is_package)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Alias(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        import daskfleet

        _, _, rest = module.__name__.partition(".")
        names = MODULES[rest] if rest else tuple(name for name in daskfleet.__all__ if name not in _EXTRA)
        module.__dict__["__all__"] = list(names)
        module.__dict__["__version__"] = daskfleet.__version__


class _Alias(ModuleType):
    """One of distributed's modules."""

    def __getattr__(self, name: str) -> Any:
        root, _, rest = self.__name__.partition(".")
        inner = f"{rest}.{name}" if rest else name
        if name in vars(self).get("__all__", ()):
            value = self._find(name)
        elif inner in MODULES:
            value = importlib.import_module(f"{root}.{inner}")
        else:
            raise AttributeError(f"daskfleet's {self.__name__} has no {name!r}")
        vars(self)[name] = value
        return value

    @staticmethod
    def _find(name: str) -> Any:
        if name == "iscoroutinefunction":
            return iscoroutinefunction
        return getattr(importlib.import_module(_ELSEWHERE.get(name, "daskfleet")), name)
