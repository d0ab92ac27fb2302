"""How a cluster manager speaks with its scheduler, wherever that runs.

A scheduler in this process is called directly; a remote one over a connection that proves the token, and, for the two
questions of adaptive scaling, over HTTP.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlencode

from daskfleet.comm import Connection, connect, parse_address
from daskfleet.comm.pool import Shared
from daskfleet.scheduler.server import Scheduler
from daskfleet.security import Security

#: Seconds for an answer that needs no work.
TIMEOUT = 10.0


class SchedulerLink(Protocol):
    """What managers ask of a scheduler. Everything raises OSError when it does not answer."""

    http_address: str

    async def identity(self) -> dict[str, Any]: ...

    async def adaptive_target(self, seconds: float) -> int: ...

    async def by_cost(self, names: Sequence[str]) -> list[str]:
        """The names of those that are registered, the worker that is cheapest to end first."""

    async def retire(self, names: Sequence[str]) -> None:
        """Let these workers hand over their data and end."""

    async def shut_down(self) -> None:
        """End the scheduler and all its workers."""

    def close(self) -> None: ...


class LocalLink:
    """A scheduler in this process."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        port = scheduler.dashboard_port
        self.http_address = f"http://{parse_address(scheduler.address).host}:{port}" if port else ""

    async def identity(self) -> dict[str, Any]:
        return self._scheduler.identity()

    async def adaptive_target(self, seconds: float) -> int:
        return self._scheduler.adaptive_target(seconds)

    async def by_cost(self, names: Sequence[str]) -> list[str]:
        return [worker.name for worker in self._scheduler.workers_to_close(len(names), names)]

    async def retire(self, names: Sequence[str]) -> None:
        await self._scheduler.retire_workers(self._scheduler.select(names), close_workers=True)

    async def shut_down(self) -> None:
        await self._scheduler.close("the cluster was closed", close_workers=True)

    def close(self) -> None: ...


class RemoteLink:
    """A scheduler elsewhere; connects when first asked, and again when the connection was lost."""

    def __init__(self, address: str, security: Security | None) -> None:
        self.address = address
        self.http_address = ""
        self._args = (security or Security()).get_connection_args("client")
        self._shared = Shared(f"the scheduler at {address}", self._connect)

    async def _connect(self) -> Connection:
        connection = await connect(self.address, timeout=TIMEOUT, **self._args)
        registered = await connection.call("register", "client", {"id": f"Manager-{uuid.uuid4()}"}, timeout=TIMEOUT)
        if registered["dashboard"]:
            self.http_address = f"http://{parse_address(self.address).host}:{registered['dashboard']}"
        return connection

    async def _call(self, method: str, *args: Any, timeout: float = TIMEOUT) -> Any:
        connection = await self._shared.get()
        return await connection.call(method, *args, timeout=timeout)

    async def identity(self) -> dict[str, Any]:
        info: dict[str, Any] = await self._call("identity")
        return info

    async def _get(self, path: str, **query: Any) -> Any:
        from tornado.httpclient import AsyncHTTPClient, HTTPError

        if not self.http_address:
            raise OSError(f"the scheduler at {self.address} has no dashboard, which adaptive scaling asks")
        url = f"{self.http_address}{path}?{urlencode(query)}"
        try:
            return json.loads((await AsyncHTTPClient().fetch(url, request_timeout=TIMEOUT)).body)
        except HTTPError as error:
            raise OSError(f"GET {url}: {error}") from None

    async def adaptive_target(self, seconds: float) -> int:
        return int((await self._get("/api/v1/adaptive_target", target_duration=f"{seconds}s"))["workers"])

    async def by_cost(self, names: Sequence[str]) -> list[str]:
        if not names:
            return []
        answer = await self._get("/api/v1/workers_to_close", n=len(names), workers=",".join(names))
        return [str(worker["name"]) for worker in answer["workers"]]

    async def retire(self, names: Sequence[str]) -> None:
        if names:
            await self._call("retire_workers", list(names), None, True, timeout=90)

    async def shut_down(self) -> None:
        await self._call("shutdown")

    def close(self) -> None:
        self._shared.close(("goodbye",))
