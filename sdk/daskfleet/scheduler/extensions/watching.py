"""Records of what ran where and when, for clients that watch (`get_task_stream`, `performance_report`)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from daskfleet.scheduler.state import ClientState, WorkerState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

#: Records that are kept.
LENGTH = 100_000


class Watching:
    """Records tasks from when the first client asks until the last that did is gone.

    Workers report how long a task took and not when, so it ends here when its report comes.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._records: deque[dict[str, Any]] = deque(maxlen=LENGTH)
        self._watchers: dict[ClientState, None] = {}
        scheduler.handle("client", "watch", self.watch)
        scheduler.handle("client", "watched", self.watched)
        scheduler.on_client_gone.append(self._gone)

    async def watch(self, client: ClientState) -> float:
        """Record from now on; the scheduler's time."""
        if not self._watchers:
            self._scheduler.on_ended.append(self._ended)
        self._watchers[client] = None
        return time.time()

    async def watched(
        self, client: ClientState, start: float | None, stop: float | None, count: int | None
    ) -> list[dict[str, Any]]:
        """The records of tasks that ended between two times, the last `count` of them; recording goes on."""
        await self.watch(client)
        chosen = [
            record
            for record in self._records
            if (start is None or record["stop"] >= start) and (stop is None or record["start"] <= stop)
        ]
        return chosen if count is None else chosen[-count:]

    def _ended(self, worker: WorkerState, op: str, rows: Sequence[Any]) -> None:
        now, tasks = time.time(), self._scheduler.state.tasks
        for row in rows:
            ts = tasks.get(row[0])
            if ts is None or ts.worker is not worker:
                continue
            done = op == "done"
            seconds = row[3] if done else row[5]
            self._records.append(
                {
                    "key": ts.key,
                    "name": ts.prefix.name,
                    "worker": worker.address,
                    "start": now - seconds,
                    "stop": now,
                    "status": "OK" if done else "error",
                    "nbytes": row[2] if done else 0,
                    "type": row[4] if done else None,
                    "error": None if done else row[4],
                }
            )

    def _gone(self, client: ClientState) -> None:
        if self._watchers.pop(client, 0) is None and not self._watchers:
            self._scheduler.on_ended.remove(self._ended)
            self._records.clear()
