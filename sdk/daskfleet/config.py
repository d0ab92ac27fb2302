"""Settings, from dask's configuration, without importing dask when nothing is configured.

``import dask`` takes a tenth of a second of processor time. A scheduler or worker in a pod needs nothing of it but its
configuration, and there is usually none: no YAML file, and no variable but those that we know ourselves. So dask is
asked only when there is something it could answer, or when it is there anyway.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: Every setting that is read, and what holds where nothing is configured (``distributed.comm.tls.*`` aside, which
#: `Security` reads: nothing). The names are distributed's. Of its others, ``scheduler.worker-saturation`` has no effect
#: since workers are sent ahead what their tasks' duration calls for, ``scheduler.locks`` since a lock is given back as
#: its holder's connection ends, and ``worker.memory.transfer`` since each peer is asked for little at a time.
DEFAULTS: dict[str, Any] = {
    "scheduler-address": None,
    "temporary-directory": None,  # where workers make their folders; the system's by default
    "distributed.logging": {},  # levels by the logger's name, for the commands
    "distributed.dashboard.link": "{protocol}://{host}:{port}/status",
    "distributed.scheduler.active-memory-manager.start": True,
    "distributed.scheduler.active-memory-manager.interval": 2.0,
    "distributed.scheduler.active-memory-manager.policies": [
        {"class": "distributed.active_memory_manager.ReduceReplicas"},
    ],
    "distributed.scheduler.allowed-failures": 3,
    "distributed.scheduler.bandwidth": 100_000_000,  # bytes a second
    "distributed.scheduler.idle-timeout": None,
    "distributed.scheduler.idle-with-clients": True,  # ours: whether it can be idle while clients are connected
    "distributed.scheduler.no-workers-timeout": None,
    "distributed.scheduler.preload": (),
    "distributed.scheduler.preload-argv": (),
    "distributed.scheduler.unknown-task-duration": 0.5,
    "distributed.scheduler.work-stealing": True,
    "distributed.scheduler.worker-ttl": 300.0,
    "distributed.worker.lifetime.duration": None,
    "distributed.worker.lifetime.stagger": 0.0,
    "distributed.worker.lifetime.restart": False,
    "distributed.worker.memory.target": 0.6,
    "distributed.worker.memory.spill": 0.7,
    "distributed.worker.memory.pause": 0.8,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.worker.memory.max-spill": None,
    "distributed.worker.memory.monitor-interval": 0.2,
    "distributed.worker.preload": (),
    "distributed.worker.preload-argv": (),
    "distributed.worker.profile.enabled": True,
    "distributed.worker.profile.interval": 0.01,
    "distributed.worker.resources": {},
    "distributed.nanny.preload": (),
    "distributed.nanny.preload-argv": (),
    # Set in the worker's process unless they are set already: its threads are the parallelism.
    "distributed.nanny.environ": {},
    "distributed.nanny.pre-spawn-environ": {
        "OMP_NUM_THREADS": 1,
        "MKL_NUM_THREADS": 1,
        "OPENBLAS_NUM_THREADS": 1,
    },
    "distributed.comm.timeouts.connect": 30.0,
    "distributed.comm.timeouts.tcp": 30.0,  # until a peer that has vanished is noticed
    "distributed.comm.compression": False,  # or auto, lz4, zstd, snappy, zlib: between machines, where both say so
    "distributed.comm.require-encryption": None,
    "distributed.adaptive.interval": 1.0,
    "distributed.adaptive.target-duration": 5.0,
    "distributed.adaptive.minimum": 0,
    "distributed.adaptive.maximum": float("inf"),
    "distributed.adaptive.wait-count": 3,
    "distributed.admin.log-length": 10_000,
}

#: Settings by the variables that cluster managers set in every pod and job; what they say is read here.
_KNOWN = {
    "DASK_SCHEDULER_ADDRESS": "scheduler-address",
    "DASK_WORKER_NAME": None,
    "DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME": None,  # for upstream's engine
    "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "distributed.comm.require-encryption",
    "DASK_DISTRIBUTED__SCHEDULER__IDLE_WITH_CLIENTS": "distributed.scheduler.idle-with-clients",
    "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": "distributed.comm.tls.ca-file",
    **{
        f"DASK_DISTRIBUTED__COMM__TLS__{role.upper()}__{part.upper()}": f"distributed.comm.tls.{role}.{part}"
        for role in ("scheduler", "worker", "client")
        for part in ("cert", "key")
    },
}


def get(key: str, default: Any = None) -> Any:
    """The value of a key of dask's configuration, such as ``distributed.worker.memory.target``.

    What nobody has configured has the value in `DEFAULTS`, or else `default`.
    """
    default = DEFAULTS.get(key, default)
    if "dask" in sys.modules or _configured():
        import dask

        return dask.config.get(key, default)
    for variable, name in _KNOWN.items():
        if name == key and variable in os.environ:
            return _interpret(os.environ[variable])
    return default


def _interpret(text: str) -> Any:
    """The value of a variable, as dask reads it: a literal of Python's or YAML's, else the text."""
    with contextlib.suppress(SyntaxError, ValueError):
        return ast.literal_eval(text)
    return {"none": None, "null": None, "false": False, "true": True}.get(text.lower(), text)


def seconds(key: str, given: float | str | None = None) -> float | None:
    """A setting that is a time, such as ``"5 minutes"`` or a number of seconds, unless one is `given`; None for
    never."""
    return as_seconds(get(key) if given is None else given)


def as_seconds(value: Any) -> float | None:
    """A time as users write it: seconds, a text such as ``"5 minutes"``, a timedelta, or None."""
    if value is None:
        return None
    if isinstance(value, str):
        return parse_seconds(value)
    return float(value.total_seconds() if hasattr(value, "total_seconds") else value)


def parse_seconds(text: str) -> float:
    """Seconds of a text such as ``"10 minutes"``, as dask reads it; for ``"60"`` and ``"60s"`` it is not imported."""
    plain = text.strip().removesuffix("s")
    if plain.replace(".", "", 1).isdecimal():
        return float(plain)
    from dask.utils import parse_timedelta

    return float(parse_timedelta(text))


def size(key: str) -> int | None:
    """A setting that is a number of bytes, such as ``"100 MB"``; None for no limit."""
    value = get(key)
    if not isinstance(value, str):
        return int(value) if value else None
    from dask.utils import parse_bytes

    return int(parse_bytes(value))


def dashboard_link(address: str) -> str:
    """Where a browser finds the live page of a scheduler whose HTTP server is at `address`.

    ``distributed.dashboard.link`` may use ``{protocol}``, ``{host}``, ``{port}`` and variables of the environment, as
    behind the proxy of a JupyterHub: ``"{JUPYTERHUB_SERVICE_PREFIX}proxy/{port}/status"``.
    """
    parts = urlsplit(address)
    names = {"protocol": parts.scheme, "scheme": parts.scheme, "host": parts.hostname, "port": parts.port}
    return str(get("distributed.dashboard.link").format_map({**os.environ, **names}))


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
    return any(_says_something(path) for folder in folders for path in _files(folder))


def _says_something(path: Path) -> bool:
    """Whether a file has settings. distributed writes one that is all comments, for users to edit."""
    if path.suffix not in (".yaml", ".yml", ".json"):
        return False
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return any(line.strip() and not line.lstrip().startswith("#") for line in path.read_text().splitlines())
    return True


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
