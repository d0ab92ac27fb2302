"""Small facts that clients leave for one another: a tree of dicts whose leaves are pickles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from daskfleet.scheduler.extensions.backup import Rows
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler


class Metadata:
    """The tree."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._backup = scheduler.extensions["backup"]
        self.tree: dict[Any, Any] = {}
        scheduler.handle("client", "metadata_set", self.set)
        scheduler.handle("client", "metadata_get", self.get)
        self._backup.learn("metadata", self._learn)

    async def set(self, client: ClientState, path: Sequence[Any], value: Any) -> None:
        """Put a pickle, or a dict of them, at `path`."""
        await self._backup.settled()
        self._put(path, value)

    def _put(self, path: Sequence[Any], value: Any) -> None:
        self._backup.keep(("metadata", *path), value)
        at = self.tree
        for key in path[:-1]:
            below = at.get(key)
            if not isinstance(below, dict):
                below = at[key] = {}
            at = below
        at[path[-1]] = value

    async def get(self, client: ClientState, path: Sequence[Any]) -> tuple[bool, Any]:
        """Whether there is something at `path`, and what."""
        await self._backup.settled()
        at: Any = self.tree
        for key in path:
            if not isinstance(at, dict) or key not in at:
                return False, None
            at = at[key]
        return True, at

    def _learn(self, rows: Rows) -> None:
        for (_, *path), value in rows:
            self._put(path, value)
