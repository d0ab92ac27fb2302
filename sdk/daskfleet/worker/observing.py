"""What a worker's threads are doing: call stacks at once, and profiles by sampling.

The sampler looks at the threads that run tasks a hundred times a second; when none does it sleeps until the executor
wakes it. A sample walks one stack, some 20 µs. Samples gather by kind of task (`daskfleet.profiles`).
"""

from __future__ import annotations

import linecache
import sys
import threading
import traceback
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING

from daskfleet import config
from daskfleet.importing import Lazy
from daskfleet.profiles import LoopSampler, Samples, Tree, add, interval, stack, tree

if TYPE_CHECKING:
    from dask import utils

    from daskfleet.protocol.messages import Key
    from daskfleet.worker.executor import Executor
else:
    utils = Lazy("dask.utils")


def _users_frames(frame: FrameType | None) -> list[FrameType]:
    """The stack from the task's own function on, outermost first."""
    frames = stack(frame)
    for position in range(len(frames) - 1, -1, -1):
        name = frames[position].f_globals.get("__name__", "")
        if name in ("daskfleet.worker.executor", "daskfleet.protocol.spec"):
            return frames[position + 1 :]
    return frames


class Observer:
    """Looks at the threads of one worker."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._samples = Samples()
        self._stopped = threading.Event()
        self._interval = interval()
        self.loop = LoopSampler(self._interval, lambda: not self._stopped.is_set())
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
        window, stacks = self._samples.now(), _stacks(thread for thread, _ in running)
        for thread, (task, _) in running:
            frame = stacks.get(thread)
            if frame is not None:
                key = task.key[0] if isinstance(task.key, tuple) else task.key
                add(window.setdefault(_prefix(str(key)), tree()), _users_frames(frame))

    def profile(self, prefix: str | None, start: float | None, stop: float | None) -> Tree:
        """The samples of one kind of task, or of all, between two times (seconds since the epoch)."""
        return self._samples.profile(prefix, start, stop)

    def call_stacks(self, keys: Iterable[Key] | None) -> list[tuple[Key, list[str]]]:
        """``(key, stack as text, outermost call first)`` of what runs, or of these keys as far as they do."""
        wanted = None if keys is None else set(keys)
        running = list(self._executor.running.items())
        stacks = _stacks(thread for thread, _ in running)
        linecache.checkcache()
        return [
            (task.key, [_text(frame) for frame in _users_frames(stacks.get(thread))])
            for thread, (task, _) in running
            if wanted is None or task.key in wanted
        ]


def _stacks(threads: Iterable[int]) -> dict[int, FrameType]:
    """The frames of these threads. Not the caller's: a frame among its own variables would be a cycle, and with it all
    the others, and what they hold, would live until the garbage collector comes. Nor those of others who do the same
    just now, as other workers of this process may: two frames among each other's variables are a cycle as well."""
    everybody = sys._current_frames()
    try:
        return {thread: everybody[thread] for thread in threads if thread in everybody}
    finally:
        everybody.clear()


def _text(frame: FrameType) -> str:
    return traceback.format_list(traceback.extract_stack(frame, limit=1))[0]


def _prefix(name: str) -> str:
    return str(utils.key_split(name))
