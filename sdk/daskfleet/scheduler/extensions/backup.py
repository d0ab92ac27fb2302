"""What clients leave here by name, for the scheduler that comes after this one.

Variables, queues, events, metadata and published datasets are rows, a key and a value, which a few workers keep beside
the data they hold. A worker that comes over from a scheduler that is gone brings its rows with it, and the first that
does is believed: each of them was told every change. Until it has come, whoever asks is made to wait for a moment. So
these outlive the scheduler unless all those workers end in the same moment as it does, and a change costs one small
message for each of them, however many workers there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from daskfleet.scheduler.state import WorkerState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

#: The subject, and what it goes by there.
RowKey = tuple[Any, ...]
Rows = list[tuple[RowKey, Any]]

#: Workers that keep the rows.
COPIES = 3
#: Seconds that workers with rows are waited for when others have come from a scheduler that is gone.
PATIENCE = 5.0


class Backup:
    """The rows, in the order in which they were last changed, and the workers that keep them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._rows: dict[RowKey, Any] = {}
        self._holders: list[WorkerState] = []
        self._learners: dict[str, Callable[[Rows], None]] = {}
        self._learned, self._give_up_at = False, 0.0
        scheduler.on_worker.append(self._learn)
        scheduler.on_joined.append(self._joined)
        scheduler.on_left.append(self._left)

    def learn(self, subject: str, learner: Callable[[Rows], None]) -> None:
        """Call `learner` with the rows of a subject that a worker has brought; it keeps those it has use for."""
        self._learners[subject] = learner

    def keep(self, key: RowKey, value: Any) -> None:
        """Put a row in place of the one of this key; None for none."""
        self._rows.pop(key, None)
        if value is not None:
            self._rows[key] = value
        for worker in self._holders:
            if (connection := self._scheduler._connections.get(worker)) is not None:  # else it is about to be left out
                connection.send(("remember", [(key, value)]))

    def drop(self, keys: Iterable[RowKey]) -> None:
        """Forget rows."""
        for key in keys:
            self.keep(key, None)

    async def settled(self) -> None:
        """Wait until a scheduler that was here before has been learned from."""
        if self._learned or not self._scheduler.state.adopting:
            return
        self._give_up_at = self._give_up_at or time.monotonic() + PATIENCE
        left = max(0.0, self._give_up_at - time.monotonic())
        await self._scheduler.until(lambda: self._learned or not self._scheduler.state.adopting, left)

    def _learn(self, info: dict[str, Any]) -> None:
        rows = info.get("remembered")
        if rows is None or self._learned:
            return
        self._learned = True
        for subject, learner in self._learners.items():
            learner([(key, value) for key, value in rows if key[0] == subject])

    def _joined(self, worker: WorkerState) -> None:
        chosen = len(self._holders) < COPIES
        if chosen:
            self._holders.append(worker)
        rows = list(self._rows.items()) if chosen else None
        self._scheduler._connections[worker].send(("remember_all", rows))

    def _left(self, worker: WorkerState) -> None:
        if worker in self._holders:
            self._holders.remove(worker)
            others = (other for other in self._scheduler.state.workers.values() if other not in self._holders)
            if (heir := next(others, None)) is not None:
                self._joined(heir)
