"""Where a ready task had better run.

A task without large inputs can run anywhere: it waits in the common queue and the first worker with room takes it, in
the order of priority. A task with large inputs is queued for one worker: the one that would finish it first, by
distributed's measure: the time until the worker is free plus the time to bring over what it lacks. Workers that run dry
take such tasks from the others' queues when that pays (`stealing`), so a wrong guess here costs little.
"""

from __future__ import annotations

from collections.abc import Iterable

from daskfleet.scheduler.state import RUNNING, TaskState, WorkerState

#: So many copies of one input are looked at; more would cost time and add nothing.
HOLDERS = 8


def allowed(ts: TaskState, worker: WorkerState) -> bool:
    """Whether `worker` may run `ts`, by the user's restrictions."""
    options = ts.options
    if options is None:
        return True
    if options.workers is not None and not options.allow_other_workers and not _named(worker, options.workers):
        return False
    if options.resources:
        return all(worker.resources.get(name, 0) >= amount for name, amount in options.resources.items())
    return True


def _named(worker: WorkerState, names: frozenset[str]) -> bool:
    host = worker.address.rpartition("://")[2].rpartition(":")[0]
    return worker.name in names or worker.address in names or host in names


def candidates(ts: TaskState, workers: Iterable[WorkerState]) -> list[WorkerState]:
    """The running workers that may run a task with restrictions; the preferred ones alone if there are any."""
    running = [worker for worker in workers if worker.status == RUNNING and allowed(ts, worker)]
    assert ts.options is not None
    if ts.options.workers is not None and ts.options.allow_other_workers:
        preferred = [worker for worker in running if _named(worker, ts.options.workers)]
        return preferred or running
    return running


def missing_bytes(ts: TaskState, worker: WorkerState) -> int:
    """Bytes that `worker` would have to fetch for `ts`. What travels inside the task's message is free."""
    return sum(dep.nbytes for dep in ts.dependencies if dep.value is None and worker not in dep.holders)


def wait_for(worker: WorkerState) -> float:
    """Seconds until `worker` would start something new, on average over its threads."""
    return worker.occupancy / worker.nthreads


def cost(ts: TaskState, worker: WorkerState, bandwidth: float) -> float:
    """Seconds until `worker` could start `ts`; `bandwidth` in bytes a second."""
    backlog = worker.backlog * ts.prefix.duration / worker.nthreads
    return wait_for(worker) + backlog + missing_bytes(ts, worker) / bandwidth


def nearest(ts: TaskState, bandwidth: float) -> WorkerState | None:
    """The holder of inputs that would finish `ts` first; None when no input is worth a journey."""
    best: WorkerState | None = None
    best_cost = 0.0
    seen: set[WorkerState] = set()
    for dep in ts.dependencies:
        if dep.value is not None:
            continue
        for worker in dep.holders[:HOLDERS]:
            if worker in seen or worker.status != RUNNING:
                continue
            seen.add(worker)
            if len(ts.dependencies) == 1 and len(dep.holders) == 1:
                return worker
            this = cost(ts, worker, bandwidth)
            if best is None or this < best_cost:
                best, best_cost = worker, this
    return best
