"""Which clusters of this user there are: one file each, in ``~/.local/state/daskfleet/clusters``.

A file is a scheduler file (`daskfleet.scheduler_file`) with the manager's name and options besides, so whoever
may read it can connect (`SpecCluster.from_name`). On machines that share a home it is the same folder everywhere.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskfleet import scheduler_file
from daskfleet.exceptions import DaskfleetError
from daskfleet.security import Security

#: Seconds for a scheduler to answer when clusters are listed.
ANSWER = 3.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One cluster.

    Attributes
    ----------
    manager
        The class that made it, as ``module:name``.
    options
        Keyword arguments with which `manager` makes it again (those that JSON can hold).
    host, pid
        The process that made it.
    started
        Seconds since the epoch.
    """

    name: str
    address: str
    security: Security | None
    manager: str
    options: dict[str, Any]
    host: str
    pid: int
    started: float


def folder() -> Path:
    """Where the files are; made when it is not there, for this user alone."""
    root = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = root / "daskfleet" / "clusters"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _path(name: str) -> Path:
    if "/" in name or name.startswith("."):
        raise ValueError(f"cluster name {name!r}: it must be usable as a file name")
    return folder() / f"{name}.json"


def record(
    name: str, identity: dict[str, Any], security: Security | None, manager: type, options: dict[str, Any]
) -> None:
    """Note a running cluster."""
    about = {
        "manager": f"{manager.__module__}:{manager.__qualname__}",
        "options": {key: value for key, value in options.items() if _plain(value)},
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "recorded": time.time(),
    }
    scheduler_file.write(str(_path(name)), {**identity, "workers": {}, **about}, security or Security(token=""))


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def forget(name: str) -> None:
    """Note that a cluster has ended."""
    _path(name).unlink(missing_ok=True)


def find(name: str) -> Entry:
    """The cluster called `name`.

    Raises
    ------
    ValueError
        There is none; the message says which there are.
    """
    path = _path(name)
    try:
        content = json.loads(path.read_text())
        info = scheduler_file.read(str(path))
    except (OSError, ValueError):
        names = ", ".join(sorted(entry.name for entry in entries())) or "none"
        raise ValueError(f"no cluster is called {name!r} here; there are: {names}") from None
    return Entry(
        name=name,
        address=info.address,
        security=info.security,
        manager=str(content.get("manager", "")),
        options=dict(content.get("options", {})),
        host=str(content.get("host", "")),
        pid=int(content.get("pid", 0)),
        started=float(content.get("recorded", 0)),
    )


async def discover() -> AsyncIterator[tuple[str, type]]:
    """``(name, class)`` of the clusters that answer, for ``daskfleet list`` and dask-ctl (``dask_cluster_discovery``).

    One that does not answer and whose process on this machine is gone is forgotten.
    """
    from daskfleet.deploy.scheduler_link import RemoteLink

    async def answers(entry: Entry) -> bool:
        link = RemoteLink(entry.address, entry.security)
        try:
            async with asyncio.timeout(ANSWER):
                await link.identity()
            return True
        except (OSError, TimeoutError, DaskfleetError):
            return False
        finally:
            link.close()

    known = entries()
    for entry, alive in zip(known, await asyncio.gather(*map(answers, known)), strict=True):
        if alive:
            module, _, name = entry.manager.partition(":")
            yield entry.name, getattr(importlib.import_module(module), name)
        elif entry.host == socket.gethostname() and not Path(f"/proc/{entry.pid}").exists():
            forget(entry.name)


def entries() -> list[Entry]:
    """All that were recorded and not forgotten; one whose process was killed may be among them."""
    found = []
    for path in sorted(folder().glob("*.json")):
        try:
            found.append(find(path.stem))
        except ValueError:
            continue  # written by something else, or gone since
    return found
