"""Queues of ready tasks, and how they empty: the scheduler's lowest layer (`Queues`, `Transitions`, `SchedulerState`).

A ready task waits here rather than on a worker for as long as it can, because here it can still go anywhere. A task
that may run anywhere stands in one common line; one with large inputs, or with restrictions, in the line of the worker
where it had better run (`placement`). Workers with room take the most urgent task of the two lines and, when both are
empty, one from another worker's line if that pays (`stealing`). Tasks are never taken out of the middle of a line: they
stand there as long as they are queued for its owner, and what is not is dropped when it comes to the front.

A task that was on a worker as it died may be what killed it. Which of the many that a worker is sent ahead it was
running nobody can tell afterwards, so suspects stand in a line of their own and go out with caution: only to a worker
with a thread to spare, and while a worker has one of them it is sent nothing ahead. If it dies again, all that it had
was running, and the blame falls on those few.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from daskfleet.protocol.frames import Message
from daskfleet.protocol.messages import Key
from daskfleet.scheduler import placement, stealing
from daskfleet.scheduler.line import Line
from daskfleet.scheduler.numbered import Numbered
from daskfleet.scheduler.state import (
    NO_WORKER,
    PROCESSING,
    QUEUED,
    RUNNING,
    STATES,
    ClientState,
    Prefix,
    TaskState,
    WorkerState,
)

#: Seconds of work, by estimate, that a worker is sent ahead of what its threads are doing: enough to keep it busy over
#: a round trip to a scheduler that is itself busy, little enough that priorities and placement stay our decision.
AHEAD = 0.02
#: So many tasks a thread is sent at most, however short they are.
DEPTH = 1000
#: So many idle workers look for something to steal each time.
STEALS = 32


class Queues:
    """Tasks, workers, and the queues between them.

    Parameters
    ----------
    bandwidth
        Bytes a second between workers, for weighing a transfer against a wait.
    unknown_duration
        Seconds, what a task is taken to last until one of its kind has run.
    stealing
        Whether idle workers take over what waits for others.
    """

    def __init__(self, bandwidth: float, unknown_duration: float, stealing: bool) -> None:
        self.bandwidth, self.unknown_duration, self.stealing = bandwidth, unknown_duration, stealing
        self.tasks: Numbered[TaskState] = Numbered()
        self.keys: dict[Key, TaskState] = {}
        self.workers: dict[str, WorkerState] = {}
        self.clients: dict[str, ClientState] = {}
        self.counts: dict[str, int] = dict.fromkeys(STATES, 0)
        self.prefixes: dict[str, Prefix] = {}
        self.unrunnable: dict[TaskState, None] = {}
        self._open: OrderedDict[WorkerState, None] = OrderedDict()  # workers with room, the longest unserved first
        self._backlogged: dict[WorkerState, None] = {}
        self._ready = Line()
        #: Unfinished tasks that were on workers that died, and how much blame they bear.
        self.suspects: dict[TaskState, int] = {}
        self.grave = 1  # blame of those that do not run together (`apart`)
        #: Those that have finished since. They are suspects again when they have to run again: or a worker that is too
        #: small for all results would die, compute what it has lost, and die again, of another of them each time.
        self.acquitted: dict[TaskState, int] = {}
        self.short_of_memory = False  # whether a worker has died for want of it: only then is that remembered
        self._cautious = Line()
        self._touched: dict[WorkerState | ClientState, None] = {}
        self._steals = STEALS

    # Messages ------------------------------------------------------------------------------------------------------

    def _tell(self, peer: WorkerState | ClientState, op: str, row: Any) -> None:
        out = peer.outbox
        if out and out[-1][0] is op:
            out[-1][1].append(row)
        else:
            out.append((op, [row]))
            self._touched[peer] = None

    def _free(self, worker: WorkerState, id: int) -> None:
        worker.freed.append(id)
        self._touched[worker] = None

    def drain(self) -> list[tuple[WorkerState | ClientState, list[Message]]]:
        """The messages that the events since the last call gave rise to, by peer, each in order."""
        drained: list[tuple[WorkerState | ClientState, list[Message]]] = []
        for peer in self._touched:
            messages, peer.outbox = peer.outbox, []
            if type(peer) is WorkerState and peer.freed:
                messages.append(("free", peer.freed))
                peer.freed = []
            if messages:
                drained.append((peer, messages))
        self._touched.clear()
        return drained

    # Queues --------------------------------------------------------------------------------------------------------

    def _enter(self, ts: TaskState, state: str) -> None:
        counts = self.counts
        counts[ts.state] -= 1
        counts[state] += 1
        ts.state = state

    def _enqueue(self, ts: TaskState) -> None:
        """All inputs are there: queue for the worker where it had better run, or for any."""
        self.unrunnable.pop(ts, None)
        if self.acquitted and (blame := self.acquitted.pop(ts, None)) is not None:
            self.suspects[ts] = blame
        if ts.state != QUEUED and ts.state != NO_WORKER:
            ts.prefix.queued += 1
        worker: WorkerState | None
        if ts.options is not None and (ts.options.workers is not None or ts.options.resources):
            able = placement.candidates(ts, self.workers.values())
            if not able:
                self._enter(ts, NO_WORKER)
                self.unrunnable[ts] = None
                return
            worker = min(able, key=lambda worker: placement.cost(ts, worker, self.bandwidth))
        else:
            worker = placement.nearest(ts, self.bandwidth) if ts.dependencies else None
        suspect = ts in self.suspects
        if suspect:
            worker = None
        self._enter(ts, QUEUED)
        ts.worker = worker
        if worker is None:
            (self._cautious if suspect else self._ready).push(ts)
        else:
            worker.ready.push(ts)
            worker.backlog += 1
            self._backlogged[worker] = None

    def _withdraw(self, ts: TaskState) -> None:
        """Take a task out of wherever it stands in line or runs; its state is the caller's to change."""
        worker = ts.worker
        if ts.state == QUEUED:
            ts.prefix.queued -= 1
            if worker is not None:
                worker.backlog -= 1
                if not worker.backlog:
                    self._backlogged.pop(worker, None)
        elif ts.state == PROCESSING and worker is not None:
            self._stop(ts, worker)
            self._free(worker, ts.id)
            self._reopen(worker)
        elif ts.state == NO_WORKER:
            ts.prefix.queued -= 1
            self.unrunnable.pop(ts, None)
        ts.worker = None

    def _stop(self, ts: TaskState, worker: WorkerState) -> None:
        """`worker` has nothing more to do for `ts`."""
        worker.occupancy -= worker.processing.pop(ts, 0.0)
        if worker.long_running:
            worker.long_running.pop(ts, None)
        worker.suspects -= ts in self.suspects
        if not worker.processing:
            worker.occupancy = 0.0  # sums of floats drift
        ts.worker = None

    def _reopen(self, worker: WorkerState) -> None:
        if worker.status == RUNNING and not _full(worker):
            self._open[worker] = None

    # Scheduling ----------------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Send queued tasks to workers that have room; call it after each batch of events.

        In each round every worker with room gets its share of what is queued, so that few tasks spread over many
        workers and many tasks fill each worker up at once.
        """
        self._steals = STEALS
        progress = True
        while progress and self.counts[QUEUED] and self._open:
            progress = False
            share = -(-self.counts[QUEUED] // len(self._open))
            for _ in range(len(self._open)):
                worker, _ = self._open.popitem(last=False)
                for _ in range(share):
                    if _full(worker) or (ts := self._next_for(worker)) is None:
                        break
                    self._send(ts, worker)
                    progress = True
                if not _full(worker):
                    self._open[worker] = None
                if not self.counts[QUEUED]:
                    return

    def _next_for(self, worker: WorkerState) -> TaskState | None:
        """The queued task that `worker` should be sent next, taken from its queue."""
        if self.suspects and len(worker.processing) < worker.nthreads:
            suspect = self._next_suspect_for(worker)
            if suspect is not None:
                return suspect
        own, common = _first_of(worker), self._first_of_all()
        if own is not None and (common is None or own.priority < common.priority):
            return worker.ready.pop()
        if common is not None:
            return self._ready.pop()
        if not self._steals or not self._backlogged or not self.stealing:
            return None
        self._steals -= 1
        for victim in stealing.victims(self._backlogged, worker):
            ts = _first_of(victim)
            if ts is not None and stealing.worthwhile(ts, victim, worker, self.bandwidth):
                return victim.ready.pop()
        return None

    def _first_of_all(self) -> TaskState | None:
        """The most urgent task of the common queue."""
        line = self._ready
        while (ts := line.first()) is not None:
            if ts.state == QUEUED and ts.worker is None and ts not in self.suspects:
                break
            line.pop()
        return ts

    def _next_suspect_for(self, worker: WorkerState) -> TaskState | None:
        """The most urgent suspect that `worker` may run."""
        others, found = [], None
        while found is None and self._cautious.first() is not None:
            ts = self._cautious.pop()
            if ts.state == QUEUED and ts in self.suspects:
                if placement.allowed(ts, worker) and not self.apart(ts, worker):
                    found = ts
                else:
                    others.append(ts)
        for ts in others:
            self._cautious.push(ts)
        return found

    def apart(self, ts: TaskState, worker: WorkerState) -> bool:
        """Whether `ts` must wait for another on `worker`: both are to blame for several deaths, which it may have been
        its neighbour each time. Apart, the innocent one finishes."""
        blame = self.suspects
        return blame.get(ts, 0) >= self.grave and any(blame.get(other, 0) >= self.grave for other in worker.processing)

    def _send(self, ts: TaskState, worker: WorkerState) -> None:
        function = ts.function
        assert function is not None
        self._withdraw(ts)
        self._enter(ts, PROCESSING)
        ts.worker = worker
        ts.attempt += 1
        expected = ts.prefix.duration
        worker.processing[ts] = expected
        worker.occupancy += expected
        worker.suspects += ts in self.suspects
        dependencies: list[Any] | None = None
        again = ts.attempt > 1
        if ts.dependencies:
            dependencies = []
            for dep in ts.dependencies:
                again = again or dep.attempt > 1
                if worker in dep.holders:
                    dependencies.append(dep.id)
                elif dep.value is not None:
                    dependencies.append((dep.id, dep.value))
                else:
                    dependencies.append((dep.id, dep.nbytes, [holder.address for holder in dep.holders]))
        if again and worker.freed:
            # The worker may have been told to let go of an earlier copy of one of these: that has to reach it first.
            worker.outbox.append(("free", worker.freed))
            worker.freed = []
            self._touched[worker] = None
        if function.id not in worker.functions:
            worker.functions.add(function.id)
            worker.outbox.append(("function", function.id, function.blob))
            self._touched[worker] = None
        options = ts.options
        extra = options.for_worker if options is not None else None
        row = (ts.id, ts.attempt, ts.key, function.id, ts.payload, dependencies, ts.priority, extra)
        self._tell(worker, "run", row)

    def rebalance(self) -> None:
        """Ask busy workers for tasks they have not started, if others idle; call it now and then."""
        if self.stealing and self.counts[QUEUED] == 0 and len(self.workers) > 1:
            for worker, tasks in stealing.to_ask_back(self.workers.values()):
                self._ask_back(worker, tasks)

    def _ask_back(self, worker: WorkerState, tasks: Iterable[TaskState]) -> None:
        worker.yielding = True
        for ts in tasks:
            self._tell(worker, "yield", ts.id)

    def queued_seconds(self) -> float:
        """How long the ready tasks that were sent to nobody would take one thread, by estimate."""
        return sum(prefix.duration * prefix.queued for prefix in self.prefixes.values())


def _first_of(worker: WorkerState) -> TaskState | None:
    """The most urgent task of this worker's queue."""
    line = worker.ready
    while (ts := line.first()) is not None:
        if ts.state == QUEUED and ts.worker is worker:
            break
        line.pop()
    return ts


def _full(worker: WorkerState) -> bool:
    """Whether `worker` has enough to do: a task a thread, and beyond that `AHEAD` seconds of short ones that are above
    suspicion."""
    n, nthreads = len(worker.processing), worker.nthreads
    return n >= nthreads and bool(worker.suspects or worker.occupancy >= AHEAD * nthreads or n >= DEPTH * nthreads)
