"""``/json`` and ``/info/main``: the cluster at this moment, for scripts and for whoever has no JavaScript."""

from __future__ import annotations

import itertools
import time
from typing import Any

from daskfleet.http.info import InfoPage
from daskfleet.scheduler.http.handler import SchedulerHandler
from daskfleet.scheduler.machine import SchedulerState
from daskfleet.scheduler.state import (
    ERRED,
    MEMORY,
    NO_WORKER,
    PROCESSING,
    QUEUED,
    RELEASED,
    RUNNING,
    WAITING,
    Failure,
    WorkerState,
)

#: So many failed tasks are looked at for the page of exceptions.
FAILURES = 10_000


def load(worker: WorkerState) -> str:
    """``idle``, ``partially_saturated`` or ``saturated`` (it was sent more than it has threads); else its status."""
    if worker.status != RUNNING:
        return worker.status
    n = len(worker.processing)
    if n == 0:
        return "idle"
    return "saturated" if n + worker.backlog > worker.nthreads else "partially_saturated"


class Identity(SchedulerHandler):
    def get(self) -> None:
        self.write_json(self.scheduler.identity())


class Counts(SchedulerHandler):
    """The fields of distributed's ``counts.json``, and ``queued``."""

    def get(self) -> None:
        state, counts = self.scheduler.state, self.scheduler.state.counts
        workers = list(state.workers.values())
        loads = [load(worker) for worker in workers]
        self.write_json(
            {
                "bytes": sum(worker.nbytes for worker in workers),
                "clients": len(state.clients),
                "cores": sum(worker.nthreads for worker in workers),
                "desired_workers": self.scheduler.adaptive_target(),
                "erred": counts[ERRED],
                "hosts": len({worker.info.get("host") for worker in workers}),
                "idle": loads.count("idle"),
                "memory": counts[MEMORY],
                "processing": counts[PROCESSING],
                "queued": counts[QUEUED],
                "released": counts[RELEASED],
                "saturated": loads.count("saturated"),
                "tasks": len(state.tasks),
                "unrunnable": counts[NO_WORKER],
                "waiting": counts[WAITING] + counts[QUEUED],
                "waiting_data": counts[WAITING],
                "workers": len(workers),
            }
        )


class SchedulerPage(InfoPage, SchedulerHandler):
    pass


class WorkersPage(SchedulerPage):
    def get(self) -> None:
        from dask.utils import format_bytes

        now = time.monotonic()

        def row(worker: WorkerState) -> tuple[Any, ...]:
            memory = worker.metrics.get("memory", 0)
            limit = format_bytes(worker.memory_limit) if worker.memory_limit else "no limit"
            return (
                worker.name,
                worker.address,
                worker.status,
                worker.nthreads,
                f"{worker.metrics.get('cpu', 0):.0f} %",
                f"{format_bytes(memory)} of {limit}",
                format_bytes(worker.nbytes),
                len(worker.processing),
                len(worker.data),
                f"{max(now - worker.last_seen, 0):.1f} s ago",
            )

        columns = ("Name", "Address", "Status", "Threads", "CPU", "Memory", "Results", "Processing", "Keys", "Seen")
        rows = [row(worker) for worker in self.scheduler.state.workers.values()]
        self.show("Workers", columns=columns, rows=rows, nothing="No workers are connected.")


class ExceptionsPage(SchedulerPage):
    """What failed, without the tracebacks: those are pickles, which the scheduler never opens."""

    def get(self) -> None:
        rows = [(failure.key, failure.text, affected) for failure, affected in failures(self.scheduler.state)]
        self.show(
            "Exceptions",
            columns=("Task", "Exception", "Tasks that failed by it"),
            rows=rows,
            nothing="No task that is still known has failed.",
            note="The traceback is with the future: future.traceback() in the client.",
        )


def failures(state: SchedulerState, limit: int = FAILURES) -> list[tuple[Failure, int]]:
    """Each failure that a known task has, with the number of such tasks, looking at the first `limit` of them."""
    if not state.counts[ERRED]:
        return []
    counted: dict[int, tuple[Failure, int]] = {}
    erred = (ts for ts in state.tasks.values() if ts.state == ERRED)
    for ts in itertools.islice(erred, limit):
        if ts.failure is not None:
            counted[id(ts.failure)] = (ts.failure, counted.get(id(ts.failure), (ts.failure, 0))[1] + 1)
    return list(counted.values())
