"""Which clusters of this user there are: one file each, in ``~/.local/state/daskfleet/clusters``.

A file is a scheduler file (`daskfleet.scheduler_file`) with the manager's name and options besides, so whoever
may read it can connect (`SpecCluster.from_name`). On machines that share a home it is the same folder everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskfleet import scheduler_file
from daskfleet.deploy.discovery import FoundCluster, Read
from daskfleet.exceptions import DaskfleetError
from daskfleet.security import Security

if TYPE_CHECKING:
    from daskfleet.deploy.cluster import Logs
    from daskfleet.deploy.scheduler_link import RemoteLink

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


@dataclass
class RecordedCluster(FoundCluster):
    """A cluster of which there is a file; its scheduler is asked directly."""

    entry: Entry | None = None

    @classmethod
    async def of(cls, entry: Entry) -> RecordedCluster | None:
        """From the file and what the scheduler says; None, and no file any more, when the cluster is gone."""
        from daskfleet.deploy.spec import SpecCluster

        made_by = entry.manager.rpartition(":")[2]
        created = datetime.fromtimestamp(entry.started, UTC)
        try:
            async with asyncio.timeout(ANSWER), _linked(entry) as link:
                workers = len((await link.identity())["workers"])
        except (OSError, TimeoutError, DaskfleetError):
            if entry.host == socket.gethostname() and not Path(f"/proc/{entry.pid}").exists():
                forget(entry.name)
                return None
            return cls(entry.name, SpecCluster, "Unreachable", None, None, created, entry.address, made_by, entry)
        module, _, name = entry.manager.partition(":")
        manager = getattr(importlib.import_module(module), name)
        if not issubclass(manager, SpecCluster):
            manager = SpecCluster
        return cls(entry.name, manager, "Running", workers, workers, created, entry.address, made_by, entry)

    @property
    def _known(self) -> Entry:
        assert self.entry is not None
        if self.status == "Unreachable":
            where = f"process {self.entry.pid} on {self.entry.host}"
            raise DaskfleetError(f"the scheduler of {self.name} at {self.address} does not answer; {where} made it")
        return self.entry

    def _only_there(self, what: str) -> DaskfleetError:
        where = f"process {self._known.pid} on {self._known.host}"
        return DaskfleetError(f"{self.made_by} {self.name} can be {what} only by the program that made it, {where}")

    async def _scale(self, n: int, worker_group: str) -> None:
        if not self.manager.reattaches or worker_group != "default":
            raise self._only_there("scaled")
        async with self._opened() as cluster:
            await cluster.scale(n)
            await cluster._correct_state(raising=True)

    async def _adapt(self, minimum: int, maximum: float, enabled: bool) -> Any:
        if not self.manager.reattaches:
            raise self._only_there("adapted")
        return await super()._adapt(minimum, maximum, enabled)

    async def _delete(self) -> None:
        entry = self._known
        if self.manager.reattaches:
            async with self._opened(shutdown_on_close=True):
                pass
        else:
            async with _linked(entry) as link:
                await link.shut_down()
        forget(self.name)

    @contextlib.asynccontextmanager
    async def _reading(self, scheduler: bool, workers: bool) -> AsyncIterator[Read]:
        from daskfleet.client.client import Client
        from daskfleet.deploy.cluster import Log, Logs
        from daskfleet.deploy.scheduler_link import TIMEOUT

        async def read(lines: int | None) -> Logs:
            logs = Logs()
            if scheduler:
                logs["Scheduler"] = Log(_text(await client.get_scheduler_logs(lines)))
            if workers:
                told = await client.get_worker_logs(lines)
                logs.update({address: Log(_text(entries)) for address, entries in told.items()})
            return logs

        entry = self._known
        settings: dict[str, Any] = {"asynchronous": True, "set_as_default": False, "timeout": TIMEOUT}
        async with Client(entry.address, security=entry.security, **settings) as client:
            yield read

    @contextlib.asynccontextmanager
    async def _dashboard(self) -> AsyncIterator[tuple[str, bool]]:
        async with _linked(self._known) as link:
            await link.identity()
            yield f"{link.http_address}/status" if link.http_address else "", True


def _text(entries: Any) -> str:
    """Log entries, ``(level, line)`` each, as the text they were."""
    return "\n".join(line for _, line in entries)


@contextlib.asynccontextmanager
async def _linked(entry: Entry) -> AsyncIterator[RemoteLink]:
    from daskfleet.deploy.scheduler_link import RemoteLink

    link = RemoteLink(entry.address, entry.security)
    try:
        yield link
    finally:
        link.close()


async def discover() -> AsyncIterator[FoundCluster]:
    """Entry point ``dask_cluster_discovery``: the clusters that this user's files tell of.

    One that does not answer and whose process on this machine is gone is forgotten.
    """
    for found in await asyncio.gather(*map(RecordedCluster.of, entries())):
        if found is not None:
            yield found


def entries() -> list[Entry]:
    """All that were recorded and not forgotten; one whose process was killed may be among them."""
    found = []
    for path in sorted(folder().glob("*.json")):
        try:
            found.append(find(path.stem))
        except ValueError:
            continue  # written by something else, or gone since
    return found
