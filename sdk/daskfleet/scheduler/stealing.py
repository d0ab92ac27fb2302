"""Work for workers that have run dry.

Most tasks that wait are still here, in a queue for one worker: an idle worker takes the most urgent of them if bringing
its inputs over costs less than the wait it is spared. Only what was already sent to a busy worker has to be asked back,
and only what it has not started comes: that repairs the case where a task turned out longer than its kind promised.
"""

from __future__ import annotations

from collections.abc import Iterable

from daskfleet.scheduler.placement import allowed, missing_bytes, wait_for
from daskfleet.scheduler.state import RUNNING, TaskState, WorkerState

#: So many queues are looked at for one idle worker.
VICTIMS = 4


def worthwhile(ts: TaskState, victim: WorkerState, thief: WorkerState, bandwidth: float) -> bool:
    """Whether `ts`, queued for `victim`, would start earlier on `thief`."""
    if not allowed(ts, thief):
        return False
    if victim.status != RUNNING:
        return True
    spared = wait_for(victim) + max(victim.backlog - 1, 0) * ts.prefix.duration / victim.nthreads
    return wait_for(thief) + missing_bytes(ts, thief) / bandwidth < spared


def victims(backlogged: Iterable[WorkerState], thief: WorkerState) -> list[WorkerState]:
    """The workers with the longest queues, longest first."""
    others = [worker for worker in backlogged if worker is not thief and worker.backlog]
    if len(others) > 1:
        others.sort(key=lambda worker: -worker.backlog / worker.nthreads)
    return others[:VICTIMS]


def to_ask_back(workers: Iterable[WorkerState]) -> list[tuple[WorkerState, list[TaskState]]]:
    """Whom to ask for which unstarted tasks, so that idle workers get a share: the last sent of the fullest workers."""
    running = [worker for worker in workers if worker.status == RUNNING]
    room = sum(max(worker.nthreads - len(worker.processing), 0) for worker in running)
    asked: list[tuple[WorkerState, list[TaskState]]] = []
    for worker in sorted(running, key=lambda worker: len(worker.processing) - worker.nthreads, reverse=True):
        surplus = len(worker.processing) - worker.nthreads
        if room <= 0 or surplus <= 0:
            break
        if worker.yielding:
            continue
        count = min(max(surplus // 2, 1), surplus) if room < surplus else surplus
        asked.append((worker, list(worker.processing)[-count:]))
        room -= count
    return asked
