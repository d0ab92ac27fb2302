"""Where data is: `Client.replicate` and `Client.rebalance`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from daskfleet.protocol.messages import Key
from daskfleet.scheduler.active_memory import copy
from daskfleet.scheduler.state import MEMORY, RUNNING, ClientState, TaskState, WorkerState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

#: Seconds for all copies to arrive.
TIMEOUT = 300.0
#: Workers whose data differs from the mean by less than this share of it are balanced.
TOLERANCE = 0.05


class Data:
    """Copies data between workers."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        scheduler.handle("client", "replicate", self.replicate)
        scheduler.handle("client", "rebalance", self.rebalance)

    async def replicate(
        self, client: ClientState, keys: Sequence[Key], n: int | None, workers: Sequence[str], branching_factor: int
    ) -> None:
        """Have `n` of the workers (default all) hold each key; a copy is copied from up to `branching_factor` times at
        once."""

        def missing() -> bool:
            asked = False
            for ts in self._in_memory(keys):
                targets = self._targets(workers)
                holders = [worker for worker in targets if worker in ts.holders]
                coming = [worker for worker in targets if ts.id in worker.incoming]
                short = min(len(targets) if n is None else n, len(targets)) - len(holders) - len(coming)
                room = max(len(ts.holders), 1) * branching_factor - len(coming)
                asked = asked or short > 0 or bool(coming)
                others = [worker for worker in targets if worker not in holders and worker not in coming]
                for target in sorted(others, key=lambda worker: worker.nbytes)[: max(min(short, room), 0)]:
                    copy(self._scheduler.state, ts, target)
            return asked

        for ts in self._in_memory(keys):
            self._scheduler.state.copies[ts] = len(self._targets(workers)) if n is None else n
        await self._until_done(missing)

    async def rebalance(self, client: ClientState, keys: Sequence[Key] | None, workers: Sequence[str]) -> None:
        """Move data from the workers that hold most to those that hold least."""
        moves = self._moves(keys, self._targets(workers))
        asked: set[TaskState] = set()

        def moving() -> bool:
            left = False
            for ts, source, target in moves:
                if ts.state != MEMORY or source not in ts.holders:
                    continue
                if target in ts.holders:
                    self._scheduler.state._free(source, ts.id)
                    self._scheduler.state._forget_copy(ts, source)
                elif ts not in asked:
                    asked.add(ts)
                    copy(self._scheduler.state, ts, target)
                    left = True
                else:
                    left = left or ts.id in target.incoming
            return left

        await self._until_done(moving)

    def _moves(
        self, keys: Sequence[Key] | None, workers: list[WorkerState]
    ) -> list[tuple[TaskState, WorkerState, WorkerState]]:
        """What to move from where to where: the largest first, as long as a move brings both nearer to the mean."""
        if not workers:
            return []
        sizes = {worker: worker.nbytes for worker in workers}
        mean = sum(sizes.values()) / len(sizes)
        chosen = None if keys is None else set(keys)
        moves = []
        for source in sorted(workers, key=lambda worker: -sizes[worker]):
            for ts in sorted(source.data, key=lambda ts: -ts.nbytes):
                if sizes[source] <= mean * (1 + TOLERANCE):
                    break
                target = min(sizes, key=sizes.__getitem__)
                better = max(sizes[source] - ts.nbytes, sizes[target] + ts.nbytes) < sizes[source]
                if better and not ts.pinned and ts.holders == (source,) and (chosen is None or ts.key in chosen):
                    sizes[source] -= ts.nbytes
                    sizes[target] += ts.nbytes
                    moves.append((ts, source, target))
        return moves

    async def _until_done(self, step: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while step():
            self._scheduler._flush()
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not all copies have arrived within {TIMEOUT:g} s")
            await self._scheduler._change(min(left, 1.0))
        self._scheduler._flush()

    def _in_memory(self, keys: Sequence[Key]) -> list[TaskState]:
        known = self._scheduler.state.keys
        return [ts for key in keys if (ts := known.get(key)) is not None and ts.state == MEMORY and ts.holders]

    def _targets(self, names: Sequence[str] | None) -> list[WorkerState]:
        return [worker for worker in self._scheduler.select(names) if worker.status == RUNNING]
