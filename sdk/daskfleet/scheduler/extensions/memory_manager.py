"""Runs the active memory manager now and then: ``distributed.scheduler.active-memory-manager``, `Client.amm`."""

from __future__ import annotations

import asyncio
import importlib
import logging
from typing import TYPE_CHECKING, Any

from daskfleet import config
from daskfleet.scheduler.active_memory import ActiveMemoryManager
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

logger = logging.getLogger(__name__)

_THEIRS, _OURS = "distributed.active_memory_manager", "daskfleet.scheduler.active_memory"


class MemoryManager:
    """The manager with its timer: `start`, `stop`, `run_once`, `running`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.interval = config.seconds("distributed.scheduler.active-memory-manager.interval") or 2.0
        self.manager = ActiveMemoryManager(scheduler.state)
        for options in config.get("distributed.scheduler.active-memory-manager.policies"):
            self.manager.add_policy(_policy(**options))
        self._wanted = bool(config.get("distributed.scheduler.active-memory-manager.start"))
        self._timer: asyncio.TimerHandle | None = None
        scheduler.handle("client", "amm", self.command)
        scheduler.extensions["amm"] = self
        if self._wanted:
            scheduler.on_start.append(self.start)

    @property
    def running(self) -> bool:
        """Whether it runs by itself."""
        return self._timer is not None

    def add_policy(self, policy: Any) -> None:
        """Ask this one, too (`daskfleet.scheduler.active_memory.ActiveMemoryManagerPolicy`)."""
        self.manager.add_policy(policy)

    def start(self) -> None:
        """Run every `interval` seconds."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self._tick)

    def stop(self) -> None:
        """Run no more by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def run_once(self) -> None:
        """Run now."""
        self.manager.run_once()
        self._scheduler._flush()

    def _tick(self) -> None:
        self._timer = None
        if self._scheduler.status != "running":
            return
        try:
            self.run_once()
        except Exception:
            logger.exception("a policy of the active memory manager failed")
        self.start()

    async def command(self, client: ClientState, what: str) -> bool:
        """Start, stop, run_once, or (any) say whether it runs."""
        if what in ("start", "stop", "run_once"):
            getattr(self, what)()
        return self.running


def _policy(**options: Any) -> Any:
    """From the configuration: ``{"class": name, …}``, with distributed's names for what is here as well."""
    module, _, name = options.pop("class").rpartition(".")
    return getattr(importlib.import_module(_OURS if module == _THEIRS else module), name)(**options)
