"""What a user holds of a remote result.

A `Future` is a handle; all handles of one key in one client share a `FutureState`. Nobody counts references: when the
last handle goes, Python drops the state, and the state's finaliser tells the client to let the result go. So there is
no lock between the threads that create futures and the loop that completes them; each shared step is a single operation
that the interpreter performs atomically.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from dask._task_spec import TaskRef

from daskfleet.client.inside import giving_way
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


def wait_all(states: list[FutureState], timeout: float | None) -> bool:
    """Block until every state is final; False when `timeout` seconds were not enough."""
    pending = {state.cid for state in states if state.status == PENDING}
    if not pending:
        return True
    arrived = threading.Event()

    def callback(cid: int) -> Callable[[], None]:
        def done() -> None:
            pending.discard(cid)
            if not pending:
                arrived.set()

        return done

    for state in states:
        if state.cid in pending:
            state.when_done(callback(state.cid))
    with giving_way():
        return arrived.wait(timeout)


class Future(TaskRef):
    """The result of a task, which may still have to be computed.

    It is a `dask._task_spec.TaskRef`, so it can stand for its result in arguments and in collections. The cluster keeps
    the result for as long as a future of it exists.
    """

    __slots__ = ("_state",)

    def __init__(self, state: FutureState) -> None:
        super().__init__(state.key)
        self._state = state

    @property
    def executor(self) -> Client:
        """The client, as `concurrent.futures` calls it."""
        return self.client

    @property
    def client(self) -> Client:
        return self._state.client

    @property
    def status(self) -> str:
        """``pending``, ``finished``, ``error``, ``cancelled`` or ``lost``."""
        return self._state.status

    @property
    def type(self) -> str | None:
        """The name of the result's type, once it is there."""
        return self._state.type

    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._state.status != PENDING

    def cancelled(self) -> bool:
        return self._state.status == CANCELLED

    def result(self, timeout: float | str | None = None) -> Any:
        """The result, waiting for it if need be.

        Raises
        ------
        TimeoutError
            It was not there within `timeout` (seconds, or a text such as ``"10s"``).
        CancelledError
            The future was cancelled or its data is lost.
        Exception
            What the task raised, with its traceback on the worker.
        """
        return self.client._result(self, timeout)

    def exception(self, timeout: float | str | None = None) -> Any:
        """What the task raised, or None if it returned; waits as `result` does."""
        return self.client._when_settled(self, timeout, self._exception)

    def traceback(self, timeout: float | str | None = None) -> Any:
        """The worker's traceback of what the task raised, or None."""
        return self.client._when_settled(self, timeout, self._state.load_traceback)

    def _exception(self) -> BaseException | None:
        return None if self._state.status == FINISHED else self._state.error()

    def cancel(self, reason: str | None = None, msg: str | None = None, force: bool = False) -> Any:
        """Do not compute it, if nobody else wants it."""
        return self.client.cancel([self], force=force, reason=reason, msg=msg)

    def retry(self) -> Any:
        """Compute it again after a failure."""
        return self.client.retry([self])

    def add_done_callback(self, function: Callable[[Future], Any]) -> None:
        """Call ``function(future)`` in a thread when there is a result or an error."""
        self._state.when_done(lambda: self.client._call_in_thread(function, self))

    def release(self) -> None:
        """Let go of the result now. The future is cancelled; others of the same key are not affected."""
        state = FutureState(self._state.client, self._state.key, 0)
        state.status, state.reason = CANCELLED, "released"
        self._state = state

    def __await__(self) -> Generator[Any, None, Any]:
        return self.client._await_result(self._state).__await__()

    def __reduce__(self) -> tuple[Any, ...]:
        return unbound, (self.key,)

    def __getattr__(self, name: str) -> Any:
        # A future that travelled has no state until it is first used: then it belongs to the client that is current.
        if name != "_state":
            raise AttributeError(f"Future has no attribute {name!r}")
        from daskfleet.client.current import current_client

        self._state = current_client()._want(self.key)._state
        return self._state

    def __repr__(self) -> str:
        state = self._state
        kind = f", type: {state.type}" if state.type else ""
        return f"<Future: {state.status}{kind}, key: {state.key!s}>"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<code>{escape(repr(self))}</code>"


def unbound(key: Key) -> Future:
    """A future that has just been unpickled.

    It binds to the current client: at once if there is one, so that the cluster keeps the result from now on, else when
    it is used.
    """
    from daskfleet.client.current import current_client

    try:
        return current_client()._want(key)
    except ValueError:
        future = Future.__new__(Future)
        TaskRef.__init__(future, key)
        return future
