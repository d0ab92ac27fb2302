"""How often workers say how they are: the more of them there are, the less often each.

A heartbeat costs the scheduler some 100 µs, nearly all of it for waking up. A thousand workers at rest would take a
twentieth of a processor; so from some hundred on the time between their heartbeats grows with their number, as it does
in distributed (whose formula is n / 200 + 1 seconds). It grows in powers of two: then workers need be told when their
number doubles, not each time that one comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskfleet.protocol.messages import RESTING
from daskfleet.scheduler.state import WorkerState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

#: Heartbeats a second, of workers at rest, that are listened to.
BEATS = 200
#: Heartbeats that must be missing before a worker is given up (``distributed.scheduler.worker-ttl``).
MISSING = 3


def factor(workers: int, ttl: float) -> int:
    """By how much longer than usual so many workers wait between heartbeats.

    Parameters
    ----------
    ttl
        Seconds of silence after which a worker is given up.
    """
    found = 1
    while workers / (RESTING * found) > BEATS and 2 * found * RESTING * MISSING <= ttl:
        found *= 2
    return found


class Pace:
    """Tells workers."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._factor = 1
        scheduler.on_joined.append(self._joined)
        scheduler.on_left.append(self._left)

    def _joined(self, worker: WorkerState) -> None:
        wanted = self._wanted()
        if wanted > self._factor:
            self._set(wanted)
        elif self._factor > 1:
            self._tell(worker)

    def _left(self, _: WorkerState) -> None:
        wanted = self._wanted()
        if 2 * wanted < self._factor:  # not at the first that leaves, since others may come
            self._set(wanted)

    def _wanted(self) -> int:
        return factor(len(self._scheduler.workers), self._scheduler.worker_ttl)

    def _set(self, factor: int) -> None:
        self._factor = factor
        for worker in self._scheduler.workers.values():
            self._tell(worker)

    def _tell(self, worker: WorkerState) -> None:
        if (connection := self._scheduler._connections.get(worker)) is not None:
            connection.send(("pace", self._factor))
