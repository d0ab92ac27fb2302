"""What a worker's threads are doing: call stacks at once, and profiles by sampling.

The sampler looks at the threads that run tasks a hundred times a second; when none does it sleeps until the executor
wakes it. A sample walks one stack, some 20 µs. Samples gather by kind of task in windows of ten seconds, of which an
hour is kept.
"""

from __future__ import annotations

import linecache
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any

from daskfleet import config
from daskfleet.importing import Lazy

if TYPE_CHECKING:
    from dask import utils

    from daskfleet.protocol.messages import Key
    from daskfleet.worker.executor import Executor
else:
    utils = Lazy("dask.utils")

#: Seconds of one window, and how many are kept.
WINDOW, WINDOWS = 10.0, 360

Tree = dict[str, Any]


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


def _add(into: Tree, frames: Iterable[FrameType]) -> None:
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


def _users_frames(frame: FrameType | None) -> list[FrameType]:
    """The stack from the task's own function on, outermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    for position in range(len(frames) - 1, -1, -1):
        name = frames[position].f_globals.get("__name__", "")
        if name in ("daskfleet.worker.executor", "daskfleet.protocol.spec"):
            return frames[position + 1 :]
    return frames


class Observer:
    """Looks at the threads of one worker."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._windows: deque[tuple[float, dict[str, Tree]]] = deque(maxlen=WINDOWS)
        self._stopped = threading.Event()
        self._interval = config.seconds("distributed.worker.profile.interval") or 0.01
        if config.get("distributed.worker.profile.enabled"):
            threading.Thread(target=self._sample, name="daskfleet-profile", daemon=True).start()

    def close(self) -> None:
        """Stop sampling."""
        self._stopped.set()
        self._executor.busy.set()

    def _sample(self) -> None:
        executor = self._executor
        while not self._stopped.wait(self._interval):
            if executor.running:
                self._look()
                continue
            executor.resting = True
            if not executor.running:  # else one may have started before it could see that we rest
                executor.busy.wait()
            executor.resting = False
            executor.busy.clear()

    def _look(self) -> None:
        """Take one sample. A frame keeps all its variables alive, so none may be left in this thread's own."""
        running = list(self._executor.running.items())
        if not running:
            return
        now = time.time()
        if not self._windows or now - self._windows[-1][0] > WINDOW:
            self._windows.append((now, {}))
        window, stacks = self._windows[-1][1], _stacks()
        for thread, (task, _) in running:
            frame = stacks.get(thread)
            if frame is not None:
                key = task.key[0] if isinstance(task.key, tuple) else task.key
                _add(window.setdefault(_prefix(str(key)), tree()), _users_frames(frame))

    def profile(self, prefix: str | None, start: float | None, stop: float | None) -> Tree:
        """The samples of one kind of task, or of all, between two times (seconds since the epoch)."""
        total = tree()
        for since, window in list(self._windows):
            if (start is None or since + WINDOW >= start) and (stop is None or since <= stop):
                for name, profile in list(window.items()):
                    if prefix is None or name == prefix:
                        merge(total, profile)
        return total

    def call_stacks(self, keys: Iterable[Key] | None) -> list[tuple[Key, list[str]]]:
        """``(key, stack as text, outermost call first)`` of what runs, or of these keys as far as they do."""
        wanted = None if keys is None else set(keys)
        stacks = _stacks()
        linecache.checkcache()
        return [
            (task.key, [_text(frame) for frame in _users_frames(stacks.get(thread))])
            for thread, (task, _) in list(self._executor.running.items())
            if wanted is None or task.key in wanted
        ]


def _stacks() -> dict[int, FrameType]:
    """The other threads' frames. Not the caller's: a frame among its own variables would be a cycle, and with it all
    the others, and what their tasks hold, would live until the garbage collector comes."""
    stacks = sys._current_frames()
    del stacks[threading.get_ident()]
    return stacks


def _text(frame: FrameType) -> str:
    return traceback.format_list(traceback.extract_stack(frame, limit=1))[0]


def _prefix(name: str) -> str:
    return str(utils.key_split(name))
