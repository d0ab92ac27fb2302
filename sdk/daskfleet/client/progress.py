"""`progress`: bars that fill while futures get done."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from html import escape
from typing import Any, TextIO

from daskfleet import loop as loops
from daskfleet.client.collections import futures_of
from daskfleet.client.encode import split
from daskfleet.client.future import Future
from daskfleet.client.states import ERROR, PENDING
from daskfleet.surface import surface

#: Seconds between two looks, and characters of the bar.
INTERVAL, WIDTH = 0.1, 40


def progress(
    *futures: Any,
    notebook: bool | None = None,
    multi: bool = True,
    complete: bool = True,
    group_by: str = "prefix",
    interval: float = INTERVAL,
    out: TextIO | None = None,
) -> Any:
    """Show how many futures, or tasks of persisted collections, are done, until all are.

    In a notebook the bars fill while further cells run. Elsewhere it waits.

    Parameters
    ----------
    *futures
        Futures, collections, or lists of them.
    notebook
        By default found out.
    multi
        In a notebook, a bar for each kind of task below that for all.
    complete, group_by
        Taken for compatibility: these bars count the futures given, not what they depend on, by kind (`key_split`).
    interval
        Seconds between two updates.
    out
        Where to; standard output by default.

    Returns
    -------
    None
        Or an awaitable of it in an asynchronous client outside of notebooks.
    """
    watched = futures_of(list(futures))
    if watched and (surface() == "notebook" if notebook is None and out is None else notebook):
        return _in_notebook(watched, multi, interval)
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


# In a notebook ------------------------------------------------------------------------------------------------------


def _in_notebook(futures: list[Future], multi: bool, interval: float) -> None:
    from IPython.display import display

    started = time.monotonic()

    def picture() -> dict[str, str]:
        seconds = time.monotonic() - started
        return {"text/html": page(futures, seconds, multi), "text/plain": bar(futures, seconds)}

    handle = display(picture(), raw=True, display_id=True)

    async def follow() -> None:
        while any(future.status == PENDING for future in futures):
            await asyncio.sleep(interval)
            handle.update(picture(), raw=True)

    loops.start_soon(futures[0].client.loop, follow())


def page(futures: list[Future], seconds: float, multi: bool = True) -> str:
    """The bars as HTML: one for all, and one for each kind of task."""
    kinds: dict[str, list[Future]] = {}
    for future in futures if multi else ():
        kinds.setdefault(split(str(future.key)), []).append(future)
    rows = [_row(f"{seconds:.1f} s", futures)]
    if len(kinds) > 1:
        rows += [_row(name, members) for name, members in sorted(kinds.items())]
    return f"<table>{''.join(rows)}</table>"


def _row(name: str, futures: list[Future]) -> str:
    done, failed = _count(futures)
    about = f"{done} / {len(futures)}" + (f", {failed} failed" if failed else "")
    bar = f'<progress max="{len(futures)}" value="{done}" style="width:20em"></progress>'
    return f'<tr><td style="text-align:left">{escape(name)}</td><td>{bar}</td><td>{about}</td></tr>'


# As text ------------------------------------------------------------------------------------------------------------


def _lines(futures: list[Future]) -> Iterator[str]:
    """A bar each time, until all are done."""
    started = time.monotonic()
    while any(future.status == PENDING for future in futures):
        yield bar(futures, time.monotonic() - started)


def bar(futures: list[Future], seconds: float) -> str:
    """The bar at present."""
    done, failed = _count(futures)
    filled = WIDTH * done // max(len(futures), 1)
    text = f"[{'#' * filled:<{WIDTH}}] {done}/{len(futures)} done"
    return f"{text}, {failed} failed, {seconds:.1f} s" if failed else f"{text}, {seconds:.1f} s"


def _count(futures: list[Future]) -> tuple[int, int]:
    """How many are done, and how many of them have failed."""
    return (
        sum(future.status != PENDING for future in futures),
        sum(future.status == ERROR for future in futures),
    )


def _draw(out: TextIO, line: str) -> None:
    out.write(f"\r{line}")
    out.flush()


def _end(out: TextIO, futures: list[Future]) -> None:
    done, failed = _count(futures)
    _draw(out, f"[{'#' * WIDTH}] {done}/{len(futures)} done{f', {failed} failed' if failed else ''}{' ' * 12}\n")
