"""What clients, the scheduler and other workers ask of a worker; data has a file of its own (`data`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from daskfleet.functions import run_function
from daskfleet.http.logs import ring
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, loads
from daskfleet.versions import versions
from daskfleet.worker import context

if TYPE_CHECKING:
    from daskfleet.worker.server import Worker


class Answers:
    """Answers."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        for answer in (
            self.versions,
            self.logs,
            self.call_stack,
            self.profile,
            self.dump,
            self.actor,
            self.plugin_add,
            self.plugin_remove,
            self.restart,
            self.run,
            self.identity,
            self.close,
        ):
            worker.handle(answer.__name__, answer)

    async def versions(self, packages: Sequence[str] = ()) -> dict[str, str | None]:
        return versions(frozenset(packages))

    async def logs(self, nanny: bool = False) -> list[str] | None:
        """The last log lines, or the nanny's if there is one."""
        if nanny:
            return await self._worker.nanny.logs() if self._worker.nanny is not None else None
        return ring().text(self._worker.security.token).splitlines()

    async def call_stack(self, keys: Sequence[Key] | None) -> list[tuple[Key, list[str]]]:
        return self._worker._observer.call_stacks(keys)

    async def profile(
        self, prefix: str | None, start: float | None, stop: float | None, server: bool = False
    ) -> dict[str, Any]:
        """Of the tasks' threads, or of the worker's own (`server`)."""
        observer = self._worker._observer
        if server:
            return await asyncio.to_thread(observer.loop.profile, start, stop)
        return await asyncio.to_thread(observer.profile, prefix, start, stop)

    async def dump(self) -> dict[str, Any]:
        """All that is known here, as plain data."""
        machine = self._worker.machine
        return {
            **self._worker._identity(),
            "status": self._worker.status,
            "executing": machine.executing,
            "tasks": [
                {"key": task.key, "state": task.state, "attempt": task.attempt} for task in machine.tasks.values()
            ],
            "data": {str(machine.keys[id]): machine.sizes[id] for id in machine.keys},
            "fetching": [{"key": fetch.key, "from": fetch.address} for fetch in machine.fetches.values()],
            "versions": versions(),
        }

    async def actor(self, key: Key, name: str, call: Serialized | None) -> Serialized:
        return await self._worker.actors.ask(key, name, call)

    async def plugin_add(self, kind: str, name: str, blob: bytes) -> None:
        await self._worker.plugins.add(kind, name, blob)

    async def plugin_remove(self, kind: str, name: str) -> None:
        await self._worker.plugins.remove(kind, name)

    async def restart(self) -> None:
        """Start anew: as a new process where there is a nanny, else without what this one holds."""
        self._worker._spawn(self._worker._restart())

    async def run(self, call: Serialized, wait: bool, nanny: bool = False) -> Serialized:
        """Run a function of the user's outside of the task system (`Client.run`), here or in the nanny."""
        if nanny:
            outcome: Serialized = await self._worker.nanny.run(call, wait)
            return outcome
        context.coroutine.set(context.Coroutine(self._worker, None))  # of this call's own task only
        function, args, kwargs = loads(call)
        return await run_function(function, args, kwargs, {"dask_worker": self._worker}, wait)

    async def identity(self) -> dict[str, Any]:
        return self._worker._identity()

    async def close(self, reason: str) -> None:
        self._worker._spawn(self._worker.close_gracefully(reason=reason))
