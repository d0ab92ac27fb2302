"""What clients have done to tasks and workers: cancel, retry, run a function, retire workers, end it all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from daskfleet.functions import run_function
from daskfleet.protocol.serialize import Serialized, dumps, join, loads
from daskfleet.scheduler import retirement
from daskfleet.scheduler.state import PROCESSING, ClientState, WorkerState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

logger = logging.getLogger(__name__)


class Control:
    """Answers."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        scheduler.handle("client", "cancel", self.cancel)
        scheduler.handle("client", "retry", self.retry)
        scheduler.handle("client", "run", self.run)
        scheduler.handle("client", "run_on_scheduler", self.run_on_scheduler)
        scheduler.handle("client", "wait_for_workers", self.wait_for_workers)
        scheduler.handle("client", "retire_workers", self.retire_workers)
        scheduler.handle("client", "shutdown", self.shutdown)
        scheduler.handle("worker", "ping", self.ping)
        scheduler.handle("worker", "leave", self.leave)

    async def cancel(self, client: ClientState, cids: Sequence[int], force: bool, reason: str) -> None:
        scheduler = self._scheduler
        sent = [ts for ts in scheduler.state.going(client, cids, force=force) if ts.state == PROCESSING]
        where = [(ts, ts.worker) for ts in sent]
        scheduler.state.cancel(client, cids, force=force, reason=reason)
        if force:  # what nobody needs any more is stopped though it runs already
            for ts, worker in where:
                if (
                    ts.state != PROCESSING
                    and worker is not None
                    and (to := scheduler._connections.get(worker)) is not None
                ):
                    to.send(("stop", [ts.id]))
        scheduler._flush()

    async def retry(self, client: ClientState, cids: Sequence[int]) -> None:
        scheduler = self._scheduler
        scheduler.state.retry(client, cids)
        scheduler._flush()

    async def run(
        self, client: ClientState, call: Serialized, workers: Sequence[str] | None, wait: bool, nanny: bool = False
    ) -> list[tuple[str, Any]]:
        """Run a function on workers, or in the nannies of those that have one; ``(address, outcome)`` for each."""
        scheduler = self._scheduler
        call = join(call) if type(call) is tuple else call

        async def one(address: str) -> tuple[str, Any]:
            try:
                value = await scheduler._pool.call(address, "run", call, wait, nanny)
            except (OSError, TimeoutError) as error:  # of this worker alone: the others' results count
                value = dumps((False, error))
            return address, join(value) if type(value) is tuple else value

        chosen = [worker for worker in scheduler.select(workers) if not nanny or worker.info.get("nanny")]
        return await asyncio.gather(*(one(worker.address) for worker in chosen))

    async def run_on_scheduler(self, client: ClientState, call: Serialized, wait: bool) -> Serialized:
        function, args, kwargs = loads(call)
        return await run_function(function, args, kwargs, {"dask_scheduler": self._scheduler}, wait)

    async def wait_for_workers(self, client: ClientState, n: int, timeout: float | None) -> int:
        """The number of workers, as soon as it is `n` or more, or when the time is up."""
        workers = self._scheduler.state.workers
        await self._scheduler.until(lambda: len(workers) >= n, timeout)
        return len(workers)

    async def retire_workers(
        self, client: ClientState, names: Sequence[str] | None, n: int | None, close_workers: bool
    ) -> dict[str, Any]:
        scheduler = self._scheduler
        if names is None and n is None:
            n = len(retirement.idle_surplus(scheduler.state.workers.values()))
        chosen = scheduler.workers_to_close(n or 0) if names is None else scheduler.select(names)
        return await scheduler.retire_workers(chosen, close_workers=close_workers)

    async def shutdown(self, client: ClientState) -> None:
        logger.info("client %s asks the whole cluster to shut down", client.id)
        asyncio.get_running_loop().call_later(0.05, self._spawn_close)

    def _spawn_close(self) -> None:
        self._closing = asyncio.ensure_future(
            self._scheduler.close("a client shut the cluster down", close_workers=True)
        )

    async def ping(self, worker: WorkerState) -> None:
        """Nothing; the worker measures how long the answer takes."""

    async def leave(self, worker: WorkerState) -> None:
        await self._scheduler.retire_workers([worker], close_workers=False)
