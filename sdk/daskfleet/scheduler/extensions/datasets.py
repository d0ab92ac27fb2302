"""Published datasets: collections by name, whose data stays until they are unpublished.

Every worker is told of them and tells a scheduler that comes after this one: whoever holds the data knows its names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from daskfleet.protocol.frames import Buffer, Message
from daskfleet.protocol.messages import Key
from daskfleet.scheduler.extensions.keeper import Keeper
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

Name = str | int | tuple[object, ...]

#: Seconds that a name which nobody knows is waited for, while workers come over from a scheduler that is gone.
PATIENCE = 5.0


class Datasets:
    """Pickled collections by name, and the keys they are made of."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._keeper = Keeper(scheduler, "datasets")
        self._all: dict[Name, tuple[Buffer, list[Key]]] = {}
        scheduler.handle("client", "dataset_publish", self.publish)
        scheduler.handle("client", "dataset_unpublish", self.unpublish)
        scheduler.handle("client", "dataset_list", self.list)
        scheduler.handle("client", "dataset_get", self.get)
        scheduler.on_worker.append(self._learn)
        scheduler.greetings.append(self._all_there_are)

    async def publish(self, client: ClientState, name: Name, data: Buffer, keys: Sequence[Key], override: bool) -> None:
        """Keep a collection."""
        if name in self._all and not override:
            raise KeyError(
                f"a dataset {name!r} is published already: unpublish it first, or publish with override=True"
            )
        self._keeper.keep(keys)
        if name in self._all:
            self._keeper.drop(self._all[name][1])
        self._all[name] = data, list(keys)
        self._tell(("datasets", [(name, data, list(keys))], []))

    async def unpublish(self, client: ClientState, name: Name) -> None:
        """Let a collection go."""
        if name in self._all:
            self._keeper.drop(self._all.pop(name)[1])
            self._tell(("datasets", [], [name]))

    async def list(self, client: ClientState) -> tuple[Name, ...]:
        """The names."""
        return tuple(self._all)

    async def get(self, client: ClientState, name: Name) -> Buffer | None:
        """A pickled collection, None when there is none."""
        state = self._scheduler.state
        await self._scheduler.until(lambda: name in self._all or not state.adopting, PATIENCE)
        return self._all[name][0] if name in self._all else None

    def _tell(self, message: Message) -> None:
        for worker in self._scheduler.state.workers.values():
            if (connection := self._scheduler._connections.get(worker)) is not None:
                connection.send(message)

    def _all_there_are(self) -> list[Message]:  # type: ignore[valid-type]  # `list` is a method here
        return [("datasets", [(name, data, keys) for name, (data, keys) in self._all.items()], None)]

    def _learn(self, info: dict[str, Any]) -> None:
        """What a worker knows from a scheduler that is gone, before it tells what it holds."""
        for name, data, keys in info.get("datasets", ()):
            if name not in self._all:
                self._all[name] = data, list(keys)
                self._keeper.expect(keys)
