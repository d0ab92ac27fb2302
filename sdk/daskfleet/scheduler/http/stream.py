"""What ran where in the last half second, for the task stream; only while somebody watches.

Workers report how long a task took, not when it started, so a task ends here when its report comes. Tasks shorter than
`SHORT` are summed up by worker and prefix: at ten thousand a second no eye could tell them apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from daskfleet.scheduler.machine import SchedulerState
from daskfleet.scheduler.state import WorkerState

#: Seconds from which a task is a bar of its own.
SHORT = 0.1
#: Bars of their own in one frame.
BARS = 1000


class TaskStream:
    """Gathers runs (`ended`) until they are taken (`take`)."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._bars: list[tuple[str, str, float, float]] = []
        self._sums: dict[tuple[str, str], list[float]] = {}

    def ended(self, worker: WorkerState, op: str, rows: Sequence[Any]) -> None:
        """`worker` reports these as done (or ``erred``); called before the state is told, which may forget them."""
        if op != "done":
            return
        now, tasks = time.time(), self._state.tasks
        for row in rows:
            ts = tasks.get(row[0])
            if ts is None or ts.worker is not worker:
                continue
            seconds, prefix = row[3], ts.prefix.name
            if seconds >= SHORT and len(self._bars) < BARS:
                self._bars.append((worker.name, prefix, now - seconds, now))
                continue
            total = self._sums.get((worker.name, prefix))
            if total is None:
                total = self._sums[worker.name, prefix] = [0, 0.0]
            total[0] += 1
            total[1] += seconds

    def take(self) -> dict[str, Any]:
        """``{"bars": [(worker, prefix, start, end)], "sums": [(worker, prefix, runs, seconds)]}`` since last time."""
        bars, self._bars = self._bars, []
        sums, self._sums = self._sums, {}
        return {"bars": bars, "sums": [(*names, *total) for names, total in sums.items()]}
