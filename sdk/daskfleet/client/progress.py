"""`progress`: a bar that fills while futures get done."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from daskfleet.client.collections import futures_of
from daskfleet.client.future import ERROR, PENDING, Future

#: Seconds between two looks, and characters of the bar.
INTERVAL, WIDTH = 0.1, 40


def progress(*futures: Any, interval: float = INTERVAL, out: TextIO | None = None) -> Any:
    """Show how many futures, or tasks of persisted collections, are done, until all are.

    Parameters
    ----------
    *futures
        Futures, collections, or lists of them.
    interval
        Seconds between two updates of the bar.
    out
        Where to; standard output by default.

    Returns
    -------
    None
        Or an awaitable of it in an asynchronous client.
    """
    watched = futures_of(list(futures))
    out = out or sys.stdout
    if watched and watched[0].client.asynchronous:

        async def show() -> None:
            for line in _lines(watched):
                _draw(out, line)
                await asyncio.sleep(interval)
            _end(out, watched)

        return show()
    for line in _lines(watched):
        _draw(out, line)
        time.sleep(interval)
    _end(out, watched)
    return None


def _lines(futures: list[Future]) -> Iterator[str]:
    """A bar each time, until all are done."""
    started = time.monotonic()
    while any(future.status == PENDING for future in futures):
        yield bar(futures, time.monotonic() - started)


def bar(futures: list[Future], seconds: float) -> str:
    """The bar at present."""
    done = sum(future.status != PENDING for future in futures)
    failed = sum(future.status == ERROR for future in futures)
    filled = WIDTH * done // max(len(futures), 1)
    text = f"[{'#' * filled:<{WIDTH}}] {done}/{len(futures)} done"
    return f"{text}, {failed} failed, {seconds:.1f} s" if failed else f"{text}, {seconds:.1f} s"


def _draw(out: TextIO, line: str) -> None:
    out.write(f"\r{line}")
    out.flush()


def _end(out: TextIO, futures: list[Future]) -> None:
    done = sum(future.status != PENDING for future in futures)
    failed = sum(future.status == ERROR for future in futures)
    _draw(out, f"[{'#' * WIDTH}] {done}/{len(futures)} done{f', {failed} failed' if failed else ''}{' ' * 12}\n")
