"""What the scheduler knows: tasks, workers, clients. Plain records; `machine` is what changes them.

A cluster may hold millions of tasks, so a `TaskState` is kept small: about 500 bytes with its key and arguments.
Relations that nearly always have no more than one member are tuples that are shared or empty, never a set of their own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from daskfleet.protocol.frames import Message
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized
from daskfleet.scheduler.line import Line
from daskfleet.scheduler.numbered import Numbered

# A task's states. `released`: known, its data not there and not on its way. `waiting`: for dependencies. `queued`:
# ready, not sent to a worker yet. `no-worker`: ready, but no worker may run it. `processing`: sent. `forgotten`: no
# longer known.
RELEASED = "released"
WAITING = "waiting"
QUEUED = "queued"
NO_WORKER = "no-worker"
PROCESSING = "processing"
MEMORY = "memory"
ERRED = "erred"
FORGOTTEN = "forgotten"
STATES = (RELEASED, WAITING, QUEUED, NO_WORKER, PROCESSING, MEMORY, ERRED)

RUNNING = "running"
PAUSED = "paused"
CLOSING = "closing"


class Function:
    """A serialised function, shared by the tasks that call it."""

    __slots__ = ("blob", "id", "users")

    def __init__(self, id: int, blob: bytes) -> None:
        self.id, self.blob, self.users = id, blob, 0


class Prefix:
    """What is known of all tasks of one name: how long they take, how often they failed, how many are ready but not
    sent."""

    __slots__ = ("count", "duration", "erred", "name", "queued", "seconds", "suspicious")

    def __init__(self, name: str, duration: float) -> None:
        self.name, self.duration, self.count = name, duration, 0
        self.seconds = 0.0
        self.erred = self.suspicious = self.queued = 0

    def observe(self, seconds: float) -> None:
        """Take one run into the exponentially weighted mean (weight ½, as distributed has it)."""
        self.duration = seconds if not self.count else 0.5 * (self.duration + seconds)
        self.count += 1
        self.seconds += seconds


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task failed; shared by all that failed because of it."""

    exception: Serialized
    traceback: Serialized
    text: str
    key: Key


@dataclass(slots=True)
class Options:
    """What a user asked for one task or a whole submission beyond the usual.

    Attributes
    ----------
    pinned
        The result stands for something on the worker that ran the task (a file, say) and is lost with that worker,
        however many have read it. It is small and travels inside messages only.
    borrows
        The result refers to what the inputs stand for: these are kept as long as it is, and it is lost when one of
        them is.
    """

    workers: frozenset[str] | None = None
    allow_other_workers: bool = False
    resources: dict[str, float] | None = None
    retries: int = 0
    priority: int = 0
    actor: bool = False
    span: str | None = None
    pinned: bool = False
    borrows: bool = False
    for_worker: dict[str, Any] | None = None

    @classmethod
    def read(cls, raw: dict[str, Any]) -> Options:
        workers = raw.get("workers")
        return cls(
            workers=frozenset(workers) if workers else None,
            allow_other_workers=bool(raw.get("allow_other_workers")),
            resources=raw.get("resources"),
            retries=int(raw.get("retries") or 0),
            priority=int(raw.get("priority") or 0),
            actor=bool(raw.get("actor")),
            span=raw["span"][0] if raw.get("span") else None,
            pinned=bool(raw.get("pinned")),
            borrows=bool(raw.get("borrows")),
            for_worker={name: raw[name] for name in ("resources", "timeout") if raw.get(name)} or None,
        )


