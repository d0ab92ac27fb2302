"""The Kubernetes API server as plain JSON, on the official client's asyncio part.

`kubernetes.aio` gives what is tedious and dangerous to write oneself: kubeconfig, contexts, exec plugins, OIDC, service
accounts, TLS, proxies. Its generated API classes and models stay out: importing two of them takes 0.6 s and 27 MB
(0.35 s without), more than a pod needs to start, and they would drop the fields of custom resources they do not know.
So requests are dicts on paths. Credentials that have expired are loaded again once before a 401 is believed, and
requests that did not reach a restarting API server are repeated for `patience` seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from daskfleet.deploy.kubernetes import credentials
from daskfleet.deploy.kubernetes.errors import ApiError, KubeConfigError, KubernetesError, Unreachable, from_status
from daskfleet.deploy.kubernetes.spec import API_VERSION

PLURALS = {"DaskCluster": "daskclusters", "DaskWorkerGroup": "daskworkergroups", "DaskAutoscaler": "daskautoscalers"}
MERGE_PATCH = "application/merge-patch+json"
# A watch ends itself after this many seconds and is resumed: a peer that vanished is noticed then at the latest.
WATCH_SECONDS = 240
# An overloaded or restarting API server, or the proxy before it.
PASSING = (429, 502, 503, 504)


@dataclass(frozen=True)
class Event:
    """One change seen by a watch. `type` is ADDED, MODIFIED or DELETED, or SYNCED once the first list is through."""

    type: str
    object: dict[str, Any]


def resource_path(kind: str, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
    """The API path of a kind of ours (``DaskCluster``), of a Deployment, or of the core group by plural (``pods``)."""
    root, plural = ("/apis/" + API_VERSION, PLURALS[kind]) if kind in PLURALS else ("/api/v1", kind)
    if kind == "Deployment":
        root, plural = "/apis/apps/v1", "deployments"
    parts = [root] + (["namespaces", quote(namespace, safe="")] if namespace else []) + [plural]
    parts += [quote(name, safe="")] if name else []
    parts += [subresource] if subresource else []
    return "/".join(parts)


def load_library() -> tuple[Any, Any]:
    """Import what we use of the official client: its ApiClient and its Configuration.

    Raises
    ------
    ImportError
        With the command that installs it.
    """
    try:
        from kubernetes.aio.client.api_client import ApiClient
        from kubernetes.aio.client.configuration import Configuration
    except ImportError as error:
        raise ImportError(
            f'KubeCluster needs the official Kubernetes client ({error}): pip install "daskfleet[kubernetes]"'
        ) from None
    return ApiClient, Configuration


class Api:
    """A connection to one API server as one user. Made by `Api.connect`, used on one event loop, closed by `close`.

    Attributes
    ----------
    host
        URL of the API server.
    namespace
        The one that the kubeconfig's context or the service account names, else ``default``.
    in_cluster
        Whether the credentials are those of the pod that this process runs in.
    patience
        Seconds for which a request that cannot reach the API server is repeated; 0 until the first answer.
    """

    def __init__(self, context: str | None) -> None:
        self._context = context
        self._clients: list[Any] = []  # the last is in use; streams that began with earlier credentials go on
        self._loading = asyncio.Lock()
        self.host = ""
        self.namespace = "default"
        self.in_cluster = False
        self.ca_file: str | None = None
        self.patience = 0.0

    @classmethod
    async def connect(cls, context: str | None = None) -> Api:
        """Load the credentials; nothing is sent yet.

        Parameters
        ----------
        context
            Name of a context of the kubeconfig; the current one by default.

        Raises
        ------
        ImportError
            If the `kubernetes` package is not installed.
        KubeConfigError
            If no usable configuration is found.
        """
        api = cls(context)
        await api._load()
        return api

    async def _load(self) -> None:
        ApiClient, Configuration = load_library()
        configuration = Configuration()
        self.namespace, self.in_cluster = await credentials.load(configuration, self._context)
        configuration.connection_pool_maxsize = 0  # every forwarded connection holds one: no limit
        self.host = configuration.host
        self.ca_file = configuration.ssl_ca_cert
        try:
            client = ApiClient(configuration=configuration)
        except (OSError, ValueError) as error:
            raise KubeConfigError(f"the certificates that the kubeconfig names cannot be used: {error}") from None
        self._clients.append(client)

    @property
    def _client(self) -> Any:
        return self._clients[-1]

    async def _renew(self, used: Any) -> None:
        """Load the credentials again, unless another request has done so since this one began with `used`."""
        async with self._loading:
            if used is self._client:
                await self._load()

    async def close(self) -> None:
        """Give back all connections. Idempotent."""
        for client in self._clients:
            await client.close()

    # ------------------------------------------------------------------------------------------------------ requests

    async def get(self, path: str, **params: Any) -> dict[str, Any]:
        """GET `path` as JSON."""
        return await self._json("GET", path, params=params)

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST `body` to the collection `path`."""
        return await self._json("POST", path, body=body)

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change `path` by a JSON merge patch."""
        return await self._json("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def delete(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """DELETE `path` with background propagation; what is gone already is no error."""
        try:
            return await self._json("DELETE", path, body=body or {"propagationPolicy": "Background"})
        except ApiError as error:
            if error.status != 404:
                raise
            return {}

    async def text(self, path: str, **params: Any) -> str:
        """GET `path` as text (a pod's log)."""
        response = await self._send("GET", path, params=params)
        return str(await response.text(errors="replace"))

    async def lines(self, path: str, **params: Any) -> AsyncIterator[str]:
        """GET `path` as lines of text, as they come; ends when the stream does, for whatever reason."""
        import aiohttp

        response = await self._send("GET", path, params=params, read_timeout=WATCH_SECONDS)
        rest = b""
        try:
            async for chunk in response.content.iter_any():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line.decode("utf-8", "replace")
        except (aiohttp.ClientError, TimeoutError, OSError):
            return
        finally:
            response.close()
        if rest:
            yield rest.decode("utf-8", "replace")

    async def _json(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        response = await self._send(method, path, params=params, body=body, content_type=content_type)
        answer: dict[str, Any] = json.loads(await response.read())
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        read_timeout: float = 30,
    ) -> Any:
        """Send a request and return aiohttp's response, whose status is below 400."""
        import aiohttp

        clock = asyncio.get_running_loop().time
        deadline, delay, renewed = clock() + self.patience, 0.05, False
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=read_timeout)
        while True:
            error: KubernetesError
            try:
                client = self._client
                url, headers = await self._address(method, path, params)
                headers["Content-Type"] = content_type
                answer = await client.rest_client.request(
                    method, url, headers=headers, body=body, _request_timeout=limits
                )
                response = answer.response
                if response.status < 400:
                    self.patience = max(self.patience, 15.0)
                    return response
                error = from_status(response.status, await _status_object(response))
            except (aiohttp.ClientError, TimeoutError, OSError) as problem:
                error = self._unreachable(problem)
            if isinstance(error, ApiError) and error.status == 401 and not renewed:
                renewed = True
                await self._renew(client)
                continue
            passing = isinstance(error, Unreachable) or (isinstance(error, ApiError) and error.status in PASSING)
            if not passing or clock() + delay > deadline:
                raise error
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, 1.0)

    def _unreachable(self, problem: BaseException) -> Unreachable:
        reason = str(problem) or type(problem).__name__
        which = f" of context {self._context!r}" if self._context else ""
        return Unreachable(
            f"the Kubernetes API server at {self.host}{which} cannot be reached ({reason}); "
            "is it running, and do the network, VPN or proxy lead there? `kubectl cluster-info` should answer"
        )

    async def _address(
        self, method: str, path: str, params: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, str]]:
        """URL and headers with credentials for a request."""
        _, url, headers, _, _ = await self._client.param_serialize(method, path, auth_settings=["BearerToken"])
        query = {key: str(value) for key, value in (params or {}).items() if value is not None}
        return (f"{url}?{urlencode(query)}" if query else url), {"Accept": "application/json", **(headers or {})}

    # ------------------------------------------------------------------------------------------------------- streams

    async def watch(self, path: str, *, labels: str | None = None, fields: str | None = None) -> AsyncIterator[Event]:
        """All objects under `path` that match, then every change to them, for ever.

        Reconnects by itself; after a gap too long to resume, the objects that went meanwhile are reported as DELETED.
        A request that the API server refuses (403, 404) ends it with that `ApiError`.
        """
        import aiohttp

        known: dict[str, dict[str, Any]] = {}
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        version: str | None = None
        delay = 0.05
        while True:
            try:
                if version is None:
                    listing = await self.get(path, **selectors)
                    version = listing["metadata"]["resourceVersion"]
                    for event in _differences(known, listing.get("items") or []):
                        yield event
                    yield Event("SYNCED", {})
                delay = 0.05
                async for event in self._watch_once(path, {**selectors, "resourceVersion": version}):
                    version = event.object["metadata"]["resourceVersion"]
                    if event.type == "BOOKMARK":
                        continue
                    name = event.object["metadata"]["name"]
                    known[name] = event.object
                    if event.type == "DELETED":
                        del known[name]
                    yield event
            except ApiError as error:
                if error.status not in (410, 500, *PASSING):
                    raise
                version = None
            except (Unreachable, aiohttp.ClientError, TimeoutError, OSError):
                pass  # resume from `version`
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, 5.0)

    async def _watch_once(self, path: str, params: Mapping[str, Any]) -> AsyncIterator[Event]:
        query = {**params, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": WATCH_SECONDS}
        response = await self._send("GET", path, params=query, read_timeout=WATCH_SECONDS + 30)
        try:
            while line := await response.content.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise from_status(event["object"].get("code", 500), event["object"])
                yield Event(event["type"], event["object"])
        finally:
            response.close()

    async def websocket(self, path: str, params: Mapping[str, Any], protocol: str) -> Any:
        """Open a websocket (aiohttp's ``ClientWebSocketResponse``) to a streaming subresource of a pod.

        Raises
        ------
        ApiError
            If the API server refuses it, because the pod is gone, say.
        Unreachable
            If the API server does not answer.
        """
        import aiohttp

        url, headers = await self._address("GET", path, params)
        headers["Accept"] = "*/*"
        rest = self._client.rest_client
        if rest.pool_manager is None:
            rest.pool_manager = rest._create_pool_manager()
        try:
            async with asyncio.timeout(10):
                return await rest.pool_manager.ws_connect(
                    "ws" + url.removeprefix("http"),
                    protocols=(protocol,),
                    headers=headers,
                    proxy=rest.proxy,
                    proxy_headers=rest.proxy_headers,
                    server_hostname=rest.configuration.tls_server_name,
                    max_msg_size=0,
                    timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status == 403:
                await self.get(path, **params)  # refused as well, with the reason
            raise from_status(error.status, {"message": error.message}) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from None


async def _status_object(response: Any) -> dict[str, Any]:
    text = (await response.read()).decode("utf-8", "replace")
    try:
        answer = json.loads(text)
        return answer if isinstance(answer, dict) else {}
    except ValueError:
        return {"message": text.strip()[:300]} if text.strip() else {}


def _differences(known: dict[str, dict[str, Any]], items: list[dict[str, Any]]) -> list[Event]:
    """Bring `known` up to `items`, and return what changed."""
    listed = {item["metadata"]["name"]: item for item in items}
    events = [Event("DELETED", known.pop(name)) for name in list(known) if name not in listed]
    for name, item in listed.items():
        before = known.get(name)
        if before is None or before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            events.append(Event("MODIFIED" if before else "ADDED", item))
            known[name] = item
    return events
