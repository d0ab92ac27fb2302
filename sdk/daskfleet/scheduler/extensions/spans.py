"""What the tasks of each `span` cost. Nothing is watched before the first one comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from daskfleet.scheduler.state import ClientState, WorkerState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

#: Spans that are kept; then the oldest is forgotten.
LENGTH = 10_000


@dataclass(slots=True)
class Span:
    """Sums over the tasks of one span: how many ended well and failed, seconds in them, bytes of their results.

    `start` is when the first task came, `stop` when the last ended, in seconds since the epoch.
    """

    id: str
    name: tuple[str, ...]
    start: float = field(default_factory=time.time)
    stop: float = 0.0
    tasks: int = 0
    failed: int = 0
    seconds: float = 0.0
    nbytes: int = 0


class Spans:
    """All of them, by id."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.spans: dict[str, Span] = {}
        scheduler.hear("client", "span", self.begin)
        scheduler.handle("client", "spans", self.since)

    def begin(self, client: ClientState, announced: tuple[str, Sequence[str]]) -> None:
        """A client is about to send tasks of this span."""
        id, name = announced
        if id in self.spans:
            return
        if self._ended not in self._scheduler.on_ended:
            self._scheduler.on_ended.append(self._ended)
        if len(self.spans) == LENGTH:
            del self.spans[next(iter(self.spans))]
        self.spans[id] = Span(id, tuple(name))

    async def since(self, client: ClientState, start: float) -> list[dict[str, Any]]:
        """Those in which something ended after `start`."""
        return [asdict(span) for span in self.spans.values() if span.stop >= start]

    def _ended(self, worker: WorkerState, op: str, rows: Sequence[Any]) -> None:
        tasks = self._scheduler.state.tasks
        for row in rows:
            ts = tasks.get(row[0])
            if ts is None or ts.worker is not worker or ts.options is None or ts.options.span is None:
                continue
            span = self.spans.get(ts.options.span)
            if span is None:
                continue
            span.stop = time.time()
            if op == "done":
                span.tasks, span.nbytes, span.seconds = span.tasks + 1, span.nbytes + row[2], span.seconds + row[3]
            else:
                span.failed, span.seconds = span.failed + 1, span.seconds + row[5]
