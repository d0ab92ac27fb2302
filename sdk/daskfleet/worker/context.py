"""What a running task can find out about where it runs, and how it makes room for others while it waits."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskfleet.worker.machine import Task
    from daskfleet.worker.server import Worker


class _Context(threading.local):
    worker: Worker | None = None
    task: Task | None = None
    away = False


class Coroutine:
    """What a coroutine on a worker's event loop runs for: a task, or (`task` is None) a `Client.run`."""

    __slots__ = ("away", "task", "worker")

    def __init__(self, worker: Worker, task: Task | None) -> None:
        self.worker, self.task, self.away = worker, task, False


#: Of a thread that runs tasks.
context = _Context()
#: Of a coroutine, and of the threads that it starts.
coroutine: ContextVar[Coroutine | None] = ContextVar("daskfleet_task", default=None)
#: The workers of this process, for code that runs outside a task.
workers: list[Worker] = []


def _here() -> _Context | Coroutine | None:
    """The calling task's context, None outside of one."""
    if context.task is not None:
        return context
    running = coroutine.get()
    return running if running is not None and running.task is not None else None


def running_worker() -> Worker | None:
    """The worker that runs the calling task or `Client.run` function, None outside of both."""
    if context.worker is not None:
        return context.worker
    running = coroutine.get()
    return running.worker if running is not None else None


def get_worker() -> Worker:
    """The worker that runs the calling task.

    Raises
    ------
    ValueError
        When it is not called from within a task.
    """
    worker = running_worker()
    if worker is not None:
        return worker
    if len(workers) == 1:
        return workers[0]
    raise ValueError("no worker found: get_worker() works inside a task only")


def current_key() -> Any:
    """The key of the calling task, or None outside of one."""
    here = _here()
    return here.task.key if here is not None and here.task is not None else None


def in_task() -> bool:
    """Whether the caller is a task that occupies one of its worker's slots."""
    here = _here()
    return here is not None and not here.away


def secede() -> None:
    """Let the worker run another task in place of this one, which goes on in a thread of its own.

    For tasks that wait for other tasks, or for anything that is not the processor; without it a worker whose threads
    all wait would run nothing. Blocking calls of a client secede by themselves while they wait.

    Raises
    ------
    ValueError
        When it is not called from within a task.
    """
    here = _here()
    if here is None or here.worker is None or here.task is None:
        raise ValueError("secede() works inside a task only")
    if not here.away:
        here.away = True
        here.worker.secede(here.task, thread=here is context)


def rejoin() -> None:
    """Take a slot of the worker again after `secede`.

    It does not wait for one to be free: the worker starts nothing new until it is back at its number of threads. (In
    distributed it waits, and can wait for ever.)

    Raises
    ------
    ValueError
        When it is not called from within a task.
    """
    here = _here()
    if here is None or here.worker is None or here.task is None:
        raise ValueError("rejoin() works inside a task only")
    if here.away:
        here.away = False
        here.worker.rejoin(here.task, thread=here is context)
