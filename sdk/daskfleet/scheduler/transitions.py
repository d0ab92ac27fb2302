"""What each change of a task entails for the others; the rules that keep every task's bookkeeping right.

* A task is *needed* while a client wants it or an unfinished dependent waits for it (`wants`, `waiters`). `_need` makes
  a task whose data is not there happen, `_discard` lets go of one that is no longer needed; both work along the
  dependencies with an explicit stack, since graphs are deeper than Python's recursion.
* `waiting_on` of a waiting task is the number of its dependencies that are not in memory: `_remember` (data came) and
  `_forget_copy` (data went) are the only places where that changes, `_recount` computes it afresh.
* Dependencies of a task that is waiting, queued or processing count it as a waiter. Whoever takes it out of these
states
  (`_remember`, `_fail`, `_discard`) gives those counts back; whoever moves it between them leaves them alone.
"""

from __future__ import annotations

import sys

from daskfleet.exceptions import LostData
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, dumps_by_value, nbytes
from daskfleet.scheduler.queues import Queues
from daskfleet.scheduler.state import (
    ERRED,
    FORGOTTEN,
    MEMORY,
    NO_WORKER,
    PROCESSING,
    QUEUED,
    RELEASED,
    WAITING,
    ClientState,
    Failure,
    Function,
    Prefix,
    TaskState,
    WorkerState,
)

#: Bytes of small results that are kept here as well, so that they survive their worker.
INLINE_BUDGET = 256 << 20
#: Bytes of results of which there is only a handful: pickles of None, truth values and the smallest numbers.
TINY = 5
#: Bytes and number of functions that are kept though no task uses them at present: the next submission often does.
IDLE_FUNCTIONS, IDLE_FUNCTION_BYTES = 1000, 64 << 20


