"""How many workers the work at hand deserves: distributed's published formula for the adaptive target."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """What the target is computed from.

    Attributes
    ----------
    occupancy
        Seconds of work sent to workers.
    waiting
        Seconds of work that is ready but was sent to nobody.
    n_processing, n_ready
        Tasks of the two kinds.
    n_workers, n_threads
        Workers that are running, and their threads together.
    nbytes, memory_limit
        Bytes held and allowed on those workers together.
    n_to_close
        Workers that could be closed without loss or delay.
    """

    occupancy: float
    waiting: float
    n_processing: int
    n_ready: int
    n_workers: int
    n_threads: int
    nbytes: int
    memory_limit: int
    n_to_close: int


def adaptive_target(load: Load, target_duration: float = 5.0) -> int:
    """The number of workers that would finish `load` in about `target_duration` seconds.

    Source: ``distributed.Scheduler.adaptive_target``. It grows for CPU (occupancy over the target duration, never more
    threads than tasks) and for memory (twice the workers above 60 % use), and shrinks only by workers that are idle.
    """
    tasks = load.n_ready + load.n_processing
    cpu = math.ceil((load.occupancy + load.waiting) / target_duration)
    cpu = min(tasks, cpu)
    if load.n_workers:
        cpu = math.ceil(cpu / load.n_threads * load.n_workers) if load.n_threads else cpu
    elif tasks:
        cpu = max(1, cpu)
    memory = 0
    if load.memory_limit and load.nbytes > 0.6 * load.memory_limit:
        memory = 2 * load.n_workers
    target = max(memory, cpu)
    if target >= load.n_workers:
        return target
    return load.n_workers - load.n_to_close
