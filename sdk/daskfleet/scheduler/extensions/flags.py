"""`Event`, on the scheduler's side: flags by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskfleet.scheduler.extensions.backup import Rows
from daskfleet.scheduler.extensions.waiters import Waiters
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler


class Flags:
    """Which flags are set, and who waits for one."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._backup = scheduler.extensions["backup"]
        self._set: set[str] = set()
        self._waiters: dict[str, Waiters] = {}
        scheduler.handle("client", "event_wait", self.wait)
        scheduler.handle("client", "event_set", self.set)
        scheduler.handle("client", "event_clear", self.clear)
        scheduler.handle("client", "event_is_set", self.is_set)
        scheduler.on_client_gone.append(self._gone)
        self._backup.learn("event", self._learn)

    async def wait(self, client: ClientState, name: str, timeout: float | None) -> bool:
        """Wait for a flag; False when it was not set in time."""
        waiters = self._waiters.setdefault(name, Waiters())
        try:
            return await waiters.wait(client, lambda: name in self._set, timeout)
        finally:
            if not waiters and self._waiters.get(name) is waiters:
                del self._waiters[name]

    async def set(self, client: ClientState, name: str) -> None:
        """Set a flag."""
        await self._backup.settled()
        self._raise(name)

    def _raise(self, name: str) -> None:
        self._set.add(name)
        self._backup.keep(("event", name), True)
        if name in self._waiters:
            self._waiters[name].wake()

    async def clear(self, client: ClientState, name: str) -> None:
        """Clear a flag."""
        await self._backup.settled()
        if name in self._set:
            self._set.discard(name)
            self._backup.drop([("event", name)])

    async def is_set(self, client: ClientState, name: str) -> bool:
        """Whether a flag is set."""
        await self._backup.settled()
        return name in self._set

    def _learn(self, rows: Rows) -> None:
        for (_, name), _ in rows:
            self._raise(name)

    def _gone(self, client: ClientState) -> None:
        for waiters in list(self._waiters.values()):
            waiters.drop(client)
