"""``/metrics``: the figures for which distributed has names (its documentation, "Prometheus monitoring"), by these.

Users choose the prefixes of their tasks, so only the first `PREFIXES` of them are told apart; the rest is one series,
``other``, lest a long-lived scheduler fill the database that scrapes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daskfleet.http.prometheus import CONTENT_TYPE, Exposition
from daskfleet.scheduler.http.handler import SchedulerHandler
from daskfleet.scheduler.http.info import load
from daskfleet.scheduler.machine import SchedulerState
from daskfleet.scheduler.state import FORGOTTEN, Prefix

#: So many task prefixes have series of their own.
PREFIXES = 100


class Metrics(SchedulerHandler):
    def get(self) -> None:
        self.set_header("Content-Type", CONTENT_TYPE)
        self.write(str(exposition(self.scheduler)))


def exposition(scheduler: Any) -> Exposition:
    out = Exposition("dask_scheduler")
    state: SchedulerState = scheduler.state
    workers = list(state.workers.values())
    loads = [load(worker) for worker in workers]
    out.gauge("clients", "Number of clients connected.", len(state.clients))
    out.gauge("desired_workers", "Number of workers that the work at hand deserves.", scheduler.adaptive_target())
    by_load = {name: loads.count(name) for name in ("idle", "partially_saturated", "saturated", "paused", "closing")}
    out.gauges("workers", "Number of workers by state.", "state", {"connected": len(workers)} | by_load)
    out.gauge("threads", "Number of threads of all workers.", sum(worker.nthreads for worker in workers))
    out.gauge("memory_limit_bytes", "Memory of all workers.", sum(worker.memory_limit for worker in workers))
    out.gauge("managed_bytes", "Bytes of task results held by the workers.", sum(worker.nbytes for worker in workers))
    out.gauges("tasks", "Number of tasks known, by state.", "state", state.counts | {FORGOTTEN: state.forgotten})
    out.counter("tasks_forgotten_total", "Number of tasks that are no longer known.", state.forgotten)
    _prefixes(out, state)
    out.process()
    return out


def _prefixes(out: Exposition, state: SchedulerState) -> None:
    name = "task_prefix_name"

    def rows(value: Callable[[Prefix], float]) -> list[tuple[dict[str, str], float]]:
        sums: dict[str, float] = {}
        for i, prefix in enumerate(state.prefixes.values()):
            series = prefix.name if i < PREFIXES else "other"
            sums[series] = sums.get(series, 0) + value(prefix)
        return [({name: series}, total) for series, total in sums.items()]

    transitions: list[tuple[dict[str, str], float]] = []
    for target, value in (("memory", lambda prefix: prefix.count), ("erred", lambda prefix: prefix.erred)):
        transitions += [(labels | {"state": target}, n) for labels, n in rows(value)]
    out.counters(
        "prefix_state_totals_total", "Number of runs that ended in a state, by prefix of the task's key.", transitions
    )
    out.counters(
        "tasks_compute_seconds_total", "Seconds of successful runs, by prefix.", rows(lambda prefix: prefix.seconds)
    )
    out.counters(
        "tasks_suspicious_total",
        "Number of times that a task was running on a worker that died, by prefix.",
        rows(lambda prefix: prefix.suspicious),
    )
