"""`Variable` and `Queue`, on the scheduler's side.

A value is ``("data", pickle)`` or ``("future", key)``. A future's result is kept while it is in here and, when it is
handed to a client, until that client says that it wants the key itself: otherwise a result that was in a queue and
nowhere else would be let go between the two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized
from daskfleet.scheduler.extensions.keeper import Keeper
from daskfleet.scheduler.extensions.waiters import Waiters
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

Value = tuple[str, Any]


class _Keeping:
    """Keeps the futures among values."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self._keeper = Keeper(scheduler, name)
        self._handed: dict[ClientState, list[Key]] = {}
        scheduler.hear("client", f"{name}_taken", self._taken)
        scheduler.on_client_gone.append(self._client_gone)

    def _keep(self, value: Value) -> Value:
        if value[0] == "future":
            self._keeper.keep([value[1]])
        return value

    def _drop(self, value: Value | None) -> None:
        if value is not None and value[0] == "future":
            self._keeper.drop([value[1]])

    def _hand(self, client: ClientState, value: Value) -> Value:
        """Give it to a client that will say when it holds it."""
        if value[0] == "future":
            self._keeper.keep([value[1]])
            self._handed.setdefault(client, []).append(value[1])
        return value

    def _taken(self, client: ClientState, keys: Iterable[Key]) -> None:
        handed = self._handed.get(client, [])
        for key in keys:
            if key in handed:
                handed.remove(key)
                self._keeper.drop([key])

    def _client_gone(self, client: ClientState) -> None:
        self._keeper.drop(self._handed.pop(client, []))


class Variables(_Keeping):
    """Values by name."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler, "variable")
        self._values: dict[str, Value] = {}
        self._waiters: dict[str, Waiters] = {}
        scheduler.handle("client", "variable_set", self.set)
        scheduler.handle("client", "variable_get", self.get)
        scheduler.handle("client", "variable_delete", self.delete)
        scheduler.on_client_gone.append(self._gone)

    async def set(self, client: ClientState, name: str, value: tuple[str, Serialized | Key]) -> None:
        """Put a value in place of the old one."""
        kept = self._keep(value)
        self._drop(self._values.get(name))
        self._values[name] = kept
        if name in self._waiters:
            self._waiters[name].wake()

    async def get(self, client: ClientState, name: str, timeout: float | None) -> Value | None:
        """The value, as soon as there is one; None when there was none in time."""
        waiters = self._waiters.setdefault(name, Waiters())
        try:
            if not await waiters.wait(client, lambda: name in self._values, timeout):
                return None
        finally:
            if not waiters and self._waiters.get(name) is waiters:
                del self._waiters[name]
        return self._hand(client, self._values[name])

    async def delete(self, client: ClientState, name: str) -> None:
        """Forget the value."""
        self._drop(self._values.pop(name, None))

    def _gone(self, client: ClientState) -> None:
        for waiters in list(self._waiters.values()):
            waiters.drop(client)


class _Queue:
    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.items: deque[Value] = deque()
        self.getters, self.putters = Waiters(), Waiters()

    def wake(self) -> None:
        self.getters.wake()
        self.putters.wake()
        self.getters.wake()  # for what the putters have put


class Queues(_Keeping):
    """First in, first out, by name."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler, "queue")
        self._queues: dict[str, _Queue] = {}
        scheduler.handle("client", "queue_create", self.create)
        scheduler.handle("client", "queue_put", self.put)
        scheduler.handle("client", "queue_get", self.get)
        scheduler.handle("client", "queue_size", self.size)
        scheduler.handle("client", "queue_close", self.close)
        scheduler.on_client_gone.append(self._gone)

    def _queue(self, name: str, maxsize: int = 0) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue(maxsize)
        queue.maxsize = queue.maxsize or maxsize
        return queue

    async def create(self, client: ClientState, name: str, maxsize: int) -> None:
        """Know a queue's size before anything is in it."""
        self._queue(name, maxsize)

    async def put(self, client: ClientState, name: str, maxsize: int, value: Value, timeout: float | None) -> bool:
        """Append; False when it was full all the time."""
        queue = self._queue(name, maxsize)

        def append() -> bool:
            if queue.maxsize and len(queue.items) >= queue.maxsize:
                return False
            queue.items.append(value)
            return True

        self._keep(value)
        done = await queue.putters.wait(client, append, timeout)
        if not done:
            self._drop(value)
        queue.wake()
        return done

    async def get(self, client: ClientState, name: str, batch: int | bool, timeout: float | None) -> list[Value] | None:
        """The next (`batch` False), all that are there (True), or exactly so many; None when they did not come."""
        queue = self._queue(name)
        taken: list[Value] = []
        count = 1 if batch is False else 0 if batch is True else batch

        def take() -> bool:
            # A batch larger than the queue may be gathers in parts, or the queue's limit would make it wait for ever.
            while queue.items and (batch is True or len(taken) < count):
                taken.append(queue.items.popleft())
            return len(taken) >= count

        try:
            done = await queue.getters.wait(client, take, timeout)
        except BaseException:
            queue.items.extendleft(reversed(taken))
            queue.wake()
            raise
        if not done:
            queue.items.extendleft(reversed(taken))
            queue.wake()
            return None
        queue.wake()
        for value in taken:
            self._hand(client, value)
            self._drop(value)
        return taken

    async def size(self, client: ClientState, name: str) -> int:
        """How many are in it."""
        return len(self._queue(name).items)

    async def close(self, client: ClientState, name: str) -> None:
        """Forget the queue and what is in it."""
        queue = self._queues.pop(name, None)
        if queue is not None:
            for value in queue.items:
                self._drop(value)

    def _gone(self, client: ClientState) -> None:
        for queue in list(self._queues.values()):
            queue.getters.drop(client)
            queue.putters.drop(client)
