"""`Variable` and `Queue`, on the scheduler's side.

A value is ``("data", pickle)`` or ``("future", key)``. A future's result is kept while it is in here.

What is handed to a client goes under a ticket that the client has named, until the client says that it has it: before,
a result that was in a queue and nowhere else would be let go between the two. If the client says that nobody waits for
it any more, or ends, it is back in its queue, in its old place. A client that has lost its connection asks again with
the same ticket.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized
from daskfleet.scheduler.extensions.backup import Rows
from daskfleet.scheduler.extensions.keeper import Keeper
from daskfleet.scheduler.extensions.waiters import Waiters
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

Value = tuple[str, Any]
#: Name of the queue or variable, place in the queue, value.
Item = tuple[str, int, Value]


class _Channels:
    """Keeps the futures among values, and what is on its way to a client."""

    def __init__(self, scheduler: Scheduler, subject: str) -> None:
        self._subject = subject
        self._backup = scheduler.extensions["backup"]
        self._keeper = Keeper(scheduler, subject)
        self._handed: dict[ClientState, dict[int, list[Item]]] = {}
        self._asked: dict[tuple[ClientState, int], Waiters] = {}  # tickets that somebody waits with, and where
        scheduler.hear("client", f"{subject}_taken", self._taken)
        scheduler.hear("client", f"{subject}_drop", self._drop_later)
        scheduler.on_client_gone.append(self._gone)

    def _keep(self, value: Value) -> None:
        if value[0] == "future":
            self._keeper.keep([value[1]])

    def _let_go(self, values: Iterable[Value]) -> None:
        self._keeper.drop(value for what, value in values if what == "future")

    def _hand(self, client: ClientState, ticket: int, items: list[Item]) -> None:
        self._handed.setdefault(client, {})[ticket] = items

    def _in_hand(self, client: ClientState, ticket: int) -> list[Item] | None:
        return self._handed.get(client, {}).get(ticket)

    def _out_of_hand(self, client: ClientState, ticket: int) -> list[Item]:
        handed = self._handed.get(client, {})
        items = handed.pop(ticket, [])
        if not handed:
            self._handed.pop(client, None)
        return items

    def _taken(self, client: ClientState, ticket: int) -> None:
        """It has arrived."""
        self._let_go(value for _, _, value in self._out_of_hand(client, ticket))

    def _drop_later(self, client: ClientState, ticket: int) -> None:
        # The call it is about may have come with this message: it begins before it ends.
        asyncio.get_running_loop().call_soon(self._drop, client, ticket)

    def _drop(self, client: ClientState, ticket: int) -> None:
        """Nobody waits for it any more."""
        line = self._asked.pop((client, ticket), None)
        self._put_back(self._out_of_hand(client, ticket))
        if line is not None:
            line.wake()

    def _put_back(self, items: list[Item]) -> None:
        raise NotImplementedError

    def _waiters(self) -> Iterable[Waiters]:
        """All there are."""
        raise NotImplementedError

    def _gone(self, client: ClientState) -> None:
        for waiters in self._waiters():
            waiters.drop(client)
        for ticket in list(self._handed.get(client, ())):
            self._drop(client, ticket)


class Variables(_Channels):
    """Values by name."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler, "variable")
        self._values: dict[str, Value] = {}
        self._lines: dict[str, Waiters] = {}
        scheduler.handle("client", "variable_set", self.set)
        scheduler.handle("client", "variable_get", self.get)
        scheduler.handle("client", "variable_delete", self.delete)
        self._backup.learn("variable", self._learn)

    async def set(self, client: ClientState, name: str, value: tuple[str, Serialized | Key]) -> None:
        """Put a value in place of the old one."""
        await self._backup.settled()
        self._keep(value)
        self._set(name, value)

    def _set(self, name: str, value: Value) -> None:
        if name in self._values:
            self._let_go([self._values[name]])
        self._values[name] = value
        self._backup.keep(("variable", name), value)
        if name in self._lines:
            self._lines[name].wake()

    async def get(self, client: ClientState, name: str, ticket: int, timeout: float | None) -> list[Value] | None:
        """The value, as soon as there is one; None when there was none in time."""
        line = self._lines.setdefault(name, Waiters())
        asked = client, ticket
        self._asked[asked] = line
        try:
            done = await line.wait(client, lambda: name in self._values or asked not in self._asked, timeout)
            if not done or asked not in self._asked:
                return None
        finally:
            self._asked.pop(asked, None)
            if not line and self._lines.get(name) is line:
                del self._lines[name]
        value = self._values[name]
        if value[0] == "future" and self._in_hand(client, ticket) is None:
            self._keep(value)
            self._hand(client, ticket, [(name, 0, value)])
        return [value]

    async def delete(self, client: ClientState, name: str) -> None:
        """Forget the value."""
        await self._backup.settled()
        if name in self._values:
            self._let_go([self._values.pop(name)])
            self._backup.drop([("variable", name)])

    def _learn(self, rows: Rows) -> None:
        for (_, name), value in rows:
            if name not in self._values:
                self._keeper.expect([value[1]] if value[0] == "future" else ())
                self._set(name, value)

    def _put_back(self, items: list[Item]) -> None:
        self._let_go(value for _, _, value in items)

    def _waiters(self) -> Iterable[Waiters]:
        return list(self._lines.values())


