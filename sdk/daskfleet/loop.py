"""How blocking user code and the event loop meet.

Everything that does I/O in daskfleet is a coroutine and runs on one event loop. A program that is itself asynchronous
gives us its running loop; any other gets one daemon thread with a loop, shared by every client and cluster of the
process: one thread however many clusters, and objects of ours may call one another without crossing threads. Blocking
methods are thin: they hand a coroutine to that loop and wait. Waiting happens in short slices so that Ctrl-C arrives.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import TimeoutError as ThreadTimeoutError
from typing import Any, ParamSpec, TypeVar

from daskfleet.entering import EnterableLoop

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.Lock()
_shared: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def shared_loop() -> asyncio.AbstractEventLoop:
    """The process's background event loop, started on first use. Its thread is a daemon named ``daskfleet-loop``."""
    global _shared, _thread
    with _lock:
        if _shared is None or _thread is None or not _thread.is_alive():  # a fork leaves the thread behind
            _shared = EnterableLoop()
            _thread = threading.Thread(target=_run, args=(_shared,), name="daskfleet-loop", daemon=True)
            _thread.start()
        return _shared


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


def on_loop_thread(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the calling thread is the one that runs `loop`."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def sync(
    loop: asyncio.AbstractEventLoop,
    function: Callable[P, Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run ``function(*args, **kwargs)`` on `loop` from another thread and wait for its result.

    Parameters
    ----------
    loop
        A loop that another thread runs, usually `shared_loop()`.
    function
        A coroutine function; it carries its own deadline, as every wait of ours does.

    Raises
    ------
    RuntimeError
        If called on the loop's own thread, where waiting would be a deadlock.
    KeyboardInterrupt
        The coroutine is cancelled first.
    """
    if on_loop_thread(loop):
        name = getattr(function, "__qualname__", repr(function))
        raise RuntimeError(f"{name} blocks and was called on the event loop: pass asynchronous=True and await it")

    return wait(asyncio.run_coroutine_threadsafe(awaited(function(*args, **kwargs)), loop))


async def awaited(awaitable: Awaitable[T]) -> T:
    """`awaitable` as a coroutine, which is all that `asyncio.run_coroutine_threadsafe` takes."""
    return await awaitable


def wait(future: ThreadFuture[T]) -> T:
    """Wait for `future`, letting signals through; a KeyboardInterrupt cancels it."""
    try:
        while not done_within(future, 1):
            pass
        return future.result()
    except BaseException:
        future.cancel()
        raise


def done_within(future: ThreadFuture[Any], seconds: float) -> bool:
    """Wait for `future` for so long; whether it is done.

    Its result is to be asked for afterwards: a TimeoutError that comes with waiting for it may be the coroutine's own
    or ours, and `future` may be done by the time that somebody looks whose it is.
    """
    with contextlib.suppress(ThreadTimeoutError):
        future.exception(seconds)
    return future.done()


def start_soon(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> ThreadFuture[T]:
    """Run `coroutine` on `loop` from any thread, without waiting."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop)


@atexit.register
def _stop() -> None:
    if _shared is not None and _thread is not None and _thread.is_alive():
        _shared.call_soon_threadsafe(_shared.stop)
        _thread.join(timeout=1)
