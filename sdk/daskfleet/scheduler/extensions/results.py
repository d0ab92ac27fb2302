"""Results of clients that are on workers, and data of theirs that is to go there."""

from __future__ import annotations

import asyncio
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
        scheduler.handle("client", "locate", self.locate)
        scheduler.handle("client", "gather", self.gather)
        scheduler.handle("client", "scatter", self.scatter)

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

    async def scatter(
        self, client: ClientState, rows: Sequence[tuple[int, Key, Serialized]], workers: Sequence[str], broadcast: bool
    ) -> None:
        """Put data on workers: each piece on one of them in turn, or on all of them with `broadcast`."""
        scheduler = self._scheduler
        targets = [worker for worker in scheduler.select(workers) if worker.status == RUNNING]
        if not targets:
            raise TimeoutError("no worker to scatter to: none is running" + (" of those named" if workers else ""))
        targets.sort(key=lambda worker: worker.nbytes)
        ids = {key: scheduler.state.expect_data(client, cid, key) for cid, key, _ in rows}

        async def put(worker: WorkerState, part: Sequence[tuple[int, Key, Serialized]]) -> None:
            payload = [(ids[key], key, join(data) if type(data) is tuple else data) for _, key, data in part]
            answer = await scheduler._pool.call(worker.address, "put_data", scheduler.id, payload, timeout=300)
            kept = {id: rest for id, *rest in answer}
            for _, key, _ in part:
                size, kind = kept[ids[key]]
                scheduler.state.data_put(ids[key], size, kind, worker)

        parts = [rows] * len(targets) if broadcast else [rows[i :: len(targets)] for i in range(len(targets))]
        try:
            await asyncio.gather(*(put(worker, part) for worker, part in zip(targets, parts, strict=True) if part))
        finally:
            for _, key, _ in rows:
                scheduler.state.data_expected_no_more(ids[key])
            scheduler._flush()
