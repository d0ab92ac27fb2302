"""Stopping a task that runs: because its time is up, or a client insists (``cancel(force=True)``).

A coroutine is cancelled. In a thread an exception is raised, which ends whatever runs Python code and is not determined
to catch everything. Code that does not return to the interpreter (a C library, a system call) cannot be stopped that
way: after a grace period the worker hands its data over and its process is replaced. Without a nanny to do so the
thread is given up instead: another takes its place, and the task runs on unheeded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from daskfleet.exceptions import TaskStopped
from daskfleet.worker.executor import Failed, failure
from daskfleet.worker.machine import EXECUTING, LONG_RUNNING, Task

if TYPE_CHECKING:
    from daskfleet.worker.executor import Executor
    from daskfleet.worker.server import Worker

logger = logging.getLogger(__name__)

#: Seconds that a task has for its ``finally`` clauses.
GRACE = 1.0


class Stopping:
    """Stops tasks of one worker."""

    def __init__(self, worker: Worker, executor: Executor) -> None:
        self._worker, self._executor = worker, executor
        self._coroutines: dict[Task, tuple[asyncio.Task[None], float]] = {}
        self.given_up: set[Task] = set()

    def awaiting(self, task: Task) -> None:
        """The calling coroutine is about to run `task`; `awaited` says that it has."""
        running = asyncio.current_task()
        assert running is not None
        self._coroutines[task] = running, time.monotonic()

    def awaited(self, task: Task) -> None:
        """The end of `awaiting`."""
        del self._coroutines[task]

    def watch(self, task: Task) -> None:
        """A task with a timeout has been handed to the threads."""
        assert task.timeout is not None
        self._worker.loop.call_later(task.timeout, self._look, task)

    def _look(self, task: Task) -> None:
        if task.state not in (EXECUTING, LONG_RUNNING) or self._worker.machine.tasks.get(task.id) is not task:
            return
        assert task.timeout is not None
        started = self._coroutines[task][1] if task in self._coroutines else self._executor.started(task)
        left = task.timeout - (time.monotonic() - started) if started is not None else task.timeout
        if left > 0:
            self._worker.loop.call_later(left, self._look, task)
            return
        error = TimeoutError(f"task {task.key!r} was stopped: it ran for longer than its timeout of {task.timeout:g} s")
        outcome = failure(task, error, task.timeout)
        assert type(outcome) is Failed
        self._worker.machine.overdue(task, outcome.exception, outcome.traceback, outcome.text, task.timeout)
        self.stop(task)
        self._worker._advance()

    def stop(self, task: Task) -> None:
        """End it, if it runs."""
        if task.state not in (EXECUTING, LONG_RUNNING):
            return
        logger.info("stopping task %r", task.key)
        if task in self._coroutines:
            self._coroutines[task][0].cancel()
        else:
            self._executor.interrupt(task, TaskStopped)
        self._worker.loop.call_later(GRACE, self._insist, task)

    def _insist(self, task: Task) -> None:
        if task.state not in (EXECUTING, LONG_RUNNING):
            return
        if self._worker.nanny is not None:
            logger.warning("task %r cannot be stopped: this worker's process is replaced", task.key)
            self._worker._spawn(self._worker.replace())
            return
        logger.warning("task %r cannot be stopped, and this worker has no nanny: it runs on in a thread", task.key)
        if task.state == EXECUTING:
            self.given_up.add(task)
            self._executor.grow()
            self._worker.machine.secede(task)
            self._worker._advance()

    def ended(self, task: Task) -> None:
        """It has ended, by itself or after all."""
        self._executor.ended(task)
        if task in self.given_up:
            self.given_up.discard(task)
            self._executor.shrink()
