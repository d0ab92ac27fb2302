"""Published datasets: collections by name, whose data stays until they are unpublished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from daskfleet.protocol.frames import Buffer
from daskfleet.protocol.messages import Key
from daskfleet.scheduler.extensions.backup import Rows
from daskfleet.scheduler.extensions.keeper import Keeper
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

Name = str | int | tuple[object, ...]


class Datasets:
    """Pickled collections by name, and the keys they are made of."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._backup = scheduler.extensions["backup"]
        self._keeper = Keeper(scheduler, "datasets")
        self._all: dict[Name, tuple[Buffer, list[Key]]] = {}
        scheduler.handle("client", "dataset_publish", self.publish)
        scheduler.handle("client", "dataset_unpublish", self.unpublish)
        scheduler.handle("client", "dataset_list", self.list)
        scheduler.handle("client", "dataset_get", self.get)
        self._backup.learn("dataset", self._learn)

    async def publish(self, client: ClientState, name: Name, data: Buffer, keys: Sequence[Key], override: bool) -> None:
        """Keep a collection."""
        await self._backup.settled()
        if name in self._all and not override:
            raise KeyError(
                f"a dataset {name!r} is published already: unpublish it first, or publish with override=True"
            )
        self._keeper.keep(keys)
        if name in self._all:
            self._keeper.drop(self._all[name][1])
        self._all[name] = data, list(keys)
        self._backup.keep(("dataset", name), self._all[name])

    async def unpublish(self, client: ClientState, name: Name) -> None:
        """Let a collection go."""
        await self._backup.settled()
        if name in self._all:
            self._keeper.drop(self._all.pop(name)[1])
            self._backup.drop([("dataset", name)])

    async def list(self, client: ClientState) -> tuple[Name, ...]:
        """The names."""
        await self._backup.settled()
        return tuple(self._all)

    async def get(self, client: ClientState, name: Name) -> Buffer | None:
        """A pickled collection, None when there is none."""
        await self._backup.settled()
        return self._all[name][0] if name in self._all else None

    def _learn(self, rows: Rows) -> None:
        for (_, name), (data, keys) in rows:
            if name not in self._all:
                self._all[name] = data, list(keys)
                self._backup.keep(("dataset", name), self._all[name])
                self._keeper.expect(keys)
