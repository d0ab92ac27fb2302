"""An event loop that another thread may enter while it waits.

To hand a result from a thread to the loop's takes two wake-ups: of a thread that sleeps in the kernel, and of the same
thread once more when it gets the interpreter's lock. That is 30 to 40 µs, more than all that is then done with the
result. While the loop waits for the network, however, nothing of it runs: whoever holds the lock that is free just then
may do there what a callback of the loop would do, in its own thread.

The lock is held by the loop's thread at all times but while it waits. What a visitor schedules (a callback, a timer, a
task) wakes the loop, which has gone to sleep without knowing of it. Sockets that a visitor registers need no wake-up:
the kernel's set of them may change while it is waited for. And nobody overtakes himself: while there is something to do
that a thread has handed over, nobody enters.
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
import threading
from asyncio.events import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class EnterableLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, with `enter`.

    That looks at the loop's two queues, `_ready` and `_scheduled`, which every version of asyncio has.
    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]  # a heap

    def __init__(self) -> None:
        self._occupied = threading.Lock()
        self._occupied.acquire()
        self._manners = contextvars.copy_context()
        super().__init__(_Selector(self._occupied))

    def enter(self, callback: Callable[[], Any]) -> bool:
        """Run `callback` here and now as if the loop had called it, if the loop waits for something.

        Not for the main thread, nor for any other in which an exception may be raised from outside: it would end
        `callback` halfway. What `callback` raises goes where it goes for any callback of the loop.

        Returns
        -------
        bool
            False if the loop has something to do (or is in debug mode, where it insists on its own thread): nothing was
            called.
        """
        if self.get_debug() or not self._occupied.acquire(blocking=False):
            return False
        try:
            if self._ready:
                return False
            due = self._scheduled[:1]
            _set_running_loop(self)
            try:
                self._manners.run(callback)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"{callback} failed", "exception": error})
            finally:
                _set_running_loop(None)
            stirred = self._ready or self._scheduled[:1] != due
        finally:
            self._occupied.release()
        if stirred:
            self.call_soon_threadsafe(_nothing)
        return True


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on an `EnterableLoop`: for processes that serve."""
    with asyncio.Runner(loop_factory=EnterableLoop) as runner:
        return runner.run(main)


class _Selector(selectors.DefaultSelector):
    """Lets visitors in while it waits."""

    def __init__(self, occupied: threading.Lock) -> None:
        super().__init__()
        self._occupied = occupied

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        self._occupied.release()
        try:
            return super().select(timeout)
        finally:
            self._occupied.acquire()


def _nothing() -> None:
    pass
