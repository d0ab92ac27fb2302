"""A watch that never ends: list once, then follow, and say when the following stopped being true.

Operators die quietly: the connection is half open, no event comes, and every health check is green (dask-kubernetes
#620). Here each stream is ended by the server after `period` seconds and taken up again where it stopped, which costs
one request; so a healthy watch shows life at least once a period however quiet the cluster is, and `Watch.silent_for`
is a fact that liveness can act on. A stream that shows nothing for two periods is dropped and opened afresh.

After a list, objects that vanished while nobody looked are told to the sink by `replaced`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from daskfleet_operator.kube.client import Api, ApiError
from daskfleet_operator.kube.kinds import Json, Kind

logger = logging.getLogger(__name__)

PAGE = "500"
LONGEST_DELAY = 5.0


class Sink(Protocol):
    """Who is told what a watch sees."""

    def replaced(self, kind: Kind, namespace: str | None, objects: Sequence[Json]) -> None:
        """These are all the objects there are."""

    def changed(self, kind: Kind, object: Json) -> None:
        """This object was made or changed."""

    def deleted(self, kind: Kind, object: Json) -> None:
        """This object is gone."""


class Watch:
    """Follow the objects of one kind that carry a label.

    Parameters
    ----------
    selector
        Label selector, applied by the server: what it filters out costs neither bandwidth nor parsing here.
    namespace
        One namespace, or None for all.
    period
        Seconds after which the server ends a stream.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        sink: Sink,
        *,
        selector: str,
        namespace: str | None,
        period: float,
        clock: Callable[[], float],
    ) -> None:
        self._api = api
        self._kind = kind
        self._sink = sink
        self._selector = selector
        self._namespace = namespace
        self._period = period
        self._clock = clock
        self._alive = clock()
        self.synced = asyncio.Event()

    @property
    def name(self) -> str:
        return f"{self._kind.plural} in {self._namespace or 'all namespaces'}"

    def silent_for(self) -> float:
        """Seconds since the API server last answered this watch."""
        return self._clock() - self._alive

    async def run(self) -> None:
        """Follow until cancelled."""
        version: str | None = None
        delay = 0.0
        while True:
            try:
                if version is None:
                    version = await self._list()
                    self.synced.set()
                version = await self._follow(version)
                delay = 0.0
            except ApiError as error:
                if error.status == 410:  # our place in the history is gone: list anew
                    version, delay = None, 0.0
                    continue
                delay = min(LONGEST_DELAY, delay * 2 or 0.1)
                logger.warning("watch of %s: %s; again in %.1f s", self.name, error, delay)
                await asyncio.sleep(delay)

    async def _list(self) -> str:
        objects: list[Json] = []
        params = {"labelSelector": self._selector, "limit": PAGE}
        while True:
            path = self._kind.path(self._namespace)
            page = await self._api.request("GET", path, params=params, kind=self._kind.plural)
            self._alive = self._clock()
            objects += page["items"] or ()
            if not (more := page["metadata"].get("continue")):
                break
            params["continue"] = more
        self._sink.replaced(self._kind, self._namespace, objects)
        return str(page["metadata"]["resourceVersion"])

    async def _follow(self, version: str) -> str:
        params = {"labelSelector": self._selector, "resourceVersion": version}
        events = self._api.watch(self._kind, self._namespace, params, self._period, silence=2 * self._period)
        try:
            async for event in events:
                self._alive = self._clock()
                seen = event["object"]
                match event["type"]:
                    case "ERROR":
                        raise ApiError(seen.get("code", 500), seen.get("reason", ""), seen.get("message", ""))
                    case "DELETED":
                        self._sink.deleted(self._kind, seen)
                    case "ADDED" | "MODIFIED":
                        self._sink.changed(self._kind, seen)
                version = seen["metadata"]["resourceVersion"]
        except ApiError as error:
            if error.status == 0:  # a broken stream loses nothing: go on from the last version seen
                logger.info("watch of %s broke off: %s", self.name, error.message)
                await asyncio.sleep(0.1)
                return version
            raise
        finally:
            await events.aclose()  # type: ignore[attr-defined]
        self._alive = self._clock()
        return version
