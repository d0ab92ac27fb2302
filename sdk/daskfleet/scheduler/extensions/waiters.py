"""Waiting for something that other clients bring about, in order and with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from daskfleet.scheduler.state import ClientState


class Waiters:
    """Clients in line; the first whose condition holds goes on."""

    def __init__(self) -> None:
        self._line: list[tuple[ClientState, asyncio.Future[None], Callable[[], bool]]] = []

    def __len__(self) -> int:
        return len(self._line)

    async def wait(self, client: ClientState, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until ``ready()``, which takes what it was waiting for when it returns True; False when time is up.

        Raises
        ------
        asyncio.CancelledError
            The client is gone.
        """
        if not self._line and ready():
            return True
        if timeout is not None and timeout <= 0:
            return self._try(ready)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (client, turn, ready)
        self._line.append(entry)
        self.wake()
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(turn)
        except TimeoutError:
            return turn.done() and not turn.cancelled()
        finally:
            if entry in self._line:
                self._line.remove(entry)
                self.wake()
        return True

    def _try(self, ready: Callable[[], bool]) -> bool:
        self.wake()
        return not self._line and ready()

    def wake(self) -> None:
        """Something has changed: let those go on, from the front, whose condition holds."""
        while self._line and (self._line[0][1].done() or self._line[0][2]()):
            _, turn, _ = self._line.pop(0)
            if not turn.done():
                turn.set_result(None)

    def drop(self, client: ClientState) -> None:
        """The client is gone."""
        for entry in [entry for entry in self._line if entry[0] is client]:
            self._line.remove(entry)
            entry[1].cancel()
        self.wake()
