"""What a client knows of one key, and waiting for that to be final.

Nobody counts references: when the last handle (`Future`) of a state goes, Python drops the state, and its finaliser
tells the client to let the result go. So there is no lock between the threads that create futures and the loop that
completes them; each shared step is a single operation that the interpreter performs atomically.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from daskfleet.client.inside import giving_way
from daskfleet.client.times import due, left
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, loads

if TYPE_CHECKING:
    from types import TracebackType

    from daskfleet.client.client import Client

PENDING, FINISHED, ERROR, CANCELLED, LOST = "pending", "finished", "error", "cancelled", "lost"


#: Most futures are never waited for one by one, so the list of who waits is made by the first who does.
_making_lists = threading.Lock()


class FutureState:
    """What the client knows of one key. Changed on the loop's thread only."""

    __slots__ = (
        "__weakref__",
        "callbacks",
        "cid",
        "client",
        "exception",
        "failed_key",
        "key",
        "nbytes",
        "reason",
        "reference",
        "status",
        "traceback",
        "type",
        "value",
    )

    def __init__(self, client: Any, key: Key, cid: int) -> None:
        self.client: Client = client
        self.key, self.cid = key, cid
        self.status = PENDING
        self.callbacks: list[Callable[[], Any]] | None = None
        self.value: Serialized | None = None
        self.nbytes = 0
        self.type: str | None = None
        self.exception: Serialized = b""
        self.traceback: Serialized = b""
        self.failed_key: Key = ""
        self.reason = ""
        self.reference = weakref.ref(self)

    def __del__(self) -> None:
        self.client._forget(self.key, self.cid, self.reference)

    def settle(self, status: str) -> None:
        """Take on a final status and tell who waits."""
        self.status = status
        callbacks = self.callbacks
        while callbacks:
            try:
                callback = callbacks.pop()
            except IndexError:
                return
            callback()

    def when_done(self, callback: Callable[[], Any]) -> None:
        """Call `callback` once, when there is a final status: on the loop's thread, or here and now."""
        with _making_lists:
            callbacks = self.callbacks
            if callbacks is None:
                callbacks = self.callbacks = []
        callbacks.append(callback)
        if self.status != PENDING:
            try:
                callbacks.remove(callback)
            except ValueError:
                return  # the loop was faster and has called it
            callback()

    def error(self) -> BaseException:
        """The exception that this result ended with, with the worker's traceback."""
        if self.status == ERROR:
            try:
                error = loads(self.exception)
            except Exception as reason:
                from daskfleet.comm import RemoteError

                error = RemoteError(
                    f"task {self.failed_key!r} failed with an exception that cannot be read here: {reason}"
                )
            traceback = self.load_traceback()
            return error.with_traceback(traceback) if traceback is not None else error  # type: ignore[no-any-return]
        from daskfleet.exceptions import CancelledError

        return CancelledError(f"{self.key!r}: {self.reason or self.status}")

    def load_traceback(self) -> TracebackType | None:
        if not self.traceback:
            return None
        from tblib import Traceback

        return Traceback.from_dict(loads(self.traceback)).as_traceback()  # type: ignore[no-any-return]


def wait_all(states: Iterable[FutureState], timeout: float | None) -> bool:
    """Block until every state is final; False when `timeout` seconds were not enough.

    It waits for the last one, then for the last of those that are not done by then: that makes a few waits, as results
    come in about the order of their submission, where hearing of each would cost as much as submitting it.
    """
    pending = [state for state in states if state.status == PENDING]
    if not pending:
        return True
    due_at = due(timeout)
    with giving_way():
        while pending:
            arrived = threading.Lock()  # an Event is one as well, behind 10 µs of Python
            arrived.acquire()
            pending[-1].when_done(arrived.release)
            limit = left(due_at)
            if not arrived.acquire(timeout=-1 if limit is None else limit):
                return False
            drop_settled(pending)
    return True


def drop_settled(states: list[FutureState]) -> None:
    """Take final ones off the end."""
    while states and states[-1].status != PENDING:
        states.pop()
