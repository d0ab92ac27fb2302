"""`fire_and_forget`: tasks that run to their end though nobody holds their futures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from daskfleet.protocol.frames import Message
from daskfleet.protocol.messages import Key
from daskfleet.scheduler.extensions.keeper import Keeper
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler


class FireAndForget:
    """Wants each task until it has ended, whichever way."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._keeper = Keeper(scheduler, "fire-and-forget")
        scheduler.hear("client", "fire_and_forget", self._take)
        scheduler.own_clients[self._keeper.client] = self._told

    def _take(self, client: ClientState, cids: Iterable[int]) -> None:
        keys = (ts.key for cid in cids if (ts := client.futures.get(cid)) is not None)
        self._keeper.keep(key for key in keys if key not in self._keeper)  # told once when it has ended

    def _told(self, message: Message) -> None:
        op, rows = message
        if op in ("finished", "erred", "lost"):
            futures = self._keeper.client.futures
            keys: list[Key] = [ts.key for row in rows if (ts := futures.get(row[0])) is not None]
            asyncio.get_running_loop().call_soon(self._keeper.drop, keys)  # not while messages are being handed out
