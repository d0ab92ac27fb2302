"""Results of clients that are on workers, and data of theirs that is to go there."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, join
from daskfleet.scheduler.state import RUNNING, ClientState, WorkerState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

logger = logging.getLogger(__name__)


class Results:
    """Answers."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._numbers = itertools.count(1)
        self._coming: dict[int, tuple[ClientState, list[int], dict[str, WorkerState]]] = {}
        scheduler.handle("client", "locate", self.locate)
        scheduler.handle("client", "gather", self.gather)
        scheduler.handle("client", "scatter_begin", self.scatter_begin)
        scheduler.handle("client", "scatter_end", self.scatter_end)
        scheduler.on_client_gone.append(self._gone)

    async def locate(self, client: ClientState, cids: Sequence[int]) -> list[tuple[int, int, list[str]]]:
        """``(cid, id, addresses)`` of those in memory."""
        found = []
        for cid in cids:
            ts = client.futures.get(cid)
            if ts is not None and ts.holders:
                found.append((cid, ts.id, [worker.address for worker in ts.holders]))
        return found

    async def gather(self, client: ClientState, cids: Sequence[int]) -> list[tuple[int, Serialized]]:
        """The data itself, fetched from the workers on behalf of a client that cannot reach them."""
        scheduler = self._scheduler
        by_address: dict[str, dict[int, int]] = {}
        values: list[tuple[int, Serialized]] = []
        for cid in cids:
            ts = client.futures.get(cid)
            if ts is None:
                continue
            if ts.value is not None:
                values.append((cid, ts.value))
            elif ts.holders:
                by_address.setdefault(ts.holders[0].address, {})[ts.id] = cid

        async def fetch(address: str, wanted: dict[int, int]) -> None:
            try:
                rows = await scheduler._pool.call(address, "get_data", scheduler.id, list(wanted), timeout=300)
            except (OSError, TimeoutError) as error:
                logger.warning("could not fetch %d keys from %s for a client: %s", len(wanted), address, error)
                return
            for id, _, _, value in rows:
                values.append((wanted[id], join(value) if type(value) is tuple else value))

        await asyncio.gather(*(fetch(address, wanted) for address, wanted in by_address.items()))
        return values

    async def scatter_begin(
        self, client: ClientState, rows: Sequence[tuple[int, Key]], workers: Sequence[str] | None, broadcast: bool
    ) -> tuple[int, list[tuple[str, list[tuple[int, int]]]]]:
        """Where data ought to go: each piece to one worker in turn, or to all of them with `broadcast`.

        Returns
        -------
        tuple
            A number for `scatter_end`, which has to follow; and ``(address, ((position in rows, id), …))``.
        """
        scheduler = self._scheduler
        targets = [worker for worker in scheduler.select(workers) if worker.status == RUNNING]
        if not targets:
            raise TimeoutError(
                "no worker to scatter to: none is running" + ("" if workers is None else " of those named")
            )
        targets.sort(key=lambda worker: worker.nbytes)
        ids = [(position, scheduler.state.expect_data(client, cid, key)) for position, (cid, key) in enumerate(rows)]
        parts = [ids if broadcast else ids[i :: len(targets)] for i in range(len(targets))]
        if broadcast:
            tasks = scheduler.state.tasks
            scheduler.state.copies.update((tasks[id], len(targets)) for _, id in ids)
        number = next(self._numbers)
        planned = [(worker, part) for worker, part in zip(targets, parts, strict=True) if part]
        for worker, _ in planned:
            worker.expecting += 1
        self._coming[number] = client, [id for _, id in ids], {worker.address: worker for worker, _ in planned}
        return number, [(worker.address, part) for worker, part in planned]

    async def scatter_end(self, client: ClientState, number: int, kept: Sequence[tuple[str, int, int, str]]) -> None:
        """What has become of it: ``(address, id, nbytes, type name)`` for each copy that a worker keeps."""
        targets = self._coming[number][2]
        for address, id, size, kind in kept:
            self._scheduler.state.data_put(id, size, kind, targets[address])
        self._ended(number)
        self._scheduler._flush()

    def _gone(self, client: ClientState) -> None:
        for number in [number for number, (whose, _, _) in self._coming.items() if whose is client]:
            self._ended(number)

    def _ended(self, number: int) -> None:
        _, ids, targets = self._coming.pop(number)
        for worker in targets.values():
            worker.expecting -= 1
        for id in ids:
            self._scheduler.state.data_expected_no_more(id)
        self._scheduler._pulse()
