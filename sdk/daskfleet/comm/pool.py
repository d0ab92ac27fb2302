"""Connections that everything in a process shares which calls the same peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from daskfleet.comm.connection import CommClosedError, Connection
from daskfleet.comm.opening import connect


class Shared:
    """One connection, opened when it is first needed and anew when it has died.

    Parameters
    ----------
    peer
        For messages.
    """

    def __init__(self, peer: str, open: Callable[[], Coroutine[Any, Any, Connection]]) -> None:
        self._peer, self._open = peer, open
        self._opening: asyncio.Task[Connection] | None = None

    async def get(self) -> Connection:
        """The open connection; raises what opening it raises, or CommClosedError if it is closed meanwhile."""
        task = self._opening
        if task is None or (task.done() and (task.cancelled() or task.exception() or task.result().closed)):
            task = self._opening = asyncio.create_task(self._open())
        if not task.done():
            await asyncio.wait([task])
        if task.cancelled():  # not whoever waits here: an answer that was cancelled would never be given
            raise CommClosedError(f"{self._peer} is gone")
        return task.result()

    def close(self, *farewell: Any) -> None:
        """Close it, after these messages; the next `get` opens another."""
        task, self._opening = self._opening, None
        if task is None:
            return
        if not task.done():
            task.cancel()
        elif not task.cancelled() and task.exception() is None:
            connection = task.result()
            if not connection.closed:
                for message in farewell:
                    connection.send(message)
            connection.close()


class Pool:
    """Connections by address.

    Parameters
    ----------
    connection_args
        Keyword arguments of `daskfleet.comm.connect`: token and TLS context.
    """

    def __init__(self, connection_args: dict[str, Any], timeout: float = 10.0) -> None:
        self._args, self._timeout = connection_args, timeout
        self._connections: dict[str, Shared] = {}

    async def get(self, address: str) -> Connection:
        """An open connection to `address`; raises what `connect` raises, or CommClosedError if it is forgotten."""
        shared = self._connections.get(address)
        if shared is None:
            shared = Shared(address, lambda: connect(address, timeout=self._timeout, **self._args))
            self._connections[address] = shared
        return await shared.get()

    async def call(self, address: str, method: str, *args: Any, timeout: float | None = None) -> Any:
        """Call `method` of the peer at `address` (see `Connection.call`)."""
        connection = await self.get(address)
        return await connection.call(method, *args, timeout=timeout)

    def forget(self, address: str) -> None:
        """Close the connection to a peer that is gone."""
        shared = self._connections.pop(address, None)
        if shared is not None:
            shared.close()

    def close(self) -> None:
        """Close all."""
        for shared in self._connections.values():
            shared.close()
        self._connections.clear()
