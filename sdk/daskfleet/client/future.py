"""What a user holds of a remote result: handles, any number for one `FutureState`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import dask  # noqa: F401  the package before its parts (`daskfleet.importing.Lazy`)
from dask._task_spec import TaskRef

from daskfleet.client.states import CANCELLED, FINISHED, PENDING, FutureState
from daskfleet.protocol.messages import Key

if TYPE_CHECKING:
    from daskfleet.client.client import Client


class Future(TaskRef):
    """The result of a task, which may still have to be computed.

    It is a `dask._task_spec.TaskRef`, so it can stand for its result in arguments and in collections. The cluster keeps
    the result for as long as a future of it exists.

    Parameters
    ----------
    key
        Of a task that is known to the scheduler. (Clients make futures of states.)
    client
        The current one by default.
    """

    __slots__ = ("_state",)

    def __init__(self, key: Key | FutureState, client: Client | None = None) -> None:
        if isinstance(key, FutureState):
            state = key
        else:
            from daskfleet.client.current import current_client

            state = (client or current_client())._want(key)._state
        super().__init__(state.key)
        self._state: FutureState = state

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
        """The name of the result's type, once it is there.

        In difference from distributed not the type itself, which would have to be pickled with every result.
        """
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

    def add_done_callback(self, fn: Callable[[Future], Any]) -> None:
        """Call ``fn(future)`` in a thread when there is a result or an error; until then the task is wanted."""
        self.client._keep(self._state)
        self._state.when_done(lambda: self.client._call_in_thread(fn, self))

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
