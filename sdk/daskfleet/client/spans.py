"""`span`: a name for a part of a program, under which the cost of its tasks is summed up."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_current: ContextVar[tuple[str, tuple[str, ...]] | None] = ContextVar("span", default=None)


@contextmanager
def span(*tags: str) -> Iterator[str]:
    """Sum up the tasks that are submitted within the block, and collections that are computed there, under a name.

    In difference from distributed it does not matter where a collection was made: what dask's optimisation leaves of
    its layers does not tell that any more.

    `performance_report` has a table of them; on the scheduler they are ``dask_scheduler.extensions["spans"].spans``.

    Parameters
    ----------
    *tags
        The name; within another span it continues the outer one's. By default ``"default"``.

    Yields
    ------
    str
        An id, new for each block.

    Examples
    --------
    >>> with span("train", "features"):  # doctest: +SKIP
    ...     frame = frame.persist()
    """
    outer = _current.get()
    names = (*(outer[1] if outer else ()), *(tags or ("default",)))
    id = uuid.uuid4().hex
    before = _current.set((id, names))
    try:
        yield id
    finally:
        _current.reset(before)


def current() -> dict[str, Any]:
    """The option that puts a task into the present span."""
    inside = _current.get()
    return {"span": inside} if inside else {}
