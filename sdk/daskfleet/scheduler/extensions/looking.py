"""What clients look at: sizes, logs, versions, what the workers say of themselves, and the whole state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from daskfleet.dump import without, write_dump
from daskfleet.http.logs import ring
from daskfleet.profiles import LoopSampler, interval
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import join
from daskfleet.scheduler.state import ClientState, TaskState
from daskfleet.versions import versions

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

logger = logging.getLogger(__name__)

#: Seconds that a worker has for an answer.
PATIENCE = 30.0


class Looking:
    """Answers."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._sampler: LoopSampler | None = None
        ring()  # the last log lines are kept from now on
        scheduler.handle("client", "ask_workers", self.ask_workers)
        scheduler.handle("client", "dump", self.dump)
        scheduler.handle("client", "nbytes", self.nbytes)
        scheduler.handle("client", "logs", self.logs)
        scheduler.handle("client", "versions", self.versions)
        scheduler.handle("client", "profile", self.profile)
        scheduler.handle("client", "tasks", self.tasks)
        scheduler.handle("client", "who_has", self.who_has)
        scheduler.handle("client", "has_what", self.has_what)
        scheduler.handle("client", "processing", self.processing)

    async def ask_workers(
        self, client: ClientState | None, names: Sequence[str] | None, method: str, *args: Any
    ) -> list[tuple[str, Any]]:
        """``(address, answer)`` of each worker that gives one in time."""

        async def one(address: str) -> tuple[str, Any] | None:
            try:
                value = await self._scheduler._pool.call(address, method, *args, timeout=PATIENCE)
            except (OSError, TimeoutError) as error:
                if self._scheduler.status == "running":
                    logger.warning("worker %s did not answer %r: %s", address, method, error)
                return None
            return address, join(value) if type(value) is tuple else value

        answers = await asyncio.gather(*(one(worker.address) for worker in self._scheduler.select(names)))
        return [answer for answer in answers if answer is not None]

    async def profile(self, client: ClientState, start: float | None, stop: float | None) -> dict[str, Any]:
        """Where this scheduler's own thread has spent its time."""
        if self._sampler is None:
            self._sampler = LoopSampler(interval(), lambda: self._scheduler.status == "running")
        return await asyncio.to_thread(self._sampler.profile, start, stop)

    async def dump(
        self,
        client: ClientState,
        versions: dict[str, Any],
        exclude: Sequence[str],
        file: tuple[str, str, dict[str, Any]] | None,
    ) -> Any:
        """All that scheduler and workers know: as plain data, or the name of the file that it was written to."""
        scheduler = {
            **self._scheduler.identity(),
            "tasks": await self.tasks(client, None),
            "events": await self._scheduler.extensions["events"].get(client, "all"),
        }
        workers = dict(await self.ask_workers(client, None, "dump"))
        state = without(frozenset(exclude), {"scheduler": scheduler, "workers": workers, "versions": versions})
        if file is None:
            return state
        name, format, storage_options = file
        return await asyncio.to_thread(write_dump, name, format, state, storage_options)

    async def nbytes(self, client: ClientState, keys: Sequence[Key] | None, summary: bool) -> list[tuple[Any, int]]:
        """Bytes of each key in memory, or summed up by kind of task."""
        tasks = [ts for ts in self._chosen(keys) if ts.holders]
        if not summary:
            return [(ts.key, ts.nbytes) for ts in tasks]
        sums: dict[str, int] = {}
        for ts in tasks:
            sums[ts.prefix.name] = sums.get(ts.prefix.name, 0) + ts.nbytes
        return list(sums.items())

    async def logs(self, client: ClientState) -> list[str]:
        """The scheduler's last log lines."""
        return ring().text(self._scheduler.security.token).splitlines()

    async def versions(self, client: ClientState, packages: Sequence[str] = ()) -> dict[str, str | None]:
        """The scheduler's versions."""
        return versions(frozenset(packages))

    async def tasks(self, client: ClientState, keys: Sequence[Key] | None) -> list[dict[str, Any]]:
        """All that is known of tasks, as plain data."""
        return [
            {
                "key": ts.key,
                "state": ts.state,
                "prefix": ts.prefix.name,
                "priority": ts.priority,
                "dependencies": [dep.key for dep in ts.dependencies],
                "waiters": ts.waiters,
                "wanted_by": [wanting.id for wanting in ts.wants],
                "who_has": [worker.address for worker in ts.holders],
                "processing_on": ts.worker.address if ts.worker is not None else None,
                "nbytes": ts.nbytes,
                "type": ts.type,
                "attempts": ts.attempt,
                "retries": ts.retries,
                "error": ts.failure.text if ts.failure is not None else None,
            }
            for ts in self._chosen(keys)
        ]

    async def who_has(self, client: ClientState, keys: Sequence[Key] | None) -> list[tuple[Key, list[str]]]:
        """The addresses of the workers that hold each key."""
        return [(ts.key, [worker.address for worker in ts.holders]) for ts in self._chosen(keys)]

    async def has_what(self, client: ClientState, workers: Sequence[str] | None) -> list[tuple[str, list[Key]]]:
        """The keys that each worker holds."""
        return [(worker.address, [ts.key for ts in worker.data]) for worker in self._scheduler.select(workers)]

    async def processing(self, client: ClientState, workers: Sequence[str] | None) -> list[tuple[str, list[Key]]]:
        """The keys that each worker was sent and has not finished."""
        return [(worker.address, [ts.key for ts in worker.processing]) for worker in self._scheduler.select(workers)]

    def _chosen(self, keys: Sequence[Key] | None) -> list[TaskState]:
        known = self._scheduler.state.keys
        return list(known.values()) if keys is None else [known[key] for key in keys if key in known]
