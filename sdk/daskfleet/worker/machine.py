"""The worker's state machine: what to fetch, what to run next, what to report; no sockets, no threads, no clock.

The scheduler is the only one who decides what a worker should hold or run; the worker decides the order. A task goes
``waiting`` (for inputs from other workers) → ``ready`` → ``executing`` and then is gone, its result among the data.
A task that waits for others may be ``long-running`` in between: it then runs outside of the slots.
There is no state for a task that was cancelled while it ran: it is simply no longer the one known under its id, so
whatever comes of it later is recognised by identity and dropped. That is what makes "free, then run again" safe.

Events are method calls; what they give rise to gathers in three lists that the server empties: `execute` (tasks to hand
to threads), `gather` (data to fetch, by address) and `outbox` (messages to the scheduler).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from daskfleet.protocol.frames import Message
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized

WAITING, READY, EXECUTING, LONG_RUNNING, ENDED = "waiting", "ready", "executing", "long-running", "ended"

#: Seconds of work that threads are handed in advance, when tasks are short: waking a thread costs more than such a
#: task.
AHEAD = 0.005
MAX_AHEAD = 512
#: Bytes asked from one peer at a time, and peers asked at a time.
FETCH_BYTES = 50 << 20
FETCH_PEERS = 16


class Task:
    """One attempt at a task.

    Attributes
    ----------
    dependencies
        Ids, in the order in which `daskfleet.protocol.spec.Ref` counts them.
    inline
        Inputs that came with the task, by id, still serialised.
    function
        Serialised. Not by the scheduler's id: that of another scheduler may be the same.
    missing
        Ids of inputs that are being fetched.
    inputs
        Set when the task is handed to a thread: one per dependency, an object or `Inline`.
    """

    __slots__ = (
        "attempt",
        "dependencies",
        "function",
        "id",
        "inline",
        "inputs",
        "key",
        "missing",
        "payload",
        "priority",
        "resources",
        "state",
        "timeout",
    )

    def __init__(self, row: Sequence[Any], functions: Mapping[int, bytes]) -> None:
        self.id, self.attempt, self.key, function, self.payload, _, self.priority, options = row
        self.function = functions[function]
        self.state = WAITING
        self.dependencies: list[int] = []
        self.inline: dict[int, Serialized] | None = None
        self.missing: set[int] | None = None
        self.inputs: list[Any] = []
        self.resources: dict[str, float] | None = None
        self.timeout: float | None = None
        if options:
            self.resources, self.timeout = options.get("resources"), options.get("timeout")

    def __repr__(self) -> str:
        return f"<Task {self.key!r} {self.state}>"


class Inline:
    """An input that is still serialised."""

    __slots__ = ("value",)

    def __init__(self, value: Serialized) -> None:
        self.value = value


class Fetch:
    """Data on its way: who has it, who was asked in vain, which tasks wait for it."""

    __slots__ = ("address", "addresses", "failed", "id", "keep", "key", "nbytes", "tasks")

    def __init__(self, id: int, nbytes: int) -> None:
        self.id, self.nbytes = id, nbytes
        self.key: Key | None = None
        self.addresses: list[str] = []
        self.failed: list[str] = []
        self.address: str | None = None
        self.tasks: dict[Task, None] = {}
        self.keep = False


class WorkerMachine:
    """Everything that is decided on a worker.

    Parameters
    ----------
    nthreads
        Tasks that may run at once.
    resources
        Amounts of the user's abstract resources; a task that asks for some waits until they are free.
    data
        Where results are kept, by id; a mapping that spills to disk does as well as a dict.
    """

    def __init__(
        self, nthreads: int, resources: dict[str, float] | None = None, data: MutableMapping[int, Any] | None = None
    ) -> None:
        self.nthreads = nthreads
        self.resources = dict(resources or {})
        self.data: MutableMapping[int, Any] = {} if data is None else data
        self.keys: dict[int, Key] = {}
        self.sizes: dict[int, int] = {}
        self.tasks: dict[int, Task] = {}
        self.fetches: dict[int, Fetch] = {}
        self.functions: dict[int, bytes] = {}
        self.paused = False
        self.preparing = False  # plugins are being set up, which tasks may rely on
        self.spilling = False  # there are more results than may stay in memory
        self.executing = 0
        self.seconds = 0.0  # mean duration of recent tasks
        self.execute: list[Task] = []
        self.gather: list[tuple[str, list[int]]] = []
        self.outbox: list[Message] = []
        self._ready: list[tuple[int, int, int, Task]] = []
        self._to_fetch: dict[str, dict[int, None]] = {}
        self._asking: dict[str, list[int]] = {}
        self._offered: list[int] = []
        self._fetched: set[int] = set()

    def _tell(self, op: str, row: Any) -> None:
        out = self.outbox
        if out and out[-1][0] is op:
            out[-1][1].append(row)
        else:
            out.append((op, [row]))

    # From the scheduler --------------------------------------------------------------------------------------------

    def run(self, rows: Iterable[Sequence[Any]]) -> None:
        """Run these tasks; inputs that are elsewhere are fetched first."""
        for row in rows:
            task = self.tasks[row[0]] = Task(row, self.functions)
            lacking: list[tuple[int, str]] = []
            for dependency in row[5] or ():
                if type(dependency) is int:
                    task.dependencies.append(dependency)
                    if dependency not in self.data:
                        lacking.append((dependency, ""))
                    continue
                id = dependency[0]
                task.dependencies.append(id)
                if len(dependency) == 2:
                    if task.inline is None:
                        task.inline = {}
                    task.inline[id] = dependency[1]
                elif id not in self.data:
                    self._wait_for(task, id, dependency[1], dependency[2])
            if lacking:
                self._give_up(task, lacking)
            elif not task.missing:
                self._make_ready(task)

    def add_function(self, id: int, blob: bytes) -> None:
        self.functions[id] = blob

    def forget_functions(self, ids: Iterable[int]) -> list[bytes]:
        """Let go of functions, and say which they were."""
        return [self.functions.pop(id) for id in ids if id in self.functions]

    def free(self, ids: Iterable[int]) -> None:
        """Drop the data, do not run the task, or throw its result away, whichever it is."""
        for id in ids:
            if id in self.data:
                del self.data[id]
                del self.keys[id], self.sizes[id]
                if id in self._fetched:  # the scheduler may not have known that when it wrote this
                    self._fetched.remove(id)
                    self._tell("dropped", id)
            task = self.tasks.pop(id, None)
            if task is not None:
                self._forget(task)
            fetch = self.fetches.get(id)
            if fetch is not None:
                if fetch.keep:
                    fetch.keep = False
                    self._tell("dropped", id)
                self._maybe_stop_fetching(fetch)

    def fetch(self, rows: Iterable[tuple[int, Key, int, Sequence[str]]]) -> None:
        """Hold copies of these, for safety or in advance; always answered, with `holds` or `dropped`."""
        for id, key, nbytes, addresses in rows:
            if id in self.data:
                self._tell("holds", id)
                continue
            fetch = self._fetch(id, nbytes, addresses)
            fetch.keep, fetch.key = True, key

    def give_back(self, ids: Iterable[int]) -> None:
        """Give these back unless they have started; always answered, with what can be given."""
        self.outbox.append(("yielded", []))
        for id in ids:
            task = self.tasks.get(id)
            if task is not None and task.state in (WAITING, READY):
                del self.tasks[id]
                self._forget(task)
                self._tell("yielded", (id, task.attempt))

    def forget_tasks(self) -> None:
        """The scheduler is gone: what it asked for will be asked for again. Data stays; running tasks end
        unreported. What is pinned here is void, since the scheduler takes a lost connection for a dead worker."""
        for id in list(self.data):
            if hasattr(type(self.data[id]), "__daskfleet_pinned__"):
                del self.data[id], self.keys[id], self.sizes[id]
        self.tasks.clear()
        self.functions.clear()
        self.fetches.clear()
        self._fetched.clear()
        self._to_fetch.clear()
        self._asking.clear()
        self._ready.clear()
        self.outbox.clear()

    def forget_data(self) -> None:
        """Hold nothing any more; whoever calls this registers anew."""
        for store in (self.data, self.keys, self.sizes):
            store.clear()

    def offer(self) -> list[tuple[Key, int]]:
        """What is held here, as ``(key, nbytes)``, for a scheduler that does not know; `joined` is its answer."""
        self._offered = list(self.keys)
        return [(key, self.sizes[id]) for id, key in self.keys.items()]

    def joined(self, ids: Sequence[int]) -> None:
        """These are the scheduler's ids for what was offered; what it has no use for (-1) is dropped."""
        held = []
        for old, new in zip(self._offered, ids, strict=True):
            held.append((new, self.keys.pop(old), self.data.pop(old), self.sizes.pop(old)))
        for new, key, value, size in held:
            if new >= 0:
                self.put(new, key, value, size)

    # From the threads ----------------------------------------------------------------------------------------------

    def finished(
        self, task: Task, value: Any, nbytes: int, seconds: float, kind: str, inline: Serialized | None
    ) -> None:
        """A task has returned `value`; `inline` is its serialised form when that is small."""
        self._ended(task, seconds)
        if self.tasks.get(task.id) is task:
            del self.tasks[task.id]
            self.put(task.id, task.key, value, nbytes)
            self._tell("done", (task.id, task.attempt, nbytes, seconds, kind, inline))

    def failed(self, task: Task, exception: Serialized, traceback: Serialized, text: str, seconds: float) -> None:
        """A task has raised."""
        self._ended(task, seconds)
        if self.tasks.get(task.id) is task:
            del self.tasks[task.id]
            self._tell("erred", (task.id, task.attempt, exception, traceback, text, seconds))

    def overdue(self, task: Task, exception: Serialized, traceback: Serialized, text: str, seconds: float) -> None:
        """A task has failed by taking too long; it occupies its slot until it has really ended."""
        if self.tasks.get(task.id) is task:
            del self.tasks[task.id]
            self._tell("erred", (task.id, task.attempt, exception, traceback, text, seconds))

    def again(self, task: Task) -> None:
        """A task asks to be run again, here or elsewhere."""
        self._ended(task, self.seconds)
        if self.tasks.get(task.id) is task:
            del self.tasks[task.id]
            self._tell("rescheduled", (task.id, task.attempt))

    def deprived(self, task: Task, copies: list[tuple[int, str]]) -> None:
        """A task cannot have what others have left on their workers: the scheduler has it made anew and tries again."""
        self._ended(task, self.seconds)
        if self.tasks.get(task.id) is task:
            self._give_up(task, copies)

    def secede(self, task: Task) -> None:
        """A running task goes on outside of the slots: another may start in its place."""
        if task.state == EXECUTING:
            task.state = LONG_RUNNING
            self.executing -= 1
            if self.tasks.get(task.id) is task:
                self._tell("seceded", (task.id, task.attempt))

    def rejoin(self, task: Task) -> None:
        """It takes up a slot again, even if there is none: nothing new starts until they are enough."""
        if task.state == LONG_RUNNING:
            task.state = EXECUTING
            self.executing += 1
            if self.tasks.get(task.id) is task:
                self._tell("rejoined", (task.id, task.attempt))

    def _ended(self, task: Task, seconds: float) -> None:
        if task.state == EXECUTING:
            self.executing -= 1
        task.state = ENDED
        self.seconds = 0.5 * (self.seconds + seconds)
        task.inputs = []
        if task.resources:
            for name, amount in task.resources.items():
                self.resources[name] += amount

    # From the network ----------------------------------------------------------------------------------------------

    def put(self, id: int, key: Key, value: Any, nbytes: int) -> None:
        """Keep data; whoever puts it tells the scheduler."""
        self.sizes[id] = nbytes  # before the value: where it is kept may depend on it
        self.data[id] = value
        self.keys[id] = key

    def arrived(self, address: str, asked: list[int], found: Iterable[tuple[int, Key, Any, int]]) -> None:
        """`address` has answered the `gather` of `asked`; what it did not send it does not have."""
        if self._asking.get(address) is not asked:
            return  # it was asked for on behalf of a scheduler that is gone
        del self._asking[address]
        for id, key, value, nbytes in found:
            fetch = self.fetches.get(id)
            if fetch is not None:
                self.put(id, key, value, nbytes)
                self._landed(fetch)
        for id in asked:
            fetch = self.fetches.get(id)
            if fetch is not None and fetch.address == address:
                fetch.address = None
                fetch.failed.append(address)
                self._try_next(fetch)
        self._ask()

    def refused(self, id: int, exception: Serialized, text: str) -> None:
        """The value of `id` has come and cannot be read: what waits for it fails, since to try again would not help."""
        fetch = self.fetches.pop(id, None)
        if fetch is None:
            return
        for task in fetch.tasks:
            del self.tasks[task.id]
            self._forget(task)
            self._tell("erred", (task.id, task.attempt, exception, b"", text, 0.0))
        if fetch.keep:
            self._tell("dropped", id)

    def _landed(self, fetch: Fetch) -> None:
        """What was fetched is here: tell the scheduler, and go on with the tasks that waited for it."""
        del self.fetches[fetch.id]
        self._fetched.add(fetch.id)
        self._tell("holds", fetch.id)
        for task in fetch.tasks:
            assert task.missing is not None
            task.missing.discard(fetch.id)
            if not task.missing:
                self._make_ready(task)

    # ---------------------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Hand the most urgent ready tasks to the threads, as many as they can take; call it after each batch of
        events."""
        if self.paused or self.preparing or self.spilling:
            return
        room = self.nthreads - self.executing
        if self.seconds < AHEAD:
            room += min(MAX_AHEAD, int(AHEAD / max(self.seconds, 1e-6))) * self.nthreads
        blocked = []
        while room > 0 and self._ready:
            entry = heapq.heappop(self._ready)
            task = entry[3]
            if task.state != READY or self.tasks.get(task.id) is not task:
                continue
            if task.resources and not self._take(task.resources):
                blocked.append(entry)
                continue
            data, inline = self.data, task.inline or {}
            lacking = [(id, "") for id in task.dependencies if id not in data and id not in inline]
            if lacking:  # the scheduler has had a copy freed that it had counted on
                self._give_up(task, lacking)
                continue
            task.inputs = [Inline(inline[id]) if id in inline else data[id] for id in task.dependencies]
            task.inline = None
            task.state = EXECUTING
            self.executing += 1
            room -= 1
            self.execute.append(task)
        for entry in blocked:
            heapq.heappush(self._ready, entry)

    def _take(self, amounts: dict[str, float]) -> bool:
        if any(self.resources.get(name, 0) < amount for name, amount in amounts.items()):
            return False
        for name, amount in amounts.items():
            self.resources[name] -= amount
        return True

    def _make_ready(self, task: Task) -> None:
        task.state = READY
        heapq.heappush(self._ready, (task.priority, task.id, task.attempt, task))

    def _forget(self, task: Task) -> None:
        """`task` is no longer in `tasks`; stop fetching what only it needed."""
        for id in task.missing or ():
            fetch = self.fetches.get(id)
            if fetch is not None:
                fetch.tasks.pop(task, None)
                self._maybe_stop_fetching(fetch)

    def _give_up(self, task: Task, lacking: list[tuple[int, str]]) -> None:
        self.tasks.pop(task.id, None)
        self._forget(task)
        self._tell("missing", (task.id, task.attempt, lacking))

    # Fetching ------------------------------------------------------------------------------------------------------

    def _wait_for(self, task: Task, id: int, nbytes: int, addresses: Sequence[str]) -> None:
        if task.missing is None:
            task.missing = set()
        task.missing.add(id)
        self._fetch(id, nbytes, addresses).tasks[task] = None

    def _fetch(self, id: int, nbytes: int, addresses: Sequence[str]) -> Fetch:
        fetch = self.fetches.get(id)
        if fetch is None:
            fetch = self.fetches[id] = Fetch(id, nbytes)
        fetch.addresses.extend(address for address in addresses if address not in fetch.addresses)
        if fetch.address is None:
            self._try_next(fetch)
        return fetch

    def _try_next(self, fetch: Fetch) -> None:
        """Queue `fetch` at the least busy of the holders that were not asked yet; give up when all were."""
        left = [address for address in fetch.addresses if address not in fetch.failed]
        if not left:
            if not fetch.failed:
                return  # its addresses are on their way
            if fetch.id in self.data:
                self._landed(fetch)  # it was computed here in the meantime
                return
            del self.fetches[fetch.id]
            for task in list(fetch.tasks):
                self._give_up(task, [(fetch.id, address) for address in fetch.failed])
            if fetch.keep:
                self._tell("dropped", fetch.id)
            return
        address = min(
            left, key=lambda address: len(self._to_fetch.get(address, ())) + len(self._asking.get(address, ()))
        )
        fetch.address = address
        self._to_fetch.setdefault(address, {})[fetch.id] = None
        self._ask()

    def _ask(self) -> None:
        for address in list(self._to_fetch):
            if len(self._asking) >= FETCH_PEERS:
                return
            if address in self._asking:
                continue
            ids: list[int] = []
            total, queue = 0, self._to_fetch[address]
            while queue and (not ids or total < FETCH_BYTES):
                id = next(iter(queue))
                del queue[id]
                fetch = self.fetches.get(id)
                if fetch is not None and fetch.address == address:
                    ids.append(id)
                    total += fetch.nbytes
            if not queue:
                del self._to_fetch[address]
            if ids:
                self._asking[address] = ids
                self.gather.append((address, ids))

    def _maybe_stop_fetching(self, fetch: Fetch) -> None:
        if not fetch.tasks and not fetch.keep:
            self.fetches.pop(fetch.id, None)
