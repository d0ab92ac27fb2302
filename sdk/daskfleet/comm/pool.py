"""One connection per peer, shared by everything that calls that peer."""

from __future__ import annotations

import asyncio
from typing import Any

from daskfleet.comm.connection import CommClosedError, Connection
from daskfleet.comm.opening import connect


class Pool:
    """Connections by address, made when first needed and made anew when they have died.

    Parameters
    ----------
    connection_args
        Keyword arguments of `daskfleet.comm.connect`: token and TLS context.
    """

    def __init__(self, connection_args: dict[str, Any], timeout: float = 10.0) -> None:
        self._args, self._timeout = connection_args, timeout
        self._connections: dict[str, asyncio.Task[Connection]] = {}

    async def get(self, address: str) -> Connection:
        """An open connection to `address`; raises what `connect` raises, or CommClosedError if it is forgotten."""
        task = self._connections.get(address)
        if task is None or (task.done() and (task.cancelled() or task.exception() or task.result().closed)):
            task = asyncio.create_task(connect(address, timeout=self._timeout, **self._args))
            self._connections[address] = task
        await asyncio.wait([task])
        if task.cancelled():  # not whoever waits here: an answer that was cancelled would never be given
            raise CommClosedError(f"{address} is gone")
        return task.result()

    async def call(self, address: str, method: str, *args: Any, timeout: float | None = None) -> Any:
        """Call `method` of the peer at `address` (see `Connection.call`)."""
        connection = await self.get(address)
        return await connection.call(method, *args, timeout=timeout)

    def forget(self, address: str) -> None:
        """Close the connection to a peer that is gone."""
        task = self._connections.pop(address, None)
        if task is not None:
            _close(task)

    def close(self) -> None:
        """Close all."""
        for task in self._connections.values():
            _close(task)
        self._connections.clear()


def _close(task: asyncio.Task[Connection]) -> None:
    if not task.done():
        task.cancel()
    elif not task.cancelled() and task.exception() is None:
        task.result().close()
