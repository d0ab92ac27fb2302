"""Waiting for several futures: `wait` and `as_completed`."""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from daskfleet.client.collections import futures_of
from daskfleet.client.future import Future
from daskfleet.client.states import ERROR, FINISHED, PENDING, FutureState, wait_all
from daskfleet.client.times import due, left, seconds


class DoneAndNotDoneFutures(NamedTuple):
    """What `wait` returns."""

    done: set[Future]
    not_done: set[Future]


def wait(
    fs: Any,
    timeout: float | str | None = None,
    return_when: str = "ALL_COMPLETED",
) -> Any:
    """Wait for futures, or for the futures of persisted collections.

    Parameters
    ----------
    timeout
        Seconds, or a text such as ``"10s"``.
    return_when
        ``"ALL_COMPLETED"`` or ``"FIRST_COMPLETED"``.

    Returns
    -------
    DoneAndNotDoneFutures
        ``(done, not_done)``; an awaitable of it in an asynchronous client.

    Raises
    ------
    TimeoutError
    """
    if return_when not in ("ALL_COMPLETED", "FIRST_COMPLETED"):
        raise ValueError(f"return_when={return_when!r}: expected ALL_COMPLETED or FIRST_COMPLETED")
    futures = futures_of(fs)
    client = futures[0].client if futures else None
    first = return_when == "FIRST_COMPLETED"

    def split() -> DoneAndNotDoneFutures:
        done = {future for future in futures if future.status != PENDING}
        return DoneAndNotDoneFutures(done, set(futures) - done)

    if client is not None and client.asynchronous:

        async def waiting() -> DoneAndNotDoneFutures:
            if first:
                async for _ in as_completed(futures, timeout=timeout):
                    break
            else:
                await client._settled([future._state for future in futures], seconds(timeout))
            return split()

        return waiting()
    if first:
        for _ in as_completed(futures, timeout=timeout):
            break
    elif not wait_all([future._state for future in futures], seconds(timeout)):
        pending = sum(future.status == PENDING for future in futures)
        raise TimeoutError(f"{pending} of {len(futures)} futures were not done within {timeout} s")
    return split()


class as_completed:
    """Iterates over futures in the order in which they get done, in ``for`` and in ``async for``.

    Parameters
    ----------
    futures
        Futures, or iterables of them; more can be added while iterating.
    with_results
        Give ``(future, result)``. A failed future raises, or with ``raise_errors=False`` the result is ``(type,
        exception, traceback)``; that of a cancelled one is its `CancelledError`.
    timeout
        Seconds (or a text) for the whole iteration.

    Raises
    ------
    TimeoutError
        While iterating, when the time is up.
    """

    def __init__(
        self,
        futures: Iterable[Future] | None = None,
        loop: Any = None,
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: float | str | None = None,
    ) -> None:
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._waiting: dict[object, tuple[Future, FutureState]] = {}  # the states, as futures may be released
        self._count = 0
        self._lock = threading.Lock()
        self._with_results, self._raise_errors = with_results, raise_errors
        self._deadline = due(timeout)
        self._timeout = timeout
        self._wake: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self.update(futures or ())

    def add(self, future: Future) -> None:
        """Iterate over this one too."""
        turn, state = object(), future._state
        with self._lock:
            self._count += 1
            self._waiting[turn] = future, state
        # Weakly: futures that only those who wait for them know of would be a cycle, and collected as garbage.
        state.when_done(partial(_finished, weakref.ref(self), turn))

    def update(self, futures: Iterable[Future]) -> None:
        """Iterate over these too."""
        for future in futures:
            if isinstance(future, Future):
                self.add(future)
            else:
                self.update(future)

    def _finished(self, turn: object) -> None:
        with self._lock:
            if (waiting := self._waiting.pop(turn, None)) is None:
                return  # it was cleared
            self._done.put(waiting[0])
        for loop, event in list(self._wake):
            loop.call_soon_threadsafe(event.set)

    def count(self) -> int:
        """How many have not been given out yet."""
        return self._count

    def is_empty(self) -> bool:
        """Whether all have been given out."""
        return self._count == 0

    def has_ready(self) -> bool:
        """Whether the next one is there without waiting."""
        return not self._done.empty()

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._count, self._waiting, self._done = 0, {}, queue.SimpleQueue()

    def _take(self, future: Future) -> Any:
        with self._lock:
            self._count -= 1
        if not self._with_results:
            return future
        if future.status == FINISHED:
            return future, future.client.gather(future)
        error = future._state.error()
        if future.status != ERROR:
            return future, error
        if self._raise_errors:
            raise error
        return future, (type(error), error, future._state.load_traceback())

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._count:
            raise StopIteration
        try:
            return self._take(self._done.get(timeout=left(self._deadline)))
        except queue.Empty:
            raise TimeoutError(f"{self._count} futures were not done within {self._timeout} s") from None

    next = __next__

    def next_batch(self, block: bool = True) -> list[Any]:
        """All that are done by now; with `block` at least one."""
        batch = [next(self)] if block and self._count else []
        while not self._done.empty():
            batch.append(self._take(self._done.get()))
        return batch

    def batches(self) -> Iterator[list[Any]]:
        """Iterate over batches of what is done by then."""
        while self._count:
            yield self.next_batch()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if not self._count:
            raise StopAsyncIteration
        waiter = asyncio.get_running_loop(), asyncio.Event()
        self._wake.append(waiter)
        try:
            async with asyncio.timeout(left(self._deadline)):
                while self._done.empty():
                    waiter[1].clear()
                    if self._done.empty():
                        await waiter[1].wait()
        except TimeoutError:
            raise TimeoutError(f"{self._count} futures were not done within {self._timeout} s") from None
        finally:
            self._wake.remove(waiter)
        future = self._done.get()
        if self._with_results and future.status == FINISHED:
            with self._lock:
                self._count -= 1
            return future, await future
        return self._take(future)


def _finished(waiting: weakref.ref[as_completed], turn: object) -> None:
    if (iterator := waiting()) is not None:
        iterator._finished(turn)
