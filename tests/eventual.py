"""Waiting for what comes about by itself."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def eventually(what: Callable[[], T], timeout: float = 180.0, seen: Callable[[], object] = str) -> T:
    """``what()`` as soon as it is true; the failure tells what is `seen` instead."""
    begun = time.monotonic()
    while not (value := what()):
        passed = time.monotonic() - begun
        assert passed < timeout, f"still not so after {timeout:g} s; {seen()}"
        rest(passed)
    return value


def rest(passed: float, least: float = 0.01) -> None:
    """Sleep between two looks, the longer the more seconds have `passed`: each is work for those who are waited for."""
    time.sleep(min(max(least, passed / 20), 1))


async def until(condition: Callable[[], Any]) -> None:
    """Return as soon as ``condition()``, which may be awaitable, is true; for coroutines."""
    async with asyncio.timeout(120):
        while True:
            value = condition()
            if await value if inspect.isawaitable(value) else value:
                return
            await asyncio.sleep(0.01)
