"""Calls of workers for clients that cannot reach them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from daskfleet.protocol.frames import Raw
from daskfleet.scheduler.state import ClientState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler


class Relay:
    """Passes calls and answers on, unread."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        scheduler.handle("client", "ask_worker", self.ask)

    async def ask(self, client: ClientState, address: str, method: str, args: Sequence[Any]) -> Any:
        """Call ``method(*args)`` of the worker at `address`."""
        if address not in self._scheduler.state.workers:
            raise ConnectionError(f"there is no worker {address}")
        value = await self._scheduler._pool.call(address, method, *map(_again, args))
        return _again(value)


def _again(value: Any) -> Any:
    """What was read from one connection, to be written to another."""
    if type(value) is tuple:
        return tuple([_again(item) for item in value])
    return Raw(value) if type(value) is memoryview else value
