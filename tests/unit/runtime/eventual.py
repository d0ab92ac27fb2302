"""Waiting for what comes about by itself."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(what: Callable[[], object], timeout: float = 60.0) -> None:
    """Return as soon as ``what()`` is true."""
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, f"still not so after {timeout:g} s"
        time.sleep(0.02)
