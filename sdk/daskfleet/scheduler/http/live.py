"""What the live page shows: a frame of figures, at most twice a second, computed once for all who watch.

Nothing is collected while nobody watches: tasks by prefix are counted by going through them, in slices so that the
event loop is not held up, and so seldom that it stays below 5 % of the time, however many tasks there are; the page
says how old a count is. Frames keep to the same bound. A viewer that reads slowly misses frames; it never queues them.

A websocket, since browsers allow six HTTP streams a site and JupyterLab may show that many panels. Other sites' pages
may open websockets to us too, and a proxy changes the headers by which that would be noticed; so our page has a random
word in it, which other sites cannot read, and only who knows it gets frames.
"""

from __future__ import annotations

import asyncio
import heapq
import hmac
import json
import logging
import time
from collections import Counter
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import psutil
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from daskfleet.scheduler.http.stream import TaskStream
from daskfleet.scheduler.state import MEMORY, Prefix, WorkerState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

logger = logging.getLogger(__name__)

#: Seconds between frames.
INTERVAL = 0.5
#: So much of the time may go into counting, and as much into frames.
SHARE = 0.05
#: Tasks that are counted between two looks at the event loop (about a millisecond).
SLICE = 5000
#: Rows of the progress panel.
PREFIXES = 40
#: Viewers at a time.
VIEWERS = 200

WORKER_COLUMNS = (
    "name", "address", "status", "nthreads", "cpu", "memory", "memory_limit", "nbytes", "processing", "keys", "seen",
)  # fmt: skip


