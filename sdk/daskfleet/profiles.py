"""Profiles by sampling: trees of calls, gathered in windows of ten seconds, of which an hour is kept.

`LoopSampler` is for the threads that run an event loop, a worker's or the scheduler's. Few ever ask for them, so the
first who does begins the sampling, and it ends when nobody has asked for as long as samples are kept.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from daskfleet import config

#: Seconds of one window, and how many are kept.
WINDOW, WINDOWS = 10.0, 360

Tree = dict[str, Any]


def interval() -> float:
    """Seconds between two samples, as configured."""
    return config.seconds("distributed.worker.profile.interval") or 0.01


def tree() -> Tree:
    """A profile without samples."""
    return {"count": 0, "identifier": "root", "description": {}, "children": {}}


def merge(into: Tree, other: Tree) -> None:
    """Add the samples of one profile to another."""
    into["count"] += other["count"]
    for name, child in other["children"].items():
        mine = into["children"].get(name)
        if mine is None:
            mine = into["children"][name] = {**child, "count": 0, "children": {}}
        merge(mine, child)


def add(into: Tree, frames: Iterable[FrameType]) -> None:
    """Add a sample: a stack, outermost call first."""
    into["count"] += 1
    for frame in frames:
        code = frame.f_code
        name = f"{code.co_name};{code.co_filename};{code.co_firstlineno}"
        child = into["children"].get(name)
        if child is None:
            child = into["children"][name] = {
                "count": 0,
                "identifier": name,
                "description": {"name": code.co_qualname, "filename": code.co_filename, "line_number": frame.f_lineno},
                "children": {},
            }
        child["count"] += 1
        into = child


def stack(frame: FrameType | None) -> list[FrameType]:
    """The calls that led to `frame`, outermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    return frames


class Samples:
    """Samples of different kinds, by time."""

    def __init__(self) -> None:
        self._windows: deque[tuple[float, dict[str, Tree]]] = deque(maxlen=WINDOWS)

    def now(self) -> dict[str, Tree]:
        """Where to put samples that are taken now, by kind."""
        now = time.time()
        if not self._windows or now - self._windows[-1][0] > WINDOW:
            self._windows.append((now, {}))
        return self._windows[-1][1]

    def profile(self, kind: str | None, start: float | None, stop: float | None) -> Tree:
        """The samples of one kind, or of all, between two times (seconds since the epoch)."""
        total = tree()
        for since, window in list(self._windows):
            if (start is None or since + WINDOW >= start) and (stop is None or since <= stop):
                for name, profile in list(window.items()):
                    if kind is None or name == kind:
                        merge(total, profile)
        return total


class LoopSampler:
    """Looks at the thread of an event loop, the one that makes this, whenever the loop has something to do.

    Parameters
    ----------
    interval
        Seconds between looks.
    alive
        Whether what the loop runs is still there.
    """

    def __init__(self, interval: float, alive: Callable[[], bool]) -> None:
        self._thread, self._interval, self._alive = threading.get_ident(), interval, alive
        self._samples = Samples()
        self._until = 0.0

    def profile(self, start: float | None, stop: float | None) -> Tree:
        """What there is; there will be more from now on."""
        resting, self._until = self._until < time.monotonic(), time.monotonic() + WINDOW * WINDOWS
        if resting:
            threading.Thread(target=self._sample, name="daskfleet-profile-loop", daemon=True).start()
        return self._samples.profile(None, start, stop)

    def _sample(self) -> None:
        while self._alive() and time.monotonic() < self._until:
            time.sleep(self._interval)
            self._look()

    def _look(self) -> None:
        frame = sys._current_frames().get(self._thread)
        if frame is not None and frame.f_code.co_name != "select":  # of selectors: it waits
            add(self._samples.now().setdefault("", tree()), stack(frame))
