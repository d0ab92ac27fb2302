"""Starting over: `Client.restart`, `Client.restart_workers`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from daskfleet.scheduler.state import CLOSING, ClientState, WorkerState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

logger = logging.getLogger(__name__)

#: So many names of workers are told to whoever names one that is not there.
SHOWN = 20


class Restarting:
    """Cancels everything; has workers start anew and waits for them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        scheduler.handle("client", "restart", self.restart)
        scheduler.handle("client", "restart_workers", self.restart_workers)

    async def restart(self, client: ClientState) -> None:
        """Cancel all tasks of all clients, and with them all data."""
        scheduler = self._scheduler
        logger.info("client %s asks for a restart", client.id)
        for other in [*scheduler.state.clients.values(), *scheduler.own_clients]:
            scheduler.state.cancel(other, list(other.futures), reason="the cluster was restarted")
        for reset in scheduler.on_restart:
            reset()
        scheduler._flush()
        scheduler.notify("restart", scheduler)

    async def restart_workers(
        self, client: ClientState, names: Sequence[str] | None, timeout: float
    ) -> list[tuple[str, str]]:
        """Start those workers anew, all for None; ``(what it was called, OK or timed out)``.

        With a `timeout` of 0 it does not wait and calls all of them OK. ValueError, and none is started anew, when one
        is not there.
        """
        scheduler = self._scheduler
        workers = scheduler.select(names)
        if unknown := set(names or ()).difference(*((worker.name, worker.address) for worker in workers)):
            there = sorted(worker.name for worker in scheduler.state.workers.values())
            shown = [*there[:SHOWN], f"and {len(there) - SHOWN} more"] if len(there) > SHOWN else there
            missing = ", ".join(map(repr, sorted(unknown)))
            raise ValueError(f"no worker {missing}; there are: {', '.join(shown) or 'none'}")
        replaced = scheduler.replaced
        await asyncio.gather(*(self._tell(worker) for worker in workers))
        await scheduler.until(lambda: all(map(replaced, workers)), timeout)
        called = {
            worker.name: name for name in names or () for worker in workers if name in (worker.name, worker.address)
        }
        return [
            (called.get(worker.name, worker.address), "OK" if not timeout or replaced(worker) else "timed out")
            for worker in workers
        ]

    async def _tell(self, worker: WorkerState) -> None:
        scheduler = self._scheduler
        connection = scheduler._connections.get(worker)
        scheduler.state.set_status(worker, CLOSING)
        scheduler._flush()
        if connection is not None:
            try:
                await connection.call("restart", timeout=30)
            except (ConnectionError, TimeoutError) as error:
                logger.info("%r did not say that it starts anew: %s", worker, error)