class Feed:
    """Computes frames while there are viewers, and sends them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._viewers: dict[Events, asyncio.Future[None] | None] = {}
        self._task: asyncio.Task[None] | None = None
        self._stream = TaskStream(scheduler.state)
        self._last = ""
        self._counts: Counter[tuple[Prefix, str]] = Counter()
        self._counted = self._count_again = 0.0

    @property
    def watched(self) -> bool:
        return self._task is not None

    def add(self, viewer: Events) -> bool:
        """Start sending to `viewer`; False when there are too many already."""
        if len(self._viewers) >= VIEWERS:
            return False
        self._viewers[viewer] = None
        if self._task is None:
            self._scheduler.on_ended.append(self._stream.ended)
            self._task = asyncio.get_running_loop().create_task(self._run())
        elif self._last:
            self._send(viewer, self._last)
        return True

    def remove(self, viewer: Events) -> None:
        self._viewers.pop(viewer, None)
        self._rest()

    def stop(self) -> None:
        """The scheduler closes."""
        viewers = list(self._viewers)
        self._viewers.clear()
        self._rest()
        for viewer in viewers:
            viewer.close(1001, "the scheduler is closing")

    def _rest(self) -> None:
        if not self._viewers and self._task is not None:
            self._task.cancel()
            self._task, self._last = None, ""
            self._counts, self._count_again = Counter(), 0.0
            self._scheduler.on_ended.remove(self._stream.ended)
            self._stream.take()

    async def _run(self) -> None:
        process = psutil.Process()
        process.cpu_percent()
        while True:
            started = time.perf_counter()
            try:
                if started >= self._count_again:
                    await self._count()
                    started = time.perf_counter()
                self._last = json.dumps(self._frame(process), separators=(",", ":"), default=str)
                for viewer in list(self._viewers):
                    self._send(viewer, self._last)
            except Exception:
                logger.exception("could not compute what the live page shows")
            await asyncio.sleep(max(INTERVAL, (time.perf_counter() - started) / SHARE))

    def _send(self, viewer: Events, frame: str) -> None:
        earlier = self._viewers.get(viewer)
        if earlier is not None and not earlier.done():
            return
        try:
            self._viewers[viewer] = future = viewer.write_message(frame)
        except WebSocketClosedError:
            self._viewers.pop(viewer, None)
        else:
            future.add_done_callback(_ignore_closed)

    async def _count(self) -> None:
        """Known tasks by prefix and state."""
        started, cost = time.perf_counter(), 0.0
        counts: Counter[tuple[Prefix, str]] = Counter()
        tasks = list(self._scheduler.state.tasks.values())
        for first in range(0, len(tasks), SLICE):
            counts.update(map(_PREFIX_AND_STATE, islice(tasks, first, first + SLICE)))
            cost += time.perf_counter() - started
            await asyncio.sleep(0)
            started = time.perf_counter()
        self._counts, self._counted = counts, time.time()
        self._count_again = started + cost / SHARE

    def _frame(self, process: psutil.Process) -> dict[str, Any]:
        scheduler, state = self._scheduler, self._scheduler.state
        now = time.time()
        return {
            "time": now,
            "id": scheduler.id,
            "address": scheduler.address,
            "started": scheduler.started,
            "clients": len(state.clients),
            "cpu": process.cpu_percent(),
            "memory": process.memory_info().rss,
            "computed": state.totals.computed,
            "erred": state.totals.erred,
            "recent": list(state.totals.recent)[::5],
            "tasks": state.counts,
            "prefixes": _prefixes(state.prefixes, self._counts),
            "counted": self._counted,
            "columns": WORKER_COLUMNS,
            "workers": [_worker(worker, time.monotonic()) for worker in state.workers.values()],
            "stream": self._stream.take(),
        }


_PREFIX_AND_STATE = attrgetter("prefix", "state")


def _ignore_closed(future: asyncio.Future[None]) -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None and not isinstance(error, (WebSocketClosedError, StreamClosedError)):
        logger.error("could not send to a viewer", exc_info=error)


def _worker(worker: WorkerState, now: float) -> tuple[Any, ...]:
    """A row of `WORKER_COLUMNS`; ``cpu`` in percent of one processor, ``seen`` in seconds before `now`."""
    metrics = worker.metrics
    return (
        worker.name,
        worker.address,
        worker.status,
        worker.nthreads,
        metrics.get("cpu", 0),
        metrics.get("memory", 0),
        worker.memory_limit,
        worker.nbytes,
        len(worker.processing),
        len(worker.data),
        round(max(now - worker.last_seen, 0), 1),
    )


def _prefixes(prefixes: dict[str, Prefix], counts: Counter[tuple[Prefix, str]]) -> list[tuple[Any, ...]]:
    """``(name, {state: known tasks}, runs since the start, failures, seconds a run takes)`` of the busiest prefixes."""
    known: dict[Prefix, dict[str, int]] = {}
    for (prefix, state), n in counts.items():
        known.setdefault(prefix, {})[state] = n

    def busy(prefix: Prefix) -> tuple[int, int]:
        states = known.get(prefix, {})
        return sum(states.values()) - states.get(MEMORY, 0), sum(states.values()) + prefix.count

    shown = set(heapq.nlargest(PREFIXES, prefixes.values(), key=busy))
    return [
        (prefix.name, known.get(prefix, {}), prefix.count, prefix.erred, prefix.duration if prefix.count else None)
        for prefix in prefixes.values()
        if prefix in shown
    ]


class Events(WebSocketHandler):
    """Frames for one viewer. Nothing is expected from it."""

    def initialize(self, feed: Feed, nonce: str) -> None:
        self._feed, self._nonce = feed, nonce

    def prepare(self) -> None:
        if not hmac.compare_digest(self.get_query_argument("page", "").encode(), self._nonce.encode()):
            raise HTTPError(403)

    def check_origin(self, origin: str) -> bool:
        return True  # `prepare` has seen to it, behind proxies too

    def open(self, *args: str, **kwargs: str) -> None:
        self.set_nodelay(True)
        if not self._feed.add(self):
            self.close(1013, "too many viewers")

    def on_message(self, message: str | bytes) -> None:
        """Viewers have nothing to say."""

    def on_close(self) -> None:
        self._feed.remove(self)
