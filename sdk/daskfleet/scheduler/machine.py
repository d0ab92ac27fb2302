"""The scheduler's state machine: events in, messages out; no sockets, no clock, no user code.

The server calls one method per event (`submit`, `done`, `remove_worker`, …), then `schedule()`, then takes the
messages that have gathered with `drain()`. This is the top of four layers: `queues` decides where and when a ready task
is sent, `transitions` what a change of one task entails for the others, `clients` what a client's event changes, and
this module what a worker's does.

What was sent to a worker is known by ``(id, attempt)``. Ids are never used twice and attempts only grow, so a report
that comes late is recognised and cannot be taken for a newer one. The order of a peer's messages is the order of the
decisions. Ids to free are gathered apart, because they are many and nearly always harmless to send last; `_send` sends
them first in the one case where it matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from daskfleet.exceptions import KilledWorker
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, dumps_by_value, join
from daskfleet.scheduler import retirement
from daskfleet.scheduler.clients import Clients
from daskfleet.scheduler.state import (
    CLOSING,
    ERRED,
    MEMORY,
    NO_WORKER,
    PROCESSING,
    QUEUED,
    RELEASED,
    RUNNING,
    ClientState,
    Failure,
    TaskState,
    Totals,
    WorkerState,
)

#: So many deaths by somebody else's hand count as one that a task may have caused.
OUTSIDE = 5
#: So often a copy of leaving data is asked for.
COPIES = 5


class SchedulerState(Clients):
    """Everything that is decided about tasks.

    Parameters
    ----------
    allowed_failures
        A task that was running on more than this many workers as they died is not tried again.
    bandwidth
        Bytes a second between workers, for weighing a transfer against a wait.
    unknown_duration
        Seconds that a task of a new kind is taken to need.
    stealing
        Whether idle workers take over what waits for others.
    """

    def __init__(
        self,
        *,
        allowed_failures: int = 3,
        bandwidth: float = 1e8,
        unknown_duration: float = 0.5,
        stealing: bool = True,
    ) -> None:
        super().__init__(bandwidth, unknown_duration, stealing)
        self.allowed_failures = allowed_failures
        self.grave = OUTSIDE * min(2, max(1, allowed_failures))
        self.totals = Totals()
        #: By name: dead workers, what they ran, and what they had made last when they ran nothing.
        self.unexplained: dict[str, tuple[WorkerState, list[TaskState], list[TaskState]]] = {}

    # Workers -------------------------------------------------------------------------------------------------------

    def add_worker(self, worker: WorkerState, held: Iterable[tuple[Key, int]] = ()) -> list[int]:
        """A worker has come, or come back; `held` is what it holds, as ``(key, nbytes)``.

        Returns
        -------
        list of int
            The id of each held key, or -1 where the data is of no use and should be dropped. The worker has to know
            them before it gets any message.
        """
        self.workers[worker.address] = worker
        ids = []
        for key, size in held:
            ts = self.keys.get(key)
            if ts is None and self.adopting:
                ids.append(self._add_orphan(key, size, worker).id)
            elif ts is None or ts.state == ERRED or ts.pinned:
                ids.append(-1)
            elif ts.state == MEMORY:
                self._add_copy(ts, worker)
                ids.append(ts.id)
            elif ts.state == RELEASED and not ts.waiters and not ts.wants:
                ids.append(-1)
            else:
                self._withdraw(ts)
                self._remember(ts, worker, size, ts.type, None)
                ids.append(ts.id)
        self._reopen(worker)
        for ts in list(self.unrunnable):
            self._enqueue(ts)
        return ids

    def _add_orphan(self, key: Key, size: int, worker: WorkerState) -> TaskState:
        """Data of a scheduler that is gone: kept until the clients that want it have had time to say so."""
        ts = self._new_task(key, self._prefix("adopted"))
        ts.waiters += 1
        self._orphans.append(ts)
        self._remember(ts, worker, size, None, None)
        return ts

    def end_adoption(self) -> None:
        """No more data is expected: what nobody wants goes, what is wanted and did not come is lost."""
        self.adopting = False
        orphans, self._orphans = self._orphans, []
        for ts in orphans:
            ts.waiters -= 1
            if not ts.waiters and not ts.wants:
                self._discard(ts)
        awaited, self._awaited = self._awaited, {}
        for ts in awaited:
            if ts.waiters or ts.wants:
                self._need(ts)

    def remove_worker(self, worker: WorkerState, *, expected: bool = False) -> None:
        """A worker is gone. Its unfinished tasks run elsewhere; what only it held is computed again if it is needed.

        Unless `expected`, what it was sent is under suspicion from now on (`Queues.suspects`), and to blame if it was
        all running, which is certain when it is no more than the threads. With a nanny the blame waits until that has
        told how the worker ended (`explain`).
        """
        if self.workers.get(worker.address) is worker:
            del self.workers[worker.address]
        worker.status = CLOSING
        exact = not expected and len(worker.processing) <= worker.nthreads
        processing = [*worker.long_running, *worker.processing]
        made = self._last_made(worker) if exact and not processing and self.short_of_memory else []
        for ts in made:
            self.acquitted.setdefault(ts, 0)  # to be a suspect when it runs again
        for ts in list(worker.data):
            if worker in ts.holders:  # unless what went before has let go of it
                self._forget_copy(ts, worker)
        self._disperse(worker)
        worker.long_running, worker.processing = {}, {}
        worker.occupancy = worker.suspects = 0
        for ts in processing:
            if ts.state != PROCESSING or ts.worker is not worker:
                continue
            ts.worker = None
            if not expected:
                self.suspects.setdefault(ts, 0)
            self._recount(ts)
        self._touched.pop(worker, None)
        if exact:
            self.unexplained[worker.name] = worker, processing, made
            if not worker.info.get("nanny"):
                self.explain(worker.name)

    def without_worker(self) -> list[TaskState]:
        """What could run but for want of a worker: of any at all, or of one that it may run on."""
        if not self.workers:
            return [ts for ts in self.tasks.values() if ts.state in (QUEUED, NO_WORKER)]
        return list(self.unrunnable)

    def refuse(self, ts: TaskState, error: Exception) -> None:
        """Give up a task that is not running."""
        self._fail(ts, Failure(dumps_by_value(error), b"", str(error), ts.key))

    def explain(self, name: str, *, outside: bool = False, memory: bool = False) -> None:
        """How the last worker of this name ended, if anybody wonders: by itself, or by somebody else's hand.

        A task that ran on more than `allowed_failures` workers as they died is given up. Of deaths from `outside` it
        takes `OUTSIDE` times as many, since a long task may well see several, and yet a task can call that hand. Of
        those for want of `memory` the result that was made last is the cause as well, if nothing was running, and it
        does not exonerate a task that it has finished since.
        """
        self.short_of_memory = self.short_of_memory or memory
        worker, accused, made = self.unexplained.pop(name, (None, (), ()))
        for ts in [*accused, *made] if memory else accused:
            blame = self.acquitted if memory and ts in self.acquitted else self.suspects
            if worker is None or ts not in blame:
                continue  # it has finished since
            blame[ts] += 1 if outside else OUTSIDE
            ts.prefix.suspicious += 1
            if blame is self.suspects and blame[ts] > self.allowed_failures * OUTSIDE:
                self.refuse(ts, KilledWorker(ts.key, worker.address, self.allowed_failures))

    def _last_made(self, worker: WorkerState) -> list[TaskState]:
        """The task whose result came last of those that only this worker holds, if it has any."""
        made = (ts for ts in reversed(worker.data) if ts.function is not None and ts.holders == worker.alone)
        return list(islice(made, 1))

    def set_status(self, worker: WorkerState, status: str) -> None:
        """A worker pauses, resumes, or is about to leave; unless it runs it is sent nothing and gives back what it has
        not started."""
        if worker.status == status:
            return
        worker.status = status
        if status == RUNNING:
            self._reopen(worker)
            for ts in list(self.unrunnable):
                self._enqueue(ts)
        else:
            self._disperse(worker)
            if worker.processing:
                self._ask_back(worker, worker.processing)

    def _disperse(self, worker: WorkerState) -> None:
        """`worker` is sent nothing more: what was queued for it goes elsewhere."""
        self._open.pop(worker, None)
        for ts in worker.ready:
            if ts.state == QUEUED and ts.worker is worker:
                self._withdraw(ts)
                self._recount(ts)
        worker.ready.clear()
        for ts in self.suspects:
            if ts.state == QUEUED and ts.options is not None:
                self._enqueue(ts)  # perhaps no other worker may run it

    def done(self, worker: WorkerState, rows: Iterable[tuple[int, int, int, float, str, Serialized | None]]) -> None:
        """Tasks have finished on `worker`."""
        for id, attempt, size, seconds, kind, value in rows:
            ts = self.tasks.get(id)
            if ts is None or ts.attempt != attempt or ts.worker is not worker or ts.state != PROCESSING:
                continue  # whoever took the task from this worker has told it to drop the result as well
            self._stop(ts, worker)
            ts.prefix.observe(seconds)
            self.totals.computed += 1
            self.totals.seconds += seconds
            self._remember(ts, worker, size, kind, join(value) if type(value) is tuple else value)
            if ts.options is not None and ts.options.actor and ts.function is not None:
                self._release_function(ts)  # an actor's state cannot be computed again: it is data from now on
        self._reopen(worker)

    def erred(self, worker: WorkerState, rows: Iterable[tuple[int, int, Serialized, Serialized, str, float]]) -> None:
        """Tasks have raised on `worker`; they are tried again as often as their user said."""
        for id, attempt, exception, traceback, text, _ in rows:
            ts = self.tasks.get(id)
            if ts is None or ts.attempt != attempt or ts.worker is not worker or ts.state != PROCESSING:
                continue
            self._stop(ts, worker)
            if ts.options is not None and ts.options.retries > 0:
                ts.options.retries -= 1
                self._recount(ts)
            else:
                self.totals.erred += 1
                ts.prefix.erred += 1
                self._fail(ts, Failure(exception, traceback, text, ts.key))
        self._reopen(worker)

    def missing(self, worker: WorkerState, rows: Iterable[tuple[int, int, Sequence[tuple[int, str]]]]) -> None:
        """Tasks could not start because inputs could not be had; rows name them as ``(id, attempt, ((dep, address),
        …))``.

        A copy that could not be fetched counts as lost and is computed again. Data that nothing can compute again stays
        where it is, and the task goes there. Without an address it is the worker itself that lacks what we thought it
        had, and it knows best.
        """
        for id, attempt, copies in rows:
            ts = self.tasks.get(id)
            if ts is None or ts.attempt != attempt or ts.worker is not worker or ts.state != PROCESSING:
                continue
            self._stop(ts, worker)
            for dep_id, address in copies:
                dep, holder = self.tasks.get(dep_id), self.workers.get(address) if address else worker
                if dep is None or holder is None or holder not in dep.holders:
                    continue
                if address and dep.function is None and len(dep.holders) == 1:
                    continue
                self._free(holder, dep_id)
                self._forget_copy(dep, holder)
            self._recount(ts)
        self._reopen(worker)

    def holds(self, worker: WorkerState, ids: Iterable[int]) -> None:
        """Copies have arrived on `worker`."""
        worker.incoming.difference_update(ids)
        for id in ids:
            ts = self.tasks.get(id)
            if ts is None or ts.state == ERRED or not (ts.waiters or ts.wants):
                self._free(worker, id)
            elif ts.state == MEMORY:
                self._add_copy(ts, worker)
            else:  # it was thought to be lost
                if ts.worker is worker and ts.state == PROCESSING:
                    self._stop(ts, worker)  # and not `_withdraw`, which would free the copy as well
                    self._reopen(worker)
                self._withdraw(ts)
                self._remember(ts, worker, ts.nbytes, ts.type, None)

    def inherited(self, worker: WorkerState, rows: Iterable[Sequence[Any]]) -> None:
        """`worker`, which has just come in the place of one that died, has what that had left: pinned results, as
        ``(id, key, value)``.

        Those that borrow are void, since what they refer to may be elsewhere by now.
        """
        for id, key, value in rows:
            ts = self.tasks.get(id)
            if (
                ts is None
                or ts.key != key
                or not (ts.waiters or ts.wants)
                or ts.state in (MEMORY, ERRED)
                or not ts.pinned
                or ts.borrows
            ):
                self._free(worker, id)
            else:
                self._withdraw(ts)
                self._remember(ts, worker, 0, ts.type, join(value) if type(value) is tuple else value)

    def dropped(self, worker: WorkerState, ids: Iterable[int]) -> None:
        """Copies are gone from `worker`, or could not be had."""
        worker.incoming.difference_update(ids)
        for id in ids:
            ts = self.tasks.get(id)
            if ts is not None and worker in ts.holders:
                self._forget_copy(ts, worker)

    def seceded(self, worker: WorkerState, rows: Iterable[tuple[int, int]]) -> None:
        """Tasks on `worker` wait for others: it can run something else meanwhile."""
        for id, attempt in rows:
            ts = self.tasks.get(id)
            if ts is not None and ts.attempt == attempt and ts in worker.processing:
                worker.occupancy -= worker.processing.pop(ts)
                worker.long_running[ts] = None
        self._reopen(worker)

    def rejoined(self, worker: WorkerState, rows: Iterable[tuple[int, int]]) -> None:
        """They take up threads again; how much longer they take nobody knows."""
        for id, attempt in rows:
            ts = self.tasks.get(id)
            if ts is not None and ts.attempt == attempt and ts in worker.long_running:
                del worker.long_running[ts]
                worker.processing[ts] = 0.0

    def rescheduled(self, worker: WorkerState, rows: Iterable[tuple[int, int]]) -> None:
        """Tasks on `worker` have asked to run again, here or elsewhere (`Reschedule`)."""
        for id, attempt in rows:
            ts = self.tasks.get(id)
            if ts is not None and ts.attempt == attempt and ts.worker is worker and ts.state == PROCESSING:
                self._stop(ts, worker)
                self._recount(ts)
        self._reopen(worker)

    def yielded(self, worker: WorkerState, rows: Iterable[tuple[int, int]]) -> None:
        """`worker` gives back tasks that it had not started."""
        worker.yielding = False
        for id, attempt in rows:
            ts = self.tasks.get(id)
            if ts is None or ts.attempt != attempt or ts.worker is not worker or ts.state != PROCESSING:
                continue
            self._stop(ts, worker)
            self._recount(ts)
        self._reopen(worker)

    def hand_over(self, leaving: Sequence[WorkerState], asked: Counter[int]) -> bool:
        """Have what only these workers hold copied to others.

        Parameters
        ----------
        asked
            Counts the requests by task id, over all calls for one departure: what cannot be copied is not asked for
            again and again.

        Returns
        -------
        bool
            Whether anything is left to do before they can go. Call it again when a worker has said something.
        """
        present = [worker for worker in leaving if self.workers.get(worker.address) is worker]
        staying = [worker for worker in self.workers.values() if worker.status == RUNNING]
        unique = [ts for ts in retirement.unique_data(present) if asked[ts.id] < COPIES] if staying else []
        for ts, target in retirement.places(unique, staying):
            asked[ts.id] += 1
            target.incoming.add(ts.id)
            self._tell(target, "fetch", (ts.id, ts.key, ts.nbytes, [holder.address for holder in ts.holders]))
        return bool(unique) or any(worker.processing or worker.long_running or worker.expecting for worker in present)

    def expect_data(self, client: ClientState, cid: int, key: Key) -> int:
        """`client` is about to put the data of a future on workers (scatter).

        Returns
        -------
        int
            The id under which to put it there. Each copy is announced with `data_put`; `data_expected_no_more` follows
            in any case.
        """
        ts = self.keys.get(key) or self._new_task(key, self._prefix("scatter"))
        self.expected[ts.id] = self.expected.get(ts.id, 0) + 1
        if cid not in client.futures:
            self._want(client, cid, ts)
        return ts.id

    def data_put(self, id: int, size: int, kind: str, worker: WorkerState) -> None:
        """The data has arrived on `worker`."""
        ts = self.tasks.get(id)
        now = self.workers.get(worker.address)
        if now is not worker:  # it has died since, or come back and told us what it held then
            if now is not None and (ts is None or (now not in ts.holders and now is not ts.worker)):
                self._free(now, id)
        elif ts is None:
            self._free(worker, id)
        elif ts.state == MEMORY:
            self._add_copy(ts, worker)
        else:
            self._withdraw(ts)
            self._remember(ts, worker, size, kind, None)

    def data_expected_no_more(self, id: int) -> None:
        """All copies have arrived that ever will; without any the future fails."""
        self.expected[id] -= 1
        if self.expected[id]:
            return
        del self.expected[id]
        ts = self.tasks.get(id)
        if ts is not None:
            self._need(ts)
