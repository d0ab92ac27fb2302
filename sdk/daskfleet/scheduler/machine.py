"""The scheduler's state machine: events in, messages out; no sockets, no clock, no user code.

The server calls one method per event (`submit`, `done`, `remove_worker`, …), then `schedule()`, then takes the messages
that have gathered with `drain()`. Three rules keep every task's bookkeeping right, and each has one place:

* A task is *needed* while a client wants it or an unfinished dependent waits for it (`wants`, `waiters`). `_need` makes
  a task whose data is not there happen, `_discard` lets go of one that is no longer needed; both work along the
  dependencies with an explicit stack, since graphs are deeper than Python's recursion.
* `waiting_on` of a waiting task is the number of its dependencies that are not in memory: `_remember` (data came) and
  `_forget_copy` (data went) are the only places where that changes, `_recount` computes it afresh.
* What was sent to a worker is known by ``(id, attempt)``. Ids are never used twice and attempts only grow, so a report
  that comes late is recognised and cannot be taken for a newer one.

The order of a peer's messages is the order of the decisions. Ids to free are gathered apart, because they are many and
nearly always harmless to send last; `_send` sends them first in the one case where it matters.

Over 400 lines because it is one machine: its events share these rules, and the policies are already in files of their own.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from daskfleet.exceptions import KilledWorker, LostData
from daskfleet.protocol.frames import Message
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, dumps_by_value, join, nbytes
from daskfleet.scheduler import placement, stealing
from daskfleet.scheduler.state import (
    CLOSING,
    ERRED,
    FORGOTTEN,
    MEMORY,
    NO_WORKER,
    PROCESSING,
    QUEUED,
    RELEASED,
    RUNNING,
    STATES,
    WAITING,
    ClientState,
    Failure,
    Function,
    Options,
    Prefix,
    TaskState,
    Totals,
    WorkerState,
)

#: Seconds of work, by estimate, that a worker is sent ahead of what its threads are doing: enough to keep it busy over
#: a round trip to a scheduler that is itself busy, little enough that priorities and placement stay our decision.
AHEAD = 0.02
#: So many tasks a thread is sent at most, however short they are.
DEPTH = 1000
#: Bytes of small results that are kept here as well, so that they survive their worker.
INLINE_BUDGET = 256 << 20
#: Bytes and number of functions that are kept though no task uses them at present: the next submission often does.
IDLE_FUNCTIONS, IDLE_FUNCTION_BYTES = 1000, 64 << 20
#: So many idle workers look for something to steal each time.
STEALS = 32
#: User priorities reach from minus this to this.
MAX_PRIORITY = 1023


class SchedulerState:
    """Everything that is decided about tasks.

    Parameters
    ----------
    allowed_failures
        A task that was running on more than this many workers as they died is not tried again.
    bandwidth
        Bytes a second between workers, for weighing a transfer against a wait.
    """

    def __init__(self, *, allowed_failures: int = 3, bandwidth: float = 1e8) -> None:
        self.allowed_failures = allowed_failures
        self.bandwidth = bandwidth
        self.tasks: dict[int, TaskState] = {}
        self.keys: dict[Key, TaskState] = {}
        self.workers: dict[str, WorkerState] = {}
        self.clients: dict[str, ClientState] = {}
        self.prefixes: dict[str, Prefix] = {}
        self.functions: dict[bytes, Function] = {}
        self.counts: dict[str, int] = dict.fromkeys(STATES, 0)
        self.totals = Totals()
        self.unrunnable: dict[TaskState, None] = {}
        self.inline_bytes = 0
        self._open: OrderedDict[WorkerState, None] = OrderedDict()  # workers with room, the longest unserved first
        self._backlogged: dict[WorkerState, None] = {}
        self._ready: list[tuple[int, int, TaskState]] = []
        self._touched: dict[WorkerState | ClientState, None] = {}
        self._idle_functions: dict[Function, None] = {}
        self._idle_function_bytes = 0
        self._steals = STEALS
        self._next_id = self._next_function = 0
        self._sequence = 0

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

    # Clients -------------------------------------------------------------------------------------------------------

    def add_client(self, id: str) -> ClientState:
        client = self.clients[id] = ClientState(id)
        return client

    def remove_client(self, id: str) -> None:
        """The client is gone: what only it wanted is let go."""
        client = self.clients.pop(id, None)
        if client is not None:
            for number in list(client.graphs):
                self._close_graph(client, number)
            self.release(client, list(client.futures))

    def submit(
        self,
        client: ClientState,
        number: int,
        last: bool,
        priority: int,
        functions: Sequence[bytes],
        prefixes: Sequence[str],
        rows: Sequence[tuple[Any, ...]],
    ) -> None:
        """Take the next rows of a graph, in topological order (see `protocol.messages`).

        A key that is known already keeps its task: its arguments are taken to be the same. Until the graph's last rows
        have come, everything in it counts as needed, since its dependents may still be on their way.
        """
        graph = client.graphs.get(number)
        hold = graph is not None or not last
        if graph is None:
            graph = []
            if hold:
                client.graphs[number] = graph
        shared_functions = [self._function(blob) for blob in functions]
        shared_prefixes = [self._prefix(name) for name in prefixes]
        offset = -max(-MAX_PRIORITY, min(MAX_PRIORITY, priority)) * (1 << 52)
        unwanted = []
        for cid, key, function, payload, dependencies, prefix, options in rows:
            ts = self.keys.get(key)
            if ts is None or (ts.function is None and ts.state == RELEASED):
                if ts is None:
                    ts = self._new_task(key, shared_prefixes[prefix])
                ts.function = self._use(shared_functions[function])
                ts.payload = join(payload) if type(payload) is tuple else payload
                self._sequence += 1
                ts.priority = offset + self._sequence
                if dependencies:
                    ts.dependencies = tuple([graph[d] if d >= 0 else client.futures[-d] for d in dependencies])
                    for dep in ts.dependencies:
                        if dep.dependents is None:
                            dep.dependents = []
                        dep.dependents.append(ts)
                        dep.n_dependents += 1
                if options:
                    ts.options = Options.read(options)
                    ts.retries = ts.options.retries
                    ts.priority -= ts.options.priority * (1 << 52)
                self._need(ts)
            graph.append(ts)
            if hold:
                ts.waiters += 1
            if cid:
                self._want(client, cid, ts)
            elif not hold:
                unwanted.append(ts)
        if last and hold:
            self._close_graph(client, number)
        for ts in unwanted:
            if not ts.waiters and not ts.wants:
                self._discard(ts)

    def _close_graph(self, client: ClientState, number: int) -> None:
        for ts in client.graphs.pop(number):
            ts.waiters -= 1
            if not ts.waiters and not ts.wants:
                self._discard(ts)

    def want(self, client: ClientState, rows: Iterable[tuple[int, Key]]) -> None:
        """The client holds futures of keys that it did not submit itself."""
        for cid, key in rows:
            ts = self.keys.get(key)
            if ts is None:
                self._tell(client, "lost", (cid, f"no task or data is known by the key {key!r}"))
            else:
                self._want(client, cid, ts)

    def _want(self, client: ClientState, cid: int, ts: TaskState) -> None:
        ts.wants += (client, cid)
        client.futures[cid] = ts
        if ts.state == MEMORY:
            self._tell(client, "finished", (cid, ts.nbytes, ts.type, ts.value))
        elif ts.state == ERRED:
            self._tell_failure(client, cid, ts)
        elif ts.state == RELEASED:
            self._need(ts)

    def release(self, client: ClientState, cids: Iterable[int]) -> None:
        """The client's futures of these numbers are gone."""
        for cid in cids:
            ts = client.futures.pop(cid, None)
            if ts is None:
                continue
            wants = ts.wants
            if len(wants) == 2:
                ts.wants = ()
            else:
                pairs = [(wants[i], wants[i + 1]) for i in range(0, len(wants), 2)]
                ts.wants = tuple(item for pair in pairs if pair != (client, cid) for item in pair)
            if not ts.wants and not ts.waiters:
                self._discard(ts)

    def cancel(self, client: ClientState, cids: Iterable[int], *, force: bool = False, reason: str = "") -> None:
        """Take the futures from this client, with `force` from every client, and stop what nobody else needs."""
        for cid in list(cids):
            ts = client.futures.get(cid)
            if ts is None:
                continue
            wants = ts.wants
            for i in range(0, len(wants), 2):
                if force or wants[i] is client:
                    self._tell(wants[i], "lost", (wants[i + 1], reason or "cancelled"))
                    self.release(wants[i], [wants[i + 1]])

    def retry(self, client: ClientState, cids: Iterable[int]) -> None:
        """Run failed tasks again, from the ones that failed first."""
        failed = [ts for cid in cids if (ts := client.futures.get(cid)) is not None and ts.state == ERRED]
        stack, seen = list(failed), set(failed)
        while stack:
            for dep in stack.pop().dependencies:
                if dep.state == ERRED and dep not in seen:
                    seen.add(dep)
                    stack.append(dep)
        for ts in seen:
            self._enter(ts, RELEASED)
            ts.failure, ts.suspicious = None, 0
            for i in range(0, len(ts.wants), 2):
                self._tell(ts.wants[i], "pending", ts.wants[i + 1])
        for ts in failed:
            self._need(ts)

    # Workers -------------------------------------------------------------------------------------------------------

    def add_worker(self, worker: WorkerState, held: Iterable[tuple[Key, int]] = ()) -> list[int]:
        """A worker has come, or come back; `held` is what it holds, as ``(key, nbytes)``.

        Returns
        -------
        list of int
            The id of each held key, or -1 where the data is of no use and should be dropped.
        """
        self.workers[worker.address] = worker
        ids = []
        for key, size in held:
            ts = self.keys.get(key)
            if ts is None or ts.state == ERRED:
                ids.append(-1)
            elif ts.state == MEMORY:
                self._add_copy(ts, worker)
                ids.append(ts.id)
            elif ts.state == RELEASED:
                ids.append(-1)
            else:
                self._withdraw(ts)
                self._remember(ts, worker, size, ts.type, None)
                ids.append(ts.id)
        self._reopen(worker)
        for ts in list(self.unrunnable):
            self._enqueue(ts)
        return ids

    def remove_worker(self, worker: WorkerState, *, expected: bool = False) -> None:
        """A worker is gone. Its unfinished tasks run elsewhere; what only it held is computed again if it is needed.

        Unless `expected`, the tasks it was probably running are under suspicion: the first `nthreads` it was sent.
        """
        if self.workers.get(worker.address) is worker:
            del self.workers[worker.address]
        worker.status = CLOSING
        self._open.pop(worker, None)
        self._backlogged.pop(worker, None)
        self._touched.pop(worker, None)
        for ts in list(worker.data):
            self._forget_copy(ts, worker)
        for _, _, ts in worker.ready:
            if ts.state == QUEUED and ts.worker is worker:
                self._withdraw(ts)
                self._recount(ts)
        worker.ready.clear()
        processing, worker.processing = worker.processing, {}
        worker.occupancy = 0.0
        for position, ts in enumerate(processing):
            if ts.state != PROCESSING or ts.worker is not worker:
                continue
            ts.worker = None
            if not expected and position < worker.nthreads:
                ts.suspicious += 1
                ts.prefix.suspicious += 1
                if ts.suspicious > self.allowed_failures:
                    error = KilledWorker(ts.key, worker.address, self.allowed_failures)
                    self._fail(ts, Failure(dumps_by_value(error), b"", str(error), ts.key))
                    continue
            self._recount(ts)

    def set_status(self, worker: WorkerState, status: str) -> None:
        """A worker pauses, resumes, or is about to leave; unless it runs it is sent nothing."""
        if worker.status == status:
            return
        worker.status = status
        if status == RUNNING:
            self._reopen(worker)
            for ts in list(self.unrunnable):
                self._enqueue(ts)
        else:
            self._open.pop(worker, None)
            for _, _, ts in worker.ready:
                if ts.state == QUEUED and ts.worker is worker:
                    self._withdraw(ts)
                    self._recount(ts)
            worker.ready.clear()
            surplus = list(worker.processing)[worker.nthreads :]
            if surplus:
                self._ask_back(worker, surplus)

    def done(self, worker: WorkerState, rows: Iterable[tuple[int, int, int, float, str, Serialized | None]]) -> None:
        """Tasks have finished on `worker`."""
        for id, attempt, size, seconds, kind, value in rows:
            ts = self.tasks.get(id)
            if ts is None or ts.attempt != attempt or ts.worker is not worker or ts.state != PROCESSING:
                if ts is None or ts.worker is not worker:
                    self._free(worker, id)
                continue
            self._stop(ts, worker)
            ts.prefix.observe(seconds)
            self.totals.computed += 1
            self.totals.seconds += seconds
            self._remember(ts, worker, size, kind, join(value) if type(value) is tuple else value)
        self._reopen(worker)

    def erred(self, worker: WorkerState, rows: Iterable[tuple[int, int, Serialized, Serialized, str, float]]) -> None:
        """Tasks have raised on `worker`; they are tried again as often as their user said."""
        for id, attempt, exception, traceback, text, _ in rows:
            ts = self.tasks.get(id)
            if ts is None or ts.attempt != attempt or ts.worker is not worker or ts.state != PROCESSING:
                continue
            self._stop(ts, worker)
            if ts.retries > 0:
                ts.retries -= 1
                self._recount(ts)
            else:
                self.totals.erred += 1
                ts.prefix.erred += 1
                self._fail(ts, Failure(exception, traceback, text, ts.key))
        self._reopen(worker)

    def missing(self, worker: WorkerState, rows: Iterable[tuple[int, int, Sequence[tuple[int, str]]]]) -> None:
        """Tasks could not start because inputs could not be had; rows name them as ``(id, attempt, ((dep, address), …))``.

        A copy that could not be fetched counts as lost and is computed again. Data that nothing can compute again stays
        where it is, and the task goes there.
        """
        for id, attempt, copies in rows:
            ts = self.tasks.get(id)
            if ts is None or ts.attempt != attempt or ts.worker is not worker or ts.state != PROCESSING:
                continue
            self._stop(ts, worker)
            for dep_id, address in copies:
                dep, holder = self.tasks.get(dep_id), self.workers.get(address)
                if dep is None or holder is None or holder not in dep.holders:
                    continue
                if dep.function is None and len(dep.holders) == 1:
                    continue
                self._free(holder, dep_id)
                self._forget_copy(dep, holder)
            self._recount(ts)
        self._reopen(worker)

    def holds(self, worker: WorkerState, ids: Iterable[int]) -> None:
        """Copies have arrived on `worker`."""
        for id in ids:
            ts = self.tasks.get(id)
            if ts is None or ts.state != MEMORY:
                self._free(worker, id)
            else:
                self._add_copy(ts, worker)

    def dropped(self, worker: WorkerState, ids: Iterable[int]) -> None:
        """Copies are gone from `worker`."""
        for id in ids:
            ts = self.tasks.get(id)
            if ts is not None and worker in ts.holders:
                self._forget_copy(ts, worker)

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

    def add_data(self, key: Key, size: int, kind: str, value: Serialized | None, workers: Sequence[WorkerState]) -> None:
        """Data that a client has put on `workers` (scatter). Call `want` before anything else happens."""
        ts = self.keys.get(key)
        if ts is None:
            ts = self._new_task(key, self._prefix("scatter"))
        if ts.state != MEMORY:
            self._withdraw(ts)
            self._remember(ts, workers[0], size, kind, value, keep=True)
        for worker in workers:
            self._add_copy(ts, worker)

    def new_id(self, key: Key) -> int:
        """The id under which data for `key` should be put on a worker."""
        ts = self.keys.get(key)
        return (ts or self._new_task(key, self._prefix("scatter"))).id

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

    @property
    def forgotten(self) -> int:
        """How many tasks there have been that are no longer known."""
        return self._next_id - len(self.tasks)

    def queued_seconds(self) -> float:
        """How long the tasks in the common queue would take one thread, by estimate."""
        return sum(ts.prefix.duration for _, _, ts in self._ready if ts.state == QUEUED and ts.worker is None)

    def rebalance(self) -> None:
        """Ask busy workers for tasks they have not started, if others idle; call it now and then."""
        if self.counts[QUEUED] == 0 and len(self.workers) > 1:
            for worker, tasks in stealing.to_ask_back(self.workers.values()):
                self._ask_back(worker, tasks)

    def _ask_back(self, worker: WorkerState, tasks: Iterable[TaskState]) -> None:
        worker.yielding = True
        for ts in tasks:
            self._tell(worker, "yield", ts.id)

    def _next_for(self, worker: WorkerState) -> TaskState | None:
        """The queued task that `worker` should be sent next, taken from its queue."""
        own, common = worker.ready, self._ready
        while own and not (own[0][2].state == QUEUED and own[0][2].worker is worker):
            heapq.heappop(own)
        while common and not (common[0][2].state == QUEUED and common[0][2].worker is None):
            heapq.heappop(common)
        if own and (not common or own[0] < common[0]):
            return heapq.heappop(own)[2]
        if common:
            return heapq.heappop(common)[2]
        if not self._steals or not self._backlogged:
            return None
        self._steals -= 1
        for victim in stealing.victims(self._backlogged, worker):
            while victim.ready and not (victim.ready[0][2].state == QUEUED and victim.ready[0][2].worker is victim):
                heapq.heappop(victim.ready)
            if victim.ready and stealing.worthwhile(victim.ready[0][2], victim, worker, self.bandwidth):
                return heapq.heappop(victim.ready)[2]
        return None

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
        extra = {"resources": options.resources} if options is not None and options.resources else None
        row = (ts.id, ts.attempt, ts.key, function.id, ts.payload, dependencies, ts.priority, extra)
        self._tell(worker, "run", row)

    def _stop(self, ts: TaskState, worker: WorkerState) -> None:
        """`worker` has nothing more to do for `ts`."""
        worker.occupancy -= worker.processing.pop(ts, 0.0)
        if not worker.processing:
            worker.occupancy = 0.0  # sums of floats drift
        ts.worker = None

    def _reopen(self, worker: WorkerState) -> None:
        if worker.status == RUNNING and not _full(worker):
            self._open[worker] = None

    # Tasks ---------------------------------------------------------------------------------------------------------

    def _new_task(self, key: Key, prefix: Prefix) -> TaskState:
        self._next_id += 1
        ts = TaskState(self._next_id, key, prefix)
        self.tasks[ts.id] = self.keys[key] = ts
        self.counts[RELEASED] += 1
        return ts

    def _function(self, blob: bytes) -> Function:
        function = self.functions.get(blob)
        if function is None:
            self._next_function += 1
            function = self.functions[blob] = Function(self._next_function, blob)
        return function

    def _prefix(self, name: str) -> Prefix:
        prefix = self.prefixes.get(name)
        if prefix is None:
            prefix = self.prefixes[name] = Prefix(name)
        return prefix

    def _enter(self, ts: TaskState, state: str) -> None:
        counts = self.counts
        counts[ts.state] -= 1
        counts[state] += 1
        ts.state = state

    def _need(self, first: TaskState) -> None:
        """Make data happen that is not there: wait for the dependencies, and need those that are not there either."""
        stack = [first]
        while stack:
            ts = stack.pop()
            if ts.state != RELEASED:
                continue
            if ts.function is None:
                error = LostData(f"the data of {ts.key!r} was on workers that are gone, and no task produces it")
                self._fail(ts, Failure(dumps_by_value(error), b"", str(error), ts.key))
                continue
            self._enter(ts, WAITING)
            waiting_on, failure = 0, None
            for dep in ts.dependencies:
                dep.waiters += 1
                if dep.state != MEMORY:
                    waiting_on += 1
                    if dep.state == RELEASED:
                        stack.append(dep)
                    elif dep.state == ERRED:
                        failure = dep.failure
            ts.waiting_on = waiting_on
            if failure is not None:
                self._fail(ts, failure)
            elif not waiting_on:
                self._enqueue(ts)

    def _recount(self, ts: TaskState) -> None:
        """A task that was ready or sent is neither any more: wait again for what is not there, or queue it again."""
        if ts.state != WAITING:
            self._enter(ts, WAITING)
        ts.waiting_on = sum(dep.state != MEMORY for dep in ts.dependencies)
        if not ts.waiting_on:
            self._enqueue(ts)
            return
        for dep in ts.dependencies:
            if dep.state == ERRED and dep.failure is not None:
                self._fail(ts, dep.failure)
                return
            if dep.state == RELEASED:
                self._need(dep)

    def _enqueue(self, ts: TaskState) -> None:
        """All inputs are there: queue for the worker where it had better run, or for any."""
        self.unrunnable.pop(ts, None)
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
        self._enter(ts, QUEUED)
        ts.worker = worker
        entry = (ts.priority, ts.id, ts)
        if worker is None:
            heapq.heappush(self._ready, entry)
        else:
            heapq.heappush(worker.ready, entry)
            worker.backlog += 1
            self._backlogged[worker] = None

    def _withdraw(self, ts: TaskState) -> None:
        """Take a task out of wherever it stands in line or runs; its state is the caller's to change."""
        worker = ts.worker
        if ts.state == QUEUED and worker is not None:
            worker.backlog -= 1
            if not worker.backlog:
                self._backlogged.pop(worker, None)
        elif ts.state == PROCESSING and worker is not None:
            self._stop(ts, worker)
            self._free(worker, ts.id)
            self._reopen(worker)
        elif ts.state == NO_WORKER:
            self.unrunnable.pop(ts, None)
        ts.worker = None

    def _remember(
        self, ts: TaskState, worker: WorkerState, size: int, kind: str | None, value: Serialized | None, keep: bool = False
    ) -> None:
        """The data of `ts` is there: whoever waited for it may go on, and its own inputs may go."""
        active = ts.state in (WAITING, QUEUED, PROCESSING, NO_WORKER)
        self._enter(ts, MEMORY)
        ts.nbytes, ts.type = size, kind
        if value is not None and self.inline_bytes < INLINE_BUDGET:
            ts.value = value
            self.inline_bytes += nbytes(value)
        self._add_copy(ts, worker)
        wants = ts.wants
        for i in range(0, len(wants), 2):
            self._tell(wants[i], "finished", (wants[i + 1], size, kind, value))
        if ts.dependents is not None:
            for dependent in ts.dependents:
                if dependent.state == WAITING:
                    dependent.waiting_on -= 1
                    if not dependent.waiting_on:
                        self._enqueue(dependent)
        if active:
            self._stop_waiting(ts)
        if not ts.waiters and not wants and not keep:
            self._discard(ts)

    def _stop_waiting(self, ts: TaskState) -> None:
        for dep in ts.dependencies:
            dep.waiters -= 1
            if not dep.waiters and not dep.wants:
                self._discard(dep)

    def _add_copy(self, ts: TaskState, worker: WorkerState) -> None:
        if worker not in ts.holders:
            ts.holders = ts.holders + worker.alone if ts.holders else worker.alone
            worker.data[ts] = None
            worker.nbytes += ts.nbytes

    def _forget_copy(self, ts: TaskState, worker: WorkerState) -> None:
        """One copy is gone. If it was the last, the task starts over as far as it is still needed."""
        worker.data.pop(ts, None)
        worker.nbytes -= ts.nbytes
        ts.holders = tuple([holder for holder in ts.holders if holder is not worker])
        if ts.holders or ts.value is not None:
            return
        self._enter(ts, RELEASED)
        for i in range(0, len(ts.wants), 2):
            self._tell(ts.wants[i], "pending", ts.wants[i + 1])
        for dependent in ts.dependents or ():
            if dependent.state == WAITING:
                dependent.waiting_on += 1
            elif dependent.state in (QUEUED, NO_WORKER):
                self._withdraw(dependent)
                self._enter(dependent, WAITING)
                dependent.waiting_on = sum(dep.state != MEMORY for dep in dependent.dependencies)
        if ts.waiters or ts.wants:
            self._need(ts)
        else:
            self._discard(ts)

    def _fail(self, first: TaskState, failure: Failure) -> None:
        """A task cannot be computed, so neither can what waits for it."""
        stack, unneeded = [first], []
        while stack:
            ts = stack.pop()
            if ts.state in (ERRED, FORGOTTEN):
                continue
            active = ts.state not in (RELEASED, MEMORY)
            self._withdraw(ts)
            self._enter(ts, ERRED)
            ts.failure = failure
            for i in range(0, len(ts.wants), 2):
                self._tell_failure(ts.wants[i], ts.wants[i + 1], ts)
            for dependent in ts.dependents or ():
                if dependent.state == WAITING:
                    stack.append(dependent)
            if active:
                for dep in ts.dependencies:
                    dep.waiters -= 1
                    unneeded.append(dep)
            unneeded.append(ts)
        for ts in unneeded:
            if not ts.waiters and not ts.wants:
                self._discard(ts)

    def _tell_failure(self, client: ClientState, cid: int, ts: TaskState) -> None:
        failure = ts.failure
        assert failure is not None
        self._tell(client, "erred", (cid, failure.exception, failure.traceback, failure.key))

    def _discard(self, first: TaskState) -> None:
        """Let go of a task that nobody needs: drop its data or stop it, and forget it once nothing depends on it."""
        stack = [first]
        while stack:
            ts = stack.pop()
            if ts.waiters or ts.wants or ts.state == FORGOTTEN:
                continue
            if ts.state == MEMORY:
                for worker in ts.holders:
                    self._free(worker, ts.id)
                    worker.data.pop(ts, None)
                    worker.nbytes -= ts.nbytes
                ts.holders = ()
                if ts.value is not None:
                    self.inline_bytes -= nbytes(ts.value)
                    ts.value = None
                self._enter(ts, RELEASED)
            elif ts.state not in (RELEASED, ERRED):
                self._withdraw(ts)
                self._enter(ts, RELEASED)
                for dep in ts.dependencies:
                    dep.waiters -= 1
                    stack.append(dep)
            if not ts.n_dependents:
                self._forget(ts)
                for dep in ts.dependencies:
                    dep.n_dependents -= 1
                    stack.append(dep)
                ts.dependencies, ts.dependents = (), None

    def _forget(self, ts: TaskState) -> None:
        self.counts[ts.state] -= 1
        ts.state = FORGOTTEN
        del self.tasks[ts.id]
        del self.keys[ts.key]
        function = ts.function
        if function is not None:
            function.users -= 1
            if not function.users:
                self._retire_function(function)
        for dep in ts.dependencies:
            dependents = dep.dependents
            if dependents is not None and len(dependents) > 16 and len(dependents) > 2 * dep.n_dependents:
                dep.dependents = [dependent for dependent in dependents if dependent.state != FORGOTTEN]

    def _use(self, function: Function) -> Function:
        if not function.users and function in self._idle_functions:
            del self._idle_functions[function]
            self._idle_function_bytes -= len(function.blob)
        function.users += 1
        return function

    def _retire_function(self, function: Function) -> None:
        """No task uses it any more: keep it for a while, and let go of the one unused longest when there are too many."""
        self._idle_functions[function] = None
        self._idle_function_bytes += len(function.blob)
        while len(self._idle_functions) > IDLE_FUNCTIONS or self._idle_function_bytes > IDLE_FUNCTION_BYTES:
            oldest = next(iter(self._idle_functions))
            del self._idle_functions[oldest], self.functions[oldest.blob]
            self._idle_function_bytes -= len(oldest.blob)
            for worker in self.workers.values():
                if oldest.id in worker.functions:
                    worker.functions.discard(oldest.id)
                    self._tell(worker, "forget", oldest.id)


def _full(worker: WorkerState) -> bool:
    """Whether `worker` has enough to do: a task a thread, and beyond that `AHEAD` seconds of short ones."""
    n, nthreads = len(worker.processing), worker.nthreads
    return n >= nthreads and (worker.occupancy >= AHEAD * nthreads or n >= DEPTH * nthreads)
