"""What a running task can find out about where it runs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskfleet.worker.machine import Task
    from daskfleet.worker.server import Worker


class _Context(threading.local):
    worker: Worker | None = None
    task: Task | None = None


context = _Context()
#: The workers of this process, for code that runs outside a task.
workers: list[Worker] = []


def get_worker() -> Worker:
    """The worker that runs the calling task.

    Raises
    ------
    ValueError
        When it is not called from within a task.
    """
    if context.worker is not None:
        return context.worker
    if len(workers) == 1:
        return workers[0]
    raise ValueError("no worker found: get_worker() works inside a task only")


def current_key() -> Any:
    """The key of the calling task, or None outside of one."""
    return context.task.key if context.task is not None else None