class _Queue:
    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.items: deque[Item] = deque()
        self.getters, self.putters = Waiters(), Waiters()

    def wake(self) -> None:
        self.getters.wake()
        self.putters.wake()
        self.getters.wake()  # for what the putters have put


class Queues(_Channels):
    """First in, first out, by name."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler, "queue")
        self._queues: dict[str, _Queue] = {}
        self._places = itertools.count()
        scheduler.handle("client", "queue_put", self.put)
        scheduler.handle("client", "queue_get", self.get)
        scheduler.handle("client", "queue_size", self.size)
        scheduler.handle("client", "queue_close", self.close)
        self._backup.learn("queue", self._learn)

    def _queue(self, name: str, maxsize: int = 0) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue(maxsize)
        queue.maxsize = queue.maxsize or maxsize
        return queue

    def _append(self, name: str, queue: _Queue, value: Value) -> None:
        place = next(self._places)
        queue.items.append((name, place, value))
        self._backup.keep(("queue", name, place), (queue.maxsize, *value))

    async def put(
        self, client: ClientState, name: str, ticket: int, maxsize: int, value: Value, timeout: float | None
    ) -> bool:
        """Append; False when it was full all the time."""
        await self._backup.settled()
        queue = self._queue(name, maxsize)
        asked = client, ticket
        self._keep(value)
        self._asked[asked] = queue.putters
        there = False

        def append() -> bool:
            nonlocal there
            if asked in self._asked:
                if queue.maxsize and len(queue.items) >= queue.maxsize:
                    return False
                self._append(name, queue, value)
                there = True
            return True

        try:
            return await queue.putters.wait(client, append, timeout)
        finally:
            self._asked.pop(asked, None)
            if not there:
                self._let_go([value])
            queue.wake()

    async def get(
        self, client: ClientState, name: str, ticket: int, batch: int | bool, timeout: float | None
    ) -> list[Value] | None:
        """The next (`batch` False), all that are there (True), or exactly so many; None when they did not come."""
        await self._backup.settled()
        queue = self._queue(name)
        asked = client, ticket
        self._asked[asked] = queue.getters
        taken: list[Item] = []
        count = 1 if batch is False else 0 if batch is True else batch

        def take() -> bool:
            if asked not in self._asked or self._in_hand(client, ticket) is not None:
                return True
            # A batch larger than the queue may be gathers in parts, or the queue's limit would make it wait for ever.
            while queue.items and (batch is True or len(taken) < count):
                taken.append(queue.items.popleft())
            if len(taken) < count:
                return False
            self._hand(client, ticket, taken.copy())
            taken.clear()
            return True

        try:
            await queue.getters.wait(client, take, timeout)
        finally:
            self._asked.pop(asked, None)
            self._put_back(taken)
            queue.wake()
        handed = self._in_hand(client, ticket)
        return None if handed is None else [value for _, _, value in handed]

    def _taken(self, client: ClientState, ticket: int) -> None:
        items = self._in_hand(client, ticket) or ()
        self._backup.drop(("queue", name, place) for name, place, _ in items)
        super()._taken(client, ticket)

    def _put_back(self, items: list[Item]) -> None:
        for item in items:
            if (queue := self._queues.get(item[0])) is not None:
                queue.items = deque(sorted([item, *queue.items], key=lambda item: item[1]))
            else:
                self._let_go([item[2]])
        for name in {name for name, _, _ in items} & self._queues.keys():
            self._queues[name].wake()

    async def size(self, client: ClientState, name: str) -> int:
        """How many are in it."""
        await self._backup.settled()
        return len(self._queue(name).items)

    async def close(self, client: ClientState, name: str) -> None:
        """Forget the queue and what is in it."""
        await self._backup.settled()
        queue = self._queues.pop(name, None)
        if queue is not None:
            self._let_go(value for _, _, value in queue.items)
            self._backup.drop(("queue", name, place) for _, place, _ in queue.items)

    def _learn(self, rows: Rows) -> None:
        """What was in queues comes before what has been put since."""
        later = {name: queue.items for name, queue in self._queues.items()}
        for queue in self._queues.values():
            self._backup.drop(("queue", name, place) for name, place, _ in queue.items)
            queue.items = deque()
        for (_, name, _), (maxsize, *value) in sorted(rows, key=lambda row: row[0][2]):
            self._keeper.expect([value[1]] if value[0] == "future" else ())
            self._append(name, self._queue(name, maxsize), (value[0], value[1]))
        for name, items in later.items():
            for _, _, value in items:
                self._append(name, self._queues[name], value)
        for queue in self._queues.values():
            queue.wake()

    def _waiters(self) -> Iterable[Waiters]:
        return [waiters for queue in self._queues.values() for waiters in (queue.getters, queue.putters)]
