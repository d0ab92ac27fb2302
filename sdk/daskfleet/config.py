"""Settings, from dask's configuration, without importing dask when nothing is configured.

``import dask`` takes a tenth of a second of processor time. A scheduler or worker in a pod needs nothing of it but its
configuration, and there is usually none: no YAML file, and no variable but those that we know ourselves. So dask is
asked only when there is something it could answer, or when it is there anyway.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

#: Variables that cluster managers set in every pod and job; what they say is read here.
_KNOWN = {"DASK_SCHEDULER_ADDRESS": "scheduler-address", "DASK_WORKER_NAME": None}


def get(key: str, default: Any = None) -> Any:
    """The value of a key of dask's configuration, such as ``distributed.worker.memory.target``."""
    if "dask" in sys.modules or _configured():
        import dask

        return dask.config.get(key, default)
    for variable, name in _KNOWN.items():
        if name == key and variable in os.environ:
            return os.environ[variable]
    return default


@functools.cache
def _configured() -> bool:
    """Whether dask would find settings: variables of its own, or files where it looks for them."""
    if any(name.startswith("DASK_") and name not in _KNOWN for name in os.environ):
        return True
    folders = [
        Path(os.environ.get("DASK_ROOT_CONFIG", "/etc/dask")),
        Path(sys.prefix, "etc", "dask"),
        Path.home() / ".config" / "dask",
        Path.home() / ".dask",
    ]
    return any(path.suffix in (".yaml", ".yml", ".json") for folder in folders for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
