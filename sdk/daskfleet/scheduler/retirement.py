"""Which workers to end, and what must move before they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from daskfleet.scheduler.state import RUNNING, TaskState, WorkerState


def cheapest_to_close(workers: Iterable[WorkerState], n: int) -> list[WorkerState]:
    """The `n` workers whose end costs least: idle ones first, then those with the least data to move."""
    order = sorted(
        workers, key=lambda worker: (worker.status == RUNNING, len(worker.processing) + worker.backlog, worker.nbytes)
    )
    return order[: max(n, 0)]


def idle_surplus(workers: Iterable[WorkerState], memory_ratio: float = 2.0) -> list[WorkerState]:
    """Workers that could be closed now: nothing to do, and the others have room for their data `memory_ratio` times."""
    workers = list(workers)
    idle = sorted(
        (worker for worker in workers if not worker.processing and not worker.backlog), key=lambda worker: worker.nbytes
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


def unique_data(worker: WorkerState, leaving: frozenset[str]) -> Iterator[TaskState]:
    """What `worker` holds and no worker that stays does; `leaving` are addresses."""
    for ts in worker.data:
        if all(holder.address in leaving for holder in ts.holders):
            yield ts


def moves(
    worker: WorkerState, others: Iterable[WorkerState], leaving: frozenset[str]
) -> list[tuple[TaskState, WorkerState]]:
    """A place for each piece of unique data: the running worker that holds least, counted with what is on its way."""
    targets = {other: other.nbytes for other in others if other.status == RUNNING and other.address not in leaving}
    if not targets:
        return []
    planned = []
    for ts in unique_data(worker, leaving):
        target = min(targets, key=targets.__getitem__)
        targets[target] += ts.nbytes
        planned.append((ts, target))
    return planned
