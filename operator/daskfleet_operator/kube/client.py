"""The Kubernetes API as raw JSON over one aiohttp session.

No client library: deserialising into thousands of model objects is where other operators spend half their CPU
(kubespawner #423), and importing one costs more memory than the whole operator. What is sent and received are plain
dicts. Requests share a bounded pool of connections; the API server's own fairness does the rest, and its 429 is obeyed.
"""

from __future__ import annotations

import asyncio
import json
from asyncio import sslproto
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Self

import aiohttp

from daskfleet_operator.kube.config import Connection
from daskfleet_operator.kube.kinds import Json, Kind

FIELD_MANAGER = "daskfleet-operator"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"  # merges lists by their keys; only for built-in kinds
THROTTLED_TRIES = 5

# asyncio reads TLS into a new buffer of 256 KB each time, which the allocator asks the system for, since the image has
# whatever is large given back at once. At 64 KB a watch event takes a third of the processor time (18 for 57 µs), and
# a request two thirds.
sslproto.SSLProtocol.max_size = 1 << 16


class ApiError(Exception):
    """The API server refused a request.

    Attributes
    ----------
    status
        HTTP status; 0 when no answer came (connection lost, deadline passed).
    reason
        Kubernetes' word for it, such as ``AlreadyExists``, ``Invalid`` or ``Forbidden``.
    message
        The server's sentence, fit to be shown to a user.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def transient(self) -> bool:
        """Whether the same request may well succeed soon without anybody changing anything."""
        return self.status in (0, 408, 429) or self.status >= 500

    @property
    def gone(self) -> bool:
        """Whether the object that a request named with its uid is gone; there may be another by that name."""
        return self.status in (404, 409)


class Api:
    """A session with one API server. Use as an async context manager.

    Parameters
    ----------
    connection
        Where and who.
    connections
        Most simultaneous connections, watches aside.
    timeout
        Seconds that one request may take.
    on_request
        Called with method, plural and HTTP status after each request, for metrics.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        connections: int = 48,
        timeout: float = 20,
        on_request: Callable[[str, str, int], None] = lambda method, plural, status: None,
    ) -> None:
        self.connection = connection
        self._connections = connections
        self._timeout = timeout
        self._on_request = on_request
        self._session: aiohttp.ClientSession | None = None
        self._watches: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        context = self.connection.ssl_context()
        tls = context if context is not None else True
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=self._connections))
        # Watches live long: in a pool of their own they never starve requests of connections.
        self._watches = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for session in (self._session, self._watches):
            if session is not None:
                await session.close()

    def _headers(self, content_type: str = "application/json") -> dict[str, str]:
        headers = {"Content-Type": content_type, "Accept": "application/json", "User-Agent": FIELD_MANAGER}
        if token := self.connection.bearer():
            headers["Authorization"] = f"Bearer {token}"
        return headers

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        kind: str = "",
        accept: str | None = None,
    ) -> Json:
        """Send one request and return the JSON answer.

        Raises
        ------
        ApiError
            On any refusal, lost connection or passed deadline. A 429 is retried first, as the server asks.
        """
        assert self._session is not None, "use `async with Api(...)`"
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers(content_type)
        if accept is not None:
            headers["Accept"] = accept
        for attempt in range(THROTTLED_TRIES):
            try:
                async with self._session.request(
                    method,
                    self.connection.server + path,
                    data=data,
                    params=params,
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=self._timeout),
                ) as response:
                    self._on_request(method, kind, response.status)
                    raw = await response.read()
                    if response.status == 429 and attempt < THROTTLED_TRIES - 1:
                        await asyncio.sleep(float(response.headers.get("Retry-After", 1)))
                        continue
                    if response.status >= 400:
                        raise _error(response.status, raw)
                    answer: Json = json.loads(raw) if raw else {}
                    return answer
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._on_request(method, kind, 0)
                raise ApiError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error
        raise AssertionError("unreachable")

    async def create(self, kind: Kind, namespace: str, body: Json, dry_run: bool = False) -> Json:
        params = {"fieldManager": FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        counted = f"{kind.plural}/dry-run" if dry_run else kind.plural
        return await self.request("POST", kind.path(namespace), body=body, kind=counted, params=params)

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        return await self.request("GET", kind.path(namespace, name), kind=kind.plural)

    async def find(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """The object, or None if there is none."""
        try:
            return await self.get(kind, namespace, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: object,
        *,
        content_type: str = MERGE,
        subresource: str | None = None,
    ) -> Json:
        path = kind.path(namespace, name, subresource)
        params = {"fieldManager": FIELD_MANAGER}
        return await self.request("PATCH", path, body=body, content_type=content_type, kind=kind.plural, params=params)

    async def replace(self, kind: Kind, namespace: str, name: str, body: Json) -> Json:
        return await self.request("PUT", kind.path(namespace, name), body=body, kind=kind.plural)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> Json | None:
        """Delete one object, only if it still has this uid; None if it was gone already.

        Dependents are deleted in the background by their ownerReferences.
        """
        options: Json = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            return await self.request("DELETE", kind.path(namespace, name), body=options, kind=kind.plural)
        except ApiError as error:
            if error.gone:
                return None
            raise

    async def watch(
        self, kind: Kind, namespace: str | None, params: Mapping[str, str], timeout: float, silence: float
    ) -> AsyncIterator[Json]:
        """Yield watch events, bookmarks included, until the server ends the stream after `timeout` seconds.

        Raises
        ------
        ApiError
            If the stream cannot be opened, breaks, or nothing comes for `silence` seconds.
        """
        assert self._watches is not None, "use `async with Api(...)`"
        params = {**params, "watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(max(1, int(timeout)))}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=silence)
        path = kind.path(namespace)
        try:
            async with self._watches.get(
                self.connection.server + path, params=params, headers=self._headers(), timeout=limits
            ) as response:
                self._on_request("WATCH", kind.plural, response.status)
                if response.status >= 400:
                    raise _error(response.status, await response.read())
                rest = b""
                async for chunk in response.content.iter_any():  # not readline(): a pod may exceed its line limit
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line:
                            event: Json = json.loads(line)
                            yield event
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "Unreachable", f"watch of {path}: {error or type(error).__name__}") from error


def _error(status: int, raw: bytes) -> ApiError:
    try:
        answer = json.loads(raw)
        return ApiError(status, str(answer.get("reason", "")), str(answer.get("message", "")))
    except (ValueError, AttributeError):
        return ApiError(status, "", raw.decode(errors="replace")[:500])
