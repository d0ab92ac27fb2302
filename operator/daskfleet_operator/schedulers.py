"""Where each cluster's scheduler is, and the token that opens it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import aiohttp

from daskfleet_operator import names
from daskfleet_operator.kube.client import Api
from daskfleet_operator.kube.kinds import POD, SERVICE
from daskfleet_operator.kube.objects import Pod
from daskfleet_operator.plan.adopt import adopting
from daskfleet_operator.plan.model import Key, Observed
from daskfleet_operator.plan.status import scheduler_pod
from daskfleet_operator.scheduler_api import SchedulerApi


class Schedulers:
    """The schedulers of all clusters. Use as an async context manager."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._tokens: dict[Key, str] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connection = self._api.connection
        tls = None if connection.in_cluster else connection.ssl_context()
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls if tls is not None else True))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def token(self, key: Key) -> str | None:
        """The cluster's token, if it is known here."""
        return self._tokens.get(key)

    def set_token(self, key: Key, token: str) -> None:
        self._tokens[key] = token

    def forget(self, key: Key) -> None:
        self._tokens.pop(key, None)

    def of(self, observed: Observed) -> SchedulerApi | None:
        """The cluster's scheduler, or None while it has no address."""
        service, key = observed.service, observed.key
        if observed.cluster is not None and adopting(observed.cluster):  # charts differ in their Services, pods agree
            return self._in(key, scheduler_pod(observed))
        if service is None:
            return None
        if not self._api.connection.in_cluster:
            proxied = SERVICE.path(key.namespace, f"{service.name}:{service.http_port}", "proxy")
            return self._open(key, self._api.connection.server + proxied)
        if service.address in (None, "None", ""):  # headless
            return self._in(key, scheduler_pod(observed))
        return self._open(key, f"http://{_host(service.address)}:{service.http_port}")

    def _in(self, key: Key, pod: Pod | None) -> SchedulerApi | None:
        return None if pod is None or pod.ip is None else self.of_pod(key, pod)

    def of_pod(self, key: Key, pod: Pod) -> SchedulerApi:
        """The scheduler in this pod, before its Service leads to it."""
        if not self._api.connection.in_cluster:
            proxied = POD.path(key.namespace, f"{pod.name}:{pod.http_port}", "proxy")
            return self._open(key, self._api.connection.server + proxied)
        return self._open(key, f"http://{_host(pod.ip)}:{pod.http_port}")

    def _open(self, key: Key, base: str) -> SchedulerApi:
        assert self._session is not None, "use `async with Schedulers(...)`"
        token, headers = self._tokens.get(key), {}
        if self._api.connection.in_cluster:
            if token:
                headers["Authorization"] = f"Bearer {token}"
        else:
            if token:
                headers[names.TOKEN_HEADER] = token
            if bearer := self._api.connection.bearer():
                headers["Authorization"] = f"Bearer {bearer}"
        return SchedulerApi(self._session, base, headers)


def _host(ip: str | None) -> str:
    return f"[{ip}]" if ip and ":" in ip else str(ip)
