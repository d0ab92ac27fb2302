"""`Semaphore`, `Lock` (a semaphore of one lease) and `MultiLock`, on the scheduler's side.

Who holds what is known to the scheduler that comes after this one, too: there, a holder has as long to come back as a
client that has lost its connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from daskfleet.scheduler.extensions.backup import Rows
from daskfleet.scheduler.extensions.waiters import Waiters
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler


def _take_back(drop: Callable[[ClientState, Any], Any], client: ClientState, lease: Any) -> None:
    """A client has given up its call for `lease`, which may have come with this message: it begins before it ends."""
    asyncio.get_running_loop().call_soon(drop, client, lease)


class _Semaphore:
    def __init__(self, max_leases: int) -> None:
        self.max_leases = max_leases
        self.leases: dict[str, ClientState] = {}
        self.asked: set[str] = set()  # leases that somebody still waits for
        self.waiters = Waiters()


class Semaphores:
    """Leases by name. A lease is named by whoever asks, so it can be taken back though its answer never arrived."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._backup = scheduler, scheduler.extensions["backup"]
        self._all: dict[str, _Semaphore] = {}
        self._backup.learn("lease", self._learn)
        scheduler.handle("client", "semaphore_acquire", self.acquire)
        scheduler.handle("client", "semaphore_release", self.release)
        scheduler.handle("client", "semaphore_value", self.value)
        scheduler.handle("client", "semaphore_close", self.close)
        scheduler.hear("client", "semaphore_drop", partial(_take_back, self._drop))
        scheduler.on_client_gone.append(self._gone)

    async def acquire(self, client: ClientState, name: str, lease: str, max_leases: int, timeout: float | None) -> bool:
        """Take a lease; False when there was none in time."""
        await self._backup.settled()
        semaphore = self._all.get(name)
        if semaphore is None:
            semaphore = self._all[name] = _Semaphore(max_leases)
        if semaphore.max_leases != max_leases:
            raise ValueError(f"semaphore {name!r} has {semaphore.max_leases} leases, not {max_leases}")

        def take() -> bool:
            if lease in semaphore.asked and lease not in semaphore.leases:
                if len(semaphore.leases) >= semaphore.max_leases:
                    return False
                semaphore.leases[lease] = client
                self._backup.keep(("lease", name, lease), (client.id, max_leases))
            return True

        semaphore.asked.add(lease)
        try:
            await semaphore.waiters.wait(client, take, timeout)
        finally:
            semaphore.asked.discard(lease)
        return lease in semaphore.leases

    async def release(self, client: ClientState, name: str, lease: str) -> bool:
        """Give a lease back; False when it was not held."""
        await self._backup.settled()
        return self._drop(client, (name, lease))

    def _drop(self, client: ClientState, lease: tuple[str, str]) -> bool:
        semaphore = self._all.get(lease[0])
        held = semaphore is not None and semaphore.leases.pop(lease[1], None) is not None
        if held:
            self._backup.drop([("lease", *lease)])
        if semaphore is not None:
            semaphore.asked.discard(lease[1])
            semaphore.waiters.wake()
            self._tidy(lease[0], semaphore)
        return held

    async def value(self, client: ClientState, name: str) -> int:
        """How many leases are taken."""
        await self._backup.settled()
        semaphore = self._all.get(name)
        return len(semaphore.leases) if semaphore is not None else 0

    async def close(self, client: ClientState, name: str) -> None:
        """Forget the semaphore and its leases."""
        await self._backup.settled()
        if (semaphore := self._all.pop(name, None)) is not None:
            self._backup.drop(("lease", name, lease) for lease in semaphore.leases)

    def _learn(self, rows: Rows) -> None:
        for (_, name, lease), (owner, max_leases) in rows:
            semaphore = self._all.setdefault(name, _Semaphore(max_leases))
            semaphore.leases[lease] = self._scheduler.expect_client(owner)
            self._backup.keep(("lease", name, lease), (owner, max_leases))

    def _gone(self, client: ClientState) -> None:
        for name, semaphore in list(self._all.items()):
            for lease in [lease for lease, owner in semaphore.leases.items() if owner is client]:
                del semaphore.leases[lease]
                self._backup.drop([("lease", name, lease)])
            semaphore.waiters.drop(client)
            self._tidy(name, semaphore)

    def _tidy(self, name: str, semaphore: _Semaphore) -> None:
        if not semaphore.leases and not semaphore.waiters and self._all.get(name) is semaphore:
            del self._all[name]


class MultiLocks:
    """Several names at once. In order of arrival: a request that waits has a claim on all of its names, so that none
    starves and no two wait for each other."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._backup = scheduler, scheduler.extensions["backup"]
        self._held: dict[str, str] = {}  # the lease that has a name
        self._owners: dict[str, ClientState] = {}
        self._requests: dict[str, tuple[list[str], int]] = {}  # in order of arrival
        self._waiters: dict[str, Waiters] = {}
        self._backup.learn("multilock", self._learn)
        scheduler.handle("client", "multilock_acquire", self.acquire)
        scheduler.handle("client", "multilock_release", self.release)
        scheduler.hear("client", "multilock_drop", partial(_take_back, self._drop))
        scheduler.on_client_gone.append(self._gone)

    async def acquire(
        self, client: ClientState, names: Sequence[str], lease: str, num_locks: int, timeout: float | None
    ) -> bool:
        """Take `num_locks` of `names`; False when they were not free in time."""
        await self._backup.settled()
        if lease in self._owners and lease not in self._requests:
            return True  # asked again after a lost connection
        self._requests[lease] = (list(names), num_locks)
        self._owners[lease] = client
        waiters = self._waiters.setdefault(lease, Waiters())
        self._grant()
        try:
            got = await waiters.wait(client, lambda: lease not in self._requests, timeout)
        finally:
            self._waiters.pop(lease, None)
        if not got:
            self._drop(client, lease)
        return lease in self._owners

    async def release(self, client: ClientState, lease: str) -> bool:
        """Give a lease's names back; False when it was not held."""
        await self._backup.settled()
        return self._drop(client, lease)

    def _drop(self, client: ClientState, lease: str) -> bool:
        held = self._owners.pop(lease, None) is not None and self._requests.pop(lease, None) is None
        self._held = {name: holder for name, holder in self._held.items() if holder != lease}
        if held:
            self._backup.drop([("multilock", lease)])
        if lease in self._waiters:
            self._waiters[lease].wake()
        self._grant()
        return held

    def _grant(self) -> None:
        claimed = set(self._held)
        for lease, (names, count) in list(self._requests.items()):
            free = [name for name in names if name not in claimed]
            if len(free) < count:
                claimed.update(names)
                continue
            claimed.update(free[:count])
            self._held.update(dict.fromkeys(free[:count], lease))
            self._backup.keep(("multilock", lease), (self._owners[lease].id, free[:count]))
            del self._requests[lease]
            if lease in self._waiters:
                self._waiters[lease].wake()

    def _learn(self, rows: Rows) -> None:
        for (_, lease), (owner, names) in rows:
            self._owners[lease] = self._scheduler.expect_client(owner)
            self._held.update(dict.fromkeys(names, lease))
            self._backup.keep(("multilock", lease), (owner, names))

    def _gone(self, client: ClientState) -> None:
        for lease in [lease for lease, owner in self._owners.items() if owner is client]:
            if lease in self._waiters:
                self._waiters[lease].drop(client)
            self._drop(client, lease)