class Transitions(Queues):
    """Changes of tasks' states."""

    def __init__(self, bandwidth: float, unknown_duration: float, stealing: bool) -> None:
        super().__init__(bandwidth, unknown_duration, stealing)
        self.functions: dict[bytes, Function] = {}
        self.inline_bytes = 0
        self._tiny: dict[bytes, bytes] = {}  # of many equal results (None, True, 0) one is kept
        #: Whether workers may still bring data of a scheduler in whose place we are.
        self.adopting = False
        self._orphans: list[TaskState] = []
        self._awaited: dict[TaskState, None] = {}
        #: Tasks whose data more than one worker holds, and how many copies somebody has asked for.
        self.replicated: dict[TaskState, None] = {}
        self.copies: dict[TaskState, int] = {}
        self.expected: dict[int, int] = {}  # ids whose data a client is putting on workers: in how many calls
        self._idle_functions: dict[Function, None] = {}
        self._idle_function_bytes = 0
        self._next_id = self._next_function = 0

    @property
    def forgotten(self) -> int:
        """How many tasks there have been that are no longer known."""
        return self._next_id - len(self.tasks)

    def _new_task(self, key: Key, prefix: Prefix) -> TaskState:
        self._next_id += 1
        ts = TaskState(self._next_id, key, prefix)
        self.tasks[ts.id] = self.keys[key] = ts
        self.counts[RELEASED] += 1
        return ts

    def _prefix(self, name: str) -> Prefix:
        prefix = self.prefixes.get(name)
        if prefix is None:
            prefix = self.prefixes[name] = Prefix(name, self.unknown_duration)
        return prefix

    def _need(self, first: TaskState) -> None:
        """Make data happen that is not there: wait for the dependencies, and need those that are not there either."""
        stack = [first]
        while stack:
            ts = stack.pop()
            if ts.state != RELEASED or not (ts.waiters or ts.wants):
                continue  # the latter when a failure further up the stack has ended the need
            if ts.function is None and ts.id in self.expected:
                continue
            if ts.function is None and self.adopting:
                self._awaited[ts] = None
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

    def _remember(
        self,
        ts: TaskState,
        worker: WorkerState | None,
        size: int,
        kind: str | None,
        value: Serialized | None,
    ) -> None:
        """The data of `ts` is there, on `worker` or here: whoever waited for it may go on, and its inputs may go."""
        active = ts.state in (WAITING, QUEUED, PROCESSING, NO_WORKER)
        self._enter(ts, MEMORY)
        if self.suspects and (blame := self.suspects.pop(ts, None)) is not None and self.short_of_memory:
            self.acquitted[ts] = blame
        ts.nbytes, ts.type = size, kind and sys.intern(kind)
        options = ts.options
        pinned = options is not None and options.pinned
        if value is not None and (worker is None or pinned or self.inline_bytes < INLINE_BUDGET):
            ts.value = self._tiny.setdefault(value, value) if type(value) is bytes and len(value) <= TINY else value
            self.inline_bytes += nbytes(value)
        if worker is not None:
            self._add_copy(ts, worker)
        for client, cid in ts.wanted:
            self._tell(client, "finished", (cid, size, kind, value))
        if ts.dependents is not None:
            for dependent in ts.dependents:
                if dependent.state == WAITING:
                    dependent.waiting_on -= 1
                    if not dependent.waiting_on:
                        self._enqueue(dependent)
        if active and (options is None or not options.borrows):
            self._stop_waiting(ts)
        if not ts.waiters and not ts.wants:
            self._discard(ts)

    def _stop_waiting(self, ts: TaskState) -> None:
        for dep in ts.dependencies:
            dep.waiters -= 1
            if not dep.waiters and not dep.wants:
                self._discard(dep)

    def _add_copy(self, ts: TaskState, worker: WorkerState) -> None:
        if worker not in ts.holders:
            if ts.holders:
                ts.holders += worker.alone
                self.replicated[ts] = None
            else:
                ts.holders = worker.alone
            worker.data[ts] = None
            worker.nbytes += ts.nbytes

    def _forget_copy(self, ts: TaskState, worker: WorkerState) -> None:
        """One copy is gone. If it was the last, the task starts over as far as it is still needed."""
        worker.data.pop(ts, None)
        worker.nbytes -= ts.nbytes
        ts.holders = tuple([holder for holder in ts.holders if holder is not worker])
        if len(ts.holders) == 1:
            self.replicated.pop(ts, None)
        if not ts.holders and (ts.value is None or ts.pinned):
            self._lose(ts)

    def _lose(self, ts: TaskState) -> None:
        """The data is gone, and with it what borrows from it."""
        self._drop_data(ts)
        for client, cid in ts.wanted:
            self._tell(client, "pending", cid)
        void = []
        for dependent in ts.dependents or ():
            if dependent.state == WAITING:
                dependent.waiting_on += 1
            elif dependent.state in (QUEUED, NO_WORKER) or (dependent.state == PROCESSING and dependent.borrows):
                self._withdraw(dependent)
                self._enter(dependent, WAITING)
                dependent.waiting_on = sum(dep.state != MEMORY for dep in dependent.dependencies)
            elif dependent.state == MEMORY and dependent.borrows:
                void.append(dependent)
        for dependent in void:
            if dependent.state == MEMORY:
                self._lose(dependent)
        needed = ts.waiters or ts.wants
        if needed:
            self._need(ts)
        if ts.borrows:
            self._stop_waiting(ts)
        if not needed:
            self._discard(ts)

    def _drop_data(self, ts: TaskState) -> None:
        for worker in ts.holders:
            self._free(worker, ts.id)
            worker.data.pop(ts, None)
            worker.nbytes -= ts.nbytes
        if len(ts.holders) > 1:
            self.replicated.pop(ts, None)
        ts.holders = ()
        if ts.value is not None:
            self.inline_bytes -= nbytes(ts.value)
            ts.value = None
        self._enter(ts, RELEASED)

    def _fail(self, first: TaskState, failure: Failure) -> None:
        """A task cannot be computed, so neither can what waits for it."""
        stack, unneeded = [first], []
        while stack:
            ts = stack.pop()
            if ts.state in (ERRED, FORGOTTEN):
                continue
            active = ts.state not in (RELEASED, MEMORY)
            self._withdraw(ts)
            self.suspects.pop(ts, None)
            self.acquitted.pop(ts, None)
            self._enter(ts, ERRED)
            ts.failure = failure
            for client, cid in ts.wanted:
                self._tell_failure(client, cid, ts)
            stack.extend(dependent for dependent in ts.dependents or () if dependent.state == WAITING)
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
                self._drop_data(ts)
                if ts.options is not None and ts.options.borrows:
                    for dep in ts.dependencies:
                        dep.waiters -= 1
                        stack.append(dep)
            elif ts.state not in (RELEASED, ERRED):
                self._withdraw(ts)
                self.suspects.pop(ts, None)
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
        if self.copies:
            self.copies.pop(ts, None)
        if self.acquitted:
            self.acquitted.pop(ts, None)
        del self.tasks[ts.id]
        del self.keys[ts.key]
        if ts.function is not None:
            self._release_function(ts)
        for dep in ts.dependencies:
            dependents = dep.dependents
            if dependents is not None and len(dependents) > 16 and len(dependents) > 2 * dep.n_dependents:
                dep.dependents = [dependent for dependent in dependents if dependent.state != FORGOTTEN]

    # Functions -----------------------------------------------------------------------------------------------------

    def _function(self, blob: bytes) -> Function:
        function = self.functions.get(blob)
        if function is None:
            self._next_function += 1
            function = self.functions[blob] = Function(self._next_function, blob)
        return function

    def _use(self, function: Function) -> Function:
        if not function.users and function in self._idle_functions:
            del self._idle_functions[function]
            self._idle_function_bytes -= len(function.blob)
        function.users += 1
        return function

    def _release_function(self, ts: TaskState) -> None:
        """`ts` will not call its function any more."""
        function, ts.function = ts.function, None
        assert function is not None
        function.users -= 1
        if not function.users:
            self._retire_function(function)

    def _retire_function(self, function: Function) -> None:
        """No task uses it any more: keep it for a while, and let go of the one unused longest when there are too
        many."""
        if function not in self._idle_functions:
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
