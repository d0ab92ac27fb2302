"""What happened to tasks: their changes of state, for `Client.story`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from daskfleet.plugins import SchedulerPlugin
from daskfleet.protocol.messages import Key
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

#: Changes that are kept, of all tasks together.
LENGTH = 100_000


class Story(SchedulerPlugin):
    """Records from when it is asked first, since a record costs more than what it tells of."""

    name = "story"

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._records: deque[tuple[Key, str, str, float]] = deque(maxlen=LENGTH)
        scheduler.handle("client", "story", self.story)

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        self._records.append((key, start, finish, time.time()))

    async def story(self, client: ClientState, keys: Sequence[Key]) -> list[tuple[Key, str, str, float]]:
        """``(key, state before, state after, seconds since the epoch)`` of these keys, or of all, oldest first."""
        await self._scheduler.plugins.add(self, self.name, idempotent=True)
        wanted = set(keys)
        return [record for record in self._records if not wanted or record[0] in wanted]
