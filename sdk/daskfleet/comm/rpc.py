"""`rpc`: a peer's calls as methods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Self

from daskfleet.comm.pool import Pool
from daskfleet.security import Security


class rpc:
    """Calls of a scheduler or worker, for looking at one from a program of one's own.

    Parameters
    ----------
    address
        Such as ``"tcp://10.0.0.1:8786"``.
    security
        Token and certificates; by default those of the configuration.
    timeout
        Seconds for the connection, and for each answer.

    Examples
    --------
    >>> async with rpc("tcp://10.0.0.1:8786") as scheduler:  # doctest: +SKIP
    ...     print(await scheduler.identity())
    """

    def __init__(self, address: str, *, security: Security | None = None, timeout: float = 30.0) -> None:
        self.address, self._timeout = address, timeout
        self._pool = Pool((security or Security()).get_connection_args("client"), timeout)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name.startswith("_"):
            raise AttributeError(name)

        async def call(*args: Any) -> Any:
            return await self._pool.call(self.address, name, *args, timeout=self._timeout)

        return call

    def close_rpc(self) -> None:
        """Close the connection."""
        self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close_rpc()

    def __repr__(self) -> str:
        return f"<rpc to {self.address}>"
