"""A worker's plugins: set up before its first task, torn down when it closes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from daskfleet.plugins import WorkerPlugin, call
from daskfleet.protocol.frames import Buffer
from daskfleet.protocol.serialize import loads

if TYPE_CHECKING:
    from daskfleet.worker.machine import Task
    from daskfleet.worker.server import Worker

logger = logging.getLogger(__name__)


class WorkerPlugins:
    """By name. What is meant for the nanny is passed on to it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.own: dict[str, WorkerPlugin] = {}
        self._blobs: dict[str, bytes] = {}

    async def add(self, kind: str, name: str, blob: Buffer) -> None:
        """Set a plugin up, in place of one of that name."""
        if kind == "nanny":
            if self._worker.nanny is not None:
                await self._worker.nanny.plugin_add(name, bytes(blob))
            return
        await self.remove(kind, name)
        await self.put(loads(blob), name, bytes(blob))

    async def put(self, plugin: WorkerPlugin, name: str, blob: bytes = b"") -> None:
        """Set up a plugin that is here, and came as `blob` if it came from elsewhere."""
        await call(plugin.setup, self._worker)
        self.own[name], self._blobs[name] = plugin, blob
        self._watch()

    async def add_all(self, rows: Sequence[tuple[str, str, Buffer]]) -> None:
        """Set up what was registered before this worker came, or came back; one that fails is logged."""
        for kind, name, blob in rows:
            if kind == "worker" and name in self.own and self._blobs[name] == blob:
                continue
            try:
                await self.add(kind, name, blob)
            except Exception:
                logger.exception("setting up plugin %r failed", name)

    async def remove(self, kind: str, name: str) -> None:
        """Tear a plugin down, if there is one of that name."""
        if kind == "nanny":
            if self._worker.nanny is not None:
                await self._worker.nanny.plugin_remove(name)
            return
        plugin = self.own.pop(name, None)
        if plugin is not None:
            self._watch()
            await call(plugin.teardown, self._worker)

    async def close(self) -> None:
        """Tear all of them down."""
        for name in list(self.own):
            try:
                await self.remove("worker", name)
            except Exception:
                logger.exception("tearing down plugin %r failed", name)

    def _watch(self) -> None:
        """Have the machine tell of transitions, if a plugin wants them: its methods are wrapped for that long."""
        machine = self._worker.machine
        watching = [plugin for plugin in self.own.values() if type(plugin).transition is not WorkerPlugin.transition]
        for name in ("_make_ready", "finished", "failed"):
            machine.__dict__.pop(name, None)
        if not watching:
            return

        def tell(task: Task, start: str, finish: str) -> None:
            for plugin in watching:
                try:
                    plugin.transition(task.key, start, finish)
                except Exception:
                    logger.exception("transition of plugin %r failed", plugin)

        def watched(name: str, finish: str) -> None:
            original = getattr(machine, name)

            def method(task: Task, *args: Any) -> None:
                start = task.state
                original(task, *args)
                tell(task, start, finish)

            setattr(machine, name, method)

        watched("_make_ready", "ready")
        watched("finished", "memory")
        watched("failed", "error")
