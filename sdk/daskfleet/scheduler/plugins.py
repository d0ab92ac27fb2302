"""The scheduler's plugins, and those it hands to workers.

Tasks change state a few times each, and nearly always nobody watches. So there is no hook in the state machine: when
the first plugin comes that has a `transition` of its own, the two methods through which every change goes are wrapped,
and unwrapped when the last one goes.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from daskfleet.plugins import SchedulerPlugin, call
from daskfleet.protocol.frames import Buffer
from daskfleet.protocol.serialize import loads
from daskfleet.scheduler.extensions.backup import Backup, Rows
from daskfleet.scheduler.state import FORGOTTEN, ClientState, TaskState, WorkerState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

logger = logging.getLogger(__name__)

#: Seconds that one worker may take to set a plugin up.
SETUP = 600.0
#: Seconds that are waited for a worker which starts anew for a plugin's sake.
COMING_BACK = 10.0


class SchedulerPlugins:
    """By name: the scheduler's own, and the pickles of workers' and nannies' for those that are still to come."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.own: dict[str, SchedulerPlugin] = {}
        self.workers: dict[tuple[str, str], bytes] = {}  # by kind (worker or nanny) and name
        scheduler.handle("client", "plugin_register", self._register)
        scheduler.handle("client", "plugin_unregister", self._unregister)

    def __getitem__(self, name: str) -> SchedulerPlugin:
        return self.own[name]

    def __contains__(self, name: object) -> bool:
        return name in self.own

    def back_up(self, backup: Backup) -> None:
        """Have `backup` keep what clients register."""
        self._backup = backup
        backup.learn("plugin", self._learn)

    def _learn(self, rows: Rows) -> None:
        for (_, kind, name), blob in rows:
            self._backup.keep(("plugin", kind, name), blob)
            if kind == "scheduler":
                self._scheduler._spawn(_logged(self.add(loads(blob), name, True), name, "start"))
            else:
                self.workers.setdefault((kind, name), bytes(blob))
        for worker in self._scheduler.state.workers.values():  # who came before
            self._scheduler._connections[worker].send(("plugins", self.for_new_worker()))

    def notify(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Call a hook of every plugin; one that fails is logged and no trouble to the others."""
        for name, plugin in list(self.own.items()):
            method = getattr(plugin, hook, None)
            if method is None:
                continue
            try:
                value = method(*args, **kwargs)
                if inspect.isawaitable(value):
                    self._scheduler._spawn(_logged(value, name, hook))
            except Exception:
                logger.exception("%s of plugin %r failed", hook, name)

    def submitted(self, client: str, rows: Sequence[Sequence[Any]]) -> None:
        """Tell of a ``tasks`` message. Annotations and priorities are not collected for it, so there are none."""
        keys = [row[1] for row in rows]
        stimulus = f"update-graph-{client}"
        told = {"keys": set(keys), "tasks": keys, "annotations": {}, "priority": {}, "stimulus_id": stimulus}
        self.notify("update_graph", self._scheduler, client=client, **told)

    async def closing(self, hook: str) -> None:
        """Call `before_close` or `close` of every plugin and wait for them."""
        for name, plugin in list(self.own.items()):
            try:
                async with asyncio.timeout(10):
                    await call(getattr(plugin, hook))
            except Exception:
                logger.exception("%s of plugin %r failed", hook, name)

    def downscaling(self, workers: list[WorkerState]) -> list[WorkerState]:
        """Those that no plugin keeps from being closed."""
        for plugin in self.own.values():
            workers = plugin.valid_workers_downscaling(self._scheduler, workers)
        return workers

    async def add(self, plugin: SchedulerPlugin, name: str, idempotent: bool = False) -> None:
        """Start a plugin in this scheduler, in place of one of that name."""
        if name in self.own:
            if idempotent:
                return
            await self.remove(name)
        await call(plugin.start, self._scheduler)
        self.put(plugin, name)

    def put(self, plugin: SchedulerPlugin, name: str) -> None:
        """Tell a plugin of what happens from now on."""
        self.own[name] = plugin
        self._watch()

    async def remove(self, name: str) -> None:
        """Close a plugin.

        Raises
        ------
        ValueError
            There is none of that name.
        """
        plugin = self.own.pop(name, None)
        if plugin is None:
            raise ValueError(f"no scheduler plugin {name!r}; there are: {', '.join(self.own) or 'none'}")
        self._watch()
        await call(plugin.close)

    def _watch(self) -> None:
        state = self._scheduler.state
        watching = [plugin for plugin in self.own.values() if _overridden(plugin, SchedulerPlugin, "transition")]
        for name in ("_enter", "_forget"):
            state.__dict__.pop(name, None)
        if not watching:
            return
        enter, forget = state._enter, state._forget

        def tell(ts: TaskState, start: str, finish: str) -> None:
            for plugin in watching:
                try:
                    plugin.transition(ts.key, start, finish, stimulus_id="")
                except Exception:
                    logger.exception("transition of plugin %r failed", plugin)

        def watched_enter(ts: TaskState, finish: str) -> None:
            start = ts.state
            enter(ts, finish)
            tell(ts, start, finish)

        def watched_forget(ts: TaskState) -> None:
            start = ts.state
            forget(ts)
            tell(ts, start, FORGOTTEN)

        state._enter, state._forget = watched_enter, watched_forget  # type: ignore[method-assign, assignment]

    # Calls ---------------------------------------------------------------------------------------------------------

    async def _register(
        self, client: ClientState, kind: str, name: str, blob: Buffer, idempotent: bool
    ) -> list[tuple[str, str]]:
        """Register everywhere; ``(worker's address, what went wrong or "")`` for each worker."""
        if kind == "scheduler":
            await self.add(loads(blob), name, idempotent)
            self._backup.keep(("plugin", kind, name), bytes(blob))
            return []
        if idempotent and (kind, name) in self.workers:
            return []
        self.workers[kind, name] = bytes(blob)
        self._backup.keep(("plugin", kind, name), bytes(blob))
        return await self._everywhere("plugin_add", kind, name, bytes(blob))

    async def _unregister(self, client: ClientState, kind: str, name: str) -> list[tuple[str, str]]:
        self._backup.drop([("plugin", kind, name)])
        if kind == "scheduler":
            await self.remove(name)
            return []
        if self.workers.pop((kind, name), None) is None:
            names = [known for of, known in self.workers if of == kind]
            raise ValueError(f"no {kind} plugin {name!r}; there are: {', '.join(names) or 'none'}")
        return await self._everywhere("plugin_remove", kind, name)

    async def _everywhere(self, method: str, *args: Any) -> list[tuple[str, str]]:
        scheduler = self._scheduler

        async def one(worker: WorkerState) -> tuple[str, str]:
            connection = scheduler._connections.get(worker)
            try:
                if connection is not None:
                    await connection.call(method, *args, timeout=SETUP)
            except ConnectionError:  # it is gone, or starts anew, and gets the plugin when it comes back
                await scheduler.until(partial(scheduler.replaced, worker), COMING_BACK)
            except Exception as error:
                return worker.address, f"{type(error).__name__}: {error}"
            return worker.address, ""

        return await asyncio.gather(*(one(worker) for worker in list(scheduler.state.workers.values())))

    def for_new_worker(self) -> Sequence[tuple[str, str, bytes]]:
        """``(kind, name, pickle)`` of what a worker that joins has to set up."""
        return [(kind, name, blob) for (kind, name), blob in self.workers.items()]


def _overridden(plugin: Any, base: type, name: str) -> bool:
    return getattr(type(plugin), name, None) is not getattr(base, name) or name in vars(plugin)


async def _logged(value: Any, name: str, hook: str) -> None:
    try:
        await value
    except Exception:
        logger.exception("%s of plugin %r failed", hook, name)
