"""Which workers to end, and what must move before they do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from daskfleet.scheduler.state import CLOSING, RUNNING, TaskState, WorkerState


def cheapest_to_close(workers: Iterable[WorkerState], n: int) -> list[WorkerState]:
    """The `n` workers whose end costs least: idle ones first, then those with the least data to move."""
    order = sorted(
        workers,
        key=lambda worker: (
            worker.status == RUNNING,
            len(worker.processing) + len(worker.long_running) + worker.backlog,
            worker.nbytes,
        ),
    )
    return order[: max(n, 0)]


def idle_surplus(workers: Iterable[WorkerState], memory_ratio: float = 2.0) -> list[WorkerState]:
    """Workers that could be closed now: nothing to do, and the others have room for their data `memory_ratio` times."""
    workers = list(workers)
    idle = sorted(
        (worker for worker in workers if not (worker.processing or worker.long_running or worker.backlog)),
        key=lambda worker: worker.nbytes,
    )
    limit = sum(worker.memory_limit for worker in workers)
    held = sum(worker.nbytes for worker in workers)
    surplus: list[WorkerState] = []
    for worker in idle:
        limit -= worker.memory_limit
        if held and limit < held * memory_ratio:
            break
        surplus.append(worker)
    return surplus


def unique_data(leaving: Iterable[WorkerState]) -> list[TaskState]:
    """What would be lost if all workers left that are about to: nobody else holds it, and neither do we.

    What is pinned to its worker cannot be moved: it is made anew elsewhere, as far as it is needed.
    """
    return [
        ts
        for ts in {ts: None for worker in leaving for ts in worker.data}
        if ts.value is None and not ts.pinned and all(holder.status == CLOSING for holder in ts.holders)
    ]


def places(unique: Iterable[TaskState], staying: Sequence[WorkerState]) -> list[tuple[TaskState, WorkerState]]:
    """Where to copy what is not on its way already: each to the worker that holds least, with what comes counted in."""
    load = {worker: worker.nbytes for worker in staying}
    coming = set[int]().union(*(worker.incoming for worker in staying))
    planned = []
    for ts in unique:
        if ts.id not in coming:
            target = min(load, key=load.__getitem__)
            load[target] += ts.nbytes
            planned.append((ts, target))
    return planned
