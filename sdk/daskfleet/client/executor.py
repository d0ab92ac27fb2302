"""`Client.get_executor`: the cluster as a `concurrent.futures.Executor`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from concurrent.futures import Future as ThreadFuture
from typing import TYPE_CHECKING, Any

from daskfleet.client.states import FINISHED

if TYPE_CHECKING:
    from daskfleet.client.client import Client
    from daskfleet.client.future import Future


class CompatibleExecutor(Executor):
    """Runs calls on a cluster for code that knows `concurrent.futures`.

    Parameters
    ----------
    client
        The client to use; it stays open.
    **options
        Of `Client.submit`, for every call: ``pure``, ``workers``, ``resources``, ``retries``, ``priority``, …. Unlike
        there, equal calls run each by themselves unless ``pure=True``.

    Raises
    ------
    TypeError
        `submit` has no such option.
    """

    def __init__(self, client: Client, **options: Any) -> None:
        wrong = [name for name in options if name not in _submit_options(client)]
        if wrong:
            raise TypeError(f"get_executor() takes no {', '.join(wrong)}: Client.submit has no such option")
        self._client = client
        self._options = {"pure": False, **options}
        self._closed = False
        self._open: set[ThreadFuture[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ThreadFuture[Any]:
        """Run a call; its future is completed here when the result is.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        """
        if self._closed:
            raise RuntimeError("cannot submit: the executor was shut down")
        remote = self._client.submit(fn, *args, **kwargs, **self._options)
        local = _Cancellable(remote)
        self._open.add(local)
        local.add_done_callback(self._open.discard)

        def done() -> None:
            self._client._call_in_thread(lambda _: self._finish(local, remote), remote)

        remote._state.when_done(done)
        return local

    def _finish(self, local: ThreadFuture[Any], remote: Future) -> None:
        if not local.set_running_or_notify_cancel():
            return
        if remote.status != FINISHED:
            local.set_exception(remote._state.error())
            return
        try:
            local.set_result(self._client._value(remote))
        except BaseException as error:
            local.set_exception(error)

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """The results of `fn` on each element, in order; `chunksize` has no effect."""
        deadline = None if timeout is None else time.monotonic() + timeout
        futures = [self.submit(fn, *args) for args in zip(*iterables, strict=False)]

        def results() -> Iterator[Any]:
            try:
                for future in futures:
                    yield future.result(None if deadline is None else max(deadline - time.monotonic(), 0))
            finally:
                for future in futures:
                    future.cancel()

        return results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait`, return when those that were made are done."""
        self._closed = True
        pending = list(self._open)
        if cancel_futures:
            for future in pending:
                future.cancel()
        if wait and not self._client.asynchronous:
            from concurrent.futures import wait as wait_for

            wait_for(pending)


def _submit_options(client: Client) -> list[str]:
    parameters = inspect.signature(client.submit).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


class _Cancellable(ThreadFuture[Any]):
    """A future whose cancelling reaches the cluster."""

    def __init__(self, remote: Future) -> None:
        super().__init__()
        self._remote = remote

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._remote.release()
        return cancelled
