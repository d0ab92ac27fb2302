"""Deadlines, as users write them."""

from __future__ import annotations

import time

from daskfleet import config

#: Seconds, from a number or a text such as ``"10s"``; None for no limit.
seconds = config.as_seconds


def due(timeout: float | str | None) -> float | None:
    """When `timeout` will be over, by the monotonic clock."""
    limit = seconds(timeout)
    return None if limit is None else time.monotonic() + limit


def left(deadline: float | None) -> float | None:
    """Seconds until `deadline`, 0 when it is over."""
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)
