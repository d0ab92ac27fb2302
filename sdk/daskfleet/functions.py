"""Running a user's function outside of the task system: `Client.run` and `Client.run_on_scheduler`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from concurrent.futures import Future
from typing import Any

from daskfleet.protocol.serialize import Serialized, dumps, dumps_by_value, loads


async def run_function(function: Any, args: Any, kwargs: Any, inject: dict[str, Any], wait: bool) -> Serialized:
    """Call `function`, on the event loop if it is a coroutine function, else in a thread, passing `inject`'s objects to
    parameters of their names."""
    with contextlib.suppress(TypeError, ValueError):
        parameters = inspect.signature(function).parameters
        kwargs = kwargs | {name: value for name, value in inject.items() if name in parameters}

    async def call() -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        return await _in_a_thread(function, args, kwargs)

    if not wait:
        background = asyncio.ensure_future(call())
        _background.add(background)
        background.add_done_callback(_background.discard)
        return dumps(None)
    try:
        return dumps((True, await call()))
    except Exception as error:
        return dumps((False, loads(dumps_by_value(error))))


_background: set[asyncio.Future[Any]] = set()


async def _in_a_thread(function: Any, args: Any, kwargs: Any) -> Any:
    """As `asyncio.to_thread`, in a thread that ends with the function: a nanny forks only while it has a single one,
    and functions that never return keep no thread from others."""
    outcome: Future[Any] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.set_result(context.run(function, *args, **kwargs))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="daskfleet-run", daemon=True).start()
    return await asyncio.wrap_future(outcome)
