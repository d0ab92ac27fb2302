"""Keeping results alive on behalf of something that is no client: a variable, a dataset."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from daskfleet.protocol.frames import Message
from daskfleet.protocol.messages import Key
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler


class Keeper:
    """A client of the scheduler's own that wants keys; each as often as it was told to."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self._scheduler = scheduler
        self.client = ClientState(name)
        self._numbers = itertools.count(1)
        self._held: dict[Key, tuple[int, int]] = {}  # by key: how often, and under which number
        scheduler.own_clients[self.client] = _ignore
        scheduler.on_restart.append(self._held.clear)

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def keep(self, keys: Iterable[Key]) -> None:
        """Want these.

        Raises
        ------
        KeyError
            No task or data is known by a key.
        """
        keys = list(keys)
        for key in keys:
            if key not in self._scheduler.state.keys:
                raise KeyError(f"no task or data is known by the key {key!r}")
        self.expect(keys)

    def expect(self, keys: Iterable[Key]) -> None:
        """Want these, which may be known a moment later: of a scheduler that was here before."""
        for key in keys:
            count, number = self._held.get(key) or (0, next(self._numbers))
            self._held[key] = (count + 1, number)
            if not count:
                self._scheduler.state.want(self.client, [(number, key)])
        self._scheduler._flush()

    def drop(self, keys: Iterable[Key]) -> None:
        """Want each of these once less."""
        for key in keys:
            count, number = self._held.pop(key, (0, 0))
            if count > 1:
                self._held[key] = (count - 1, number)
            elif count:
                self._scheduler.state.release(self.client, [number])
        self._scheduler._flush()


def _ignore(message: Message) -> None:
    pass