class TaskState:
    """One task. `machine` says what each change of `state` entails.

    Attributes
    ----------
    dependents, n_dependents
        Tasks that name this one as a dependency; the list may still hold forgotten ones, the number does not.
    waiting_on
        How many dependencies are not in memory; meaningful while waiting.
    waiters
        How many dependents are waiting, queued or processing: as long as there is one the data is needed.
    wants
        The clients that hold futures of it: one's shared tuple (`ClientState.alone`), or none, nearly always.
    cids
        The numbers of these futures: one number where it is one, else as many.
    holders
        Workers that hold the data.
    value
        The data itself, when it is small: it then goes out with the tasks that need it.
    attempt
        Counts how often the task was sent out, so that a late report of an earlier attempt is known as such.
    """

    __slots__ = (
        "attempt",
        "cids",
        "dependencies",
        "dependents",
        "failure",
        "function",
        "holders",
        "id",
        "key",
        "n_dependents",
        "nbytes",
        "options",
        "payload",
        "prefix",
        "priority",
        "state",
        "type",
        "value",
        "waiters",
        "waiting_on",
        "wants",
        "worker",
    )

    def __init__(self, id: int, key: Key, prefix: Prefix) -> None:
        self.id, self.key, self.prefix = id, key, prefix
        self.state = RELEASED
        self.function: Function | None = None
        self.payload: Serialized = b""
        self.dependencies: tuple[TaskState, ...] = ()
        self.dependents: list[TaskState] | None = None
        self.n_dependents = 0
        self.waiting_on = self.waiters = 0
        self.wants: tuple[ClientState, ...] = ()
        self.cids: int | tuple[int, ...] = ()
        self.holders: tuple[WorkerState, ...] = ()
        self.worker: WorkerState | None = None
        self.attempt = 0
        self.nbytes = 0
        self.type: str | None = None
        self.value: Serialized | None = None
        self.priority = 0
        self.failure: Failure | None = None
        self.options: Options | None = None

    def __repr__(self) -> str:
        return f"<Task {self.key!r} {self.state}>"

    @property
    def wanted(self) -> tuple[tuple[ClientState, int], ...]:
        """Who holds futures of it, and their numbers."""
        wants, cids = self.wants, self.cids
        return ((wants[0], cids),) if type(cids) is int else tuple(zip(wants, cids, strict=True))  # type: ignore[arg-type]

    def want(self, client: ClientState, cid: int) -> None:
        """`client` holds a future of it."""
        if not self.wants:
            self.wants, self.cids = client.alone, cid
        else:
            cids = self.cids
            self.wants, self.cids = (*self.wants, client), (cids, cid) if type(cids) is int else (*cids, cid)  # type: ignore[misc]

    def unwant(self, client: ClientState, cid: int) -> None:
        """`client` holds this future no more."""
        if type(self.cids) is int:
            self.wants = self.cids = ()
            return
        left = [pair for pair in self.wanted if pair != (client, cid)]
        self.wants, self.cids = (), ()
        for pair in left:
            self.want(*pair)

    @property
    def retries(self) -> int:
        """How often it may still be tried again when it fails."""
        return self.options.retries if self.options is not None else 0

    @property
    def pinned(self) -> bool:
        """See `Options`."""
        return self.options is not None and self.options.pinned

    @property
    def borrows(self) -> bool:
        """See `Options`."""
        return self.options is not None and self.options.borrows


@dataclass(slots=True, eq=False)
class WorkerState:
    """One worker.

    Attributes
    ----------
    processing
        The tasks it was sent, in that order, each with the seconds it is expected to take; `occupancy` is their sum.
    long_running
        Those of them that wait for other tasks (`secede`) and so take no thread.
    ready
        Queued tasks that had better run here, and perhaps some that are no longer queued; `backlog` is the number of
        those that are.
    incoming
        The ids of tasks whose data it was asked to fetch and to keep.
    expecting
        How many clients are about to put data on it.
    suspects
        How many of the tasks it was sent were on a worker that died (`Queues.suspects`).
    """

    address: str
    name: str
    nthreads: int
    memory_limit: int = 0
    resources: dict[str, float] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    status: str = RUNNING
    processing: dict[TaskState, float] = field(default_factory=dict)
    long_running: dict[TaskState, None] = field(default_factory=dict)
    occupancy: float = 0.0
    suspects: int = 0
    ready: Line = field(default_factory=Line)
    backlog: int = 0
    data: dict[TaskState, None] = field(default_factory=dict)
    nbytes: int = 0
    incoming: set[int] = field(default_factory=set)
    expecting: int = 0
    functions: set[int] = field(default_factory=set)
    metrics: dict[str, Any] = field(default_factory=dict)
    last_seen: float = 0.0
    yielding: bool = False
    outbox: list[Message] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)
    alone: tuple[WorkerState, ...] = ()

    def __post_init__(self) -> None:
        self.alone = (self,)

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.address} {self.status}, {len(self.processing)} processing>"


@dataclass(slots=True, eq=False)
class ClientState:
    """One client: its futures by number, the keys of those that nobody knows, and the graphs it is in the middle of
    sending (None for what cannot run)."""

    id: str
    futures: Numbered[TaskState] = field(default_factory=Numbered)
    unknown: dict[int, Key] = field(default_factory=dict)
    graphs: dict[int, list[TaskState | None]] = field(default_factory=dict)
    outbox: list[Message] = field(default_factory=list)
    leaving: bool = False
    worker: str | None = None
    alone: tuple[ClientState, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.alone = (self,)


@dataclass(slots=True)
class Totals:
    """Running sums for dashboards and metrics."""

    computed: int = 0
    erred: int = 0
    seconds: float = 0.0
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=120))
