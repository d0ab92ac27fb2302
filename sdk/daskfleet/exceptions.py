"""The exceptions that users catch."""

from __future__ import annotations

from builtins import TimeoutError as TimeoutError  # distributed has it under its own name too
from concurrent.futures import CancelledError as FutureCancelledError


class DaskfleetError(Exception):
    """Base of what daskfleet itself raises, as opposed to what users' functions raise."""


class ClusterNotFound(DaskfleetError, LookupError):
    """There is no cluster of this name; the message says which there are."""


class NoValidWorker(DaskfleetError):
    """No worker was there for a task within ``distributed.scheduler.no-workers-timeout``.

    Attributes
    ----------
    task
        The task's key.
    timeout
        Seconds that were waited.
    """

    def __init__(self, task: object, timeout: float) -> None:
        super().__init__(task, timeout)
        self.task, self.timeout = task, timeout

    def __str__(self) -> str:
        return (
            f"no worker came for task {self.task!r} within {self.timeout:g} s: either there is none at all, or none "
            "has the name or the resources that it asks for"
        )


class KilledWorker(DaskfleetError):
    """A task was running on several workers when they died, so it is taken to be what killed them.

    Attributes
    ----------
    task
        The task's key.
    last_worker
        The address of the worker that died last.
    allowed_failures
        How many deaths are forgiven (``distributed.scheduler.allowed-failures``).
    """

    def __init__(self, task: object, last_worker: str, allowed_failures: int) -> None:
        super().__init__(task, last_worker, allowed_failures)
        self.task, self.last_worker, self.allowed_failures = task, last_worker, allowed_failures

    def __str__(self) -> str:
        return (
            f"task {self.task!r} was running on {self.allowed_failures + 1} workers when they died, the last of them "
            f"{self.last_worker}. Does it need more memory than a worker has left, or crash the process? "
            "The workers' logs say how they ended."
        )


class CancelledError(FutureCancelledError):
    """The future was cancelled, or its data was lost and cannot be computed again.

    As in distributed it is that of `concurrent.futures`, so an `Exception`: asyncio's would end whoever awaits it.
    """


class Reschedule(DaskfleetError):
    """Raised by a task that should run again, perhaps on another worker. It is not counted as a failure."""


class TaskStopped(BaseException):
    """Raised inside a task that is being stopped, so that it can clean up; not an `Exception`, so that few catch it."""


class VersionMismatch(DaskfleetError):
    """Processes of one cluster have different versions of something that has to fit."""


class LostData(DaskfleetError):
    """Data that no task produces (scattered data, say) was on workers that are gone."""
