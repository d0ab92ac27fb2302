"""A work queue of keys: however often a key is woken, it is worked on by one task at a time, and once more if woken
meanwhile.

This is the whole concurrency model of the operator. A key is a Dask cluster; its pass reads whatever the caches hold
when it starts, so a hundred events that arrive during a pass cost one more pass, not a hundred. At most `concurrency`
keys are worked on at once. After a pass its key rests, as long as its caller says: a pass looks at all of a cluster, so
while a thousand pods change one by one, passes without rest between them would take a processor from the API server for
nothing new. A pass that raises is repeated with exponential back-off, without holding up other keys; a
pass may also return the seconds after which it wants to be run again if nothing else wakes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

K = TypeVar("K")

FIRST_BACKOFF = 0.05
LONGEST_BACKOFF = 30.0


class WorkQueue(Generic[K]):
    """Run `work` for each woken key.

    Parameters
    ----------
    work
        Called with the key; returns the seconds after which to run again, or None.
    concurrency
        Most keys worked on at once.
    on_error
        Called with the key and what its pass raised.
    rest
        Seconds after a pass before the next one of that key may begin.
    """

    def __init__(
        self,
        work: Callable[[K], Awaitable[float | None]],
        *,
        concurrency: int,
        on_error: Callable[[K, Exception], None] = lambda key, error: None,
        rest: Callable[[K], float] = lambda key: 0.0,
    ) -> None:
        self._work = work
        self._concurrency = concurrency
        self._on_error = on_error
        self._rest = rest
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()  # woken and not yet begun
        self._running: dict[K, asyncio.Task[None]] = {}
        self._resting: dict[K, asyncio.TimerHandle] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._open = False

    def __len__(self) -> int:
        """Keys waiting for their turn."""
        return len(self._dirty)

    def start(self) -> None:
        """Begin to work. Keys may be woken before."""
        self._open = True
        self._fill()

    async def stop(self) -> None:
        """Begin nothing more, and cancel what is under way: level-triggered work may stop anywhere."""
        self._open = False
        for timers in (self._timers, self._resting):
            for timer in timers.values():
                timer.cancel()
            timers.clear()
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self, key: K) -> None:
        """Have `key` worked on as soon as there is room."""
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._running and key not in self._resting:
            self._ready.append(key)
            self._fill()

    def wake_in(self, key: K, seconds: float) -> None:
        """Have `key` worked on in so many seconds, unless it is woken before."""
        if seconds <= 0:
            self.wake(key)
            return
        if key in self._dirty:
            return
        loop = asyncio.get_running_loop()
        if (timer := self._timers.get(key)) is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self._due, key)

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.wake(key)

    def _fill(self) -> None:
        while self._open and self._ready and len(self._running) < self._concurrency:
            key = self._ready.popleft()
            self._dirty.discard(key)
            task = asyncio.get_running_loop().create_task(self._run(key), name=f"pass of {key}")
            self._running[key] = task
            task.add_done_callback(lambda _, key=key: self._done(key))  # type: ignore[misc]

    async def _run(self, key: K) -> None:
        try:
            again = await self._work(key)
        except Exception as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            self._on_error(key, error)
            again = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** (failures - 1))
        else:
            self._failures.pop(key, None)
        if again is not None and self._open:
            self.wake_in(key, again)

    def _done(self, key: K) -> None:
        del self._running[key]
        if self._open and (seconds := self._rest(key)) > 0:
            self._resting[key] = asyncio.get_running_loop().call_later(seconds, self._rested, key)
        elif key in self._dirty:
            self._ready.append(key)
        self._fill()

    def _rested(self, key: K) -> None:
        del self._resting[key]
        if key in self._dirty:
            self._ready.append(key)
            self._fill()
