"""The operator's own HTTP: /healthz (is it worth keeping alive), /readyz (are the caches filled), /metrics.

Liveness is not "the process answers": operators have been dead for days behind a green check. `Health.trouble` names a
watch that has been silent for longer than a healthy one can be. Our own watches know; kopf's cannot be asked, so what
kopf should have delivered is compared with what the API server has (`audit`), a metadata-only list per kind.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from aiohttp import web

from daskfleet_operator import names
from daskfleet_operator.kube.client import Api, ApiError
from daskfleet_operator.kube.kinds import CUSTOM_KINDS
from daskfleet_operator.kube.objects import Pod
from daskfleet_operator.kube.watch import Watch
from daskfleet_operator.metrics import Labels, Metrics, gauge, process_lines
from daskfleet_operator.store import Store

logger = logging.getLogger(__name__)

ONLY_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
SILENT_PERIODS = 3


class Health:
    """Whether the operator still sees what happens.

    Parameters
    ----------
    period
        Seconds after which a healthy watch shows life; three of them in silence are death.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        api: Api,
        store: Store,
        watches: Sequence[Watch],
        namespaces: Sequence[str | None],
        period: float,
        clock: Callable[[], float],
    ) -> None:
        self._api = api
        self._store = store
        self._watches = watches
        self._namespaces = namespaces
        self._period = period
        self._clock = clock
        self._audited = clock()
        self._behind: dict[tuple[str, str, str], tuple[int, float]] = {}  # missed version, and since when

    def trouble(self) -> str | None:
        """What is dead, or None."""
        limit = SILENT_PERIODS * self._period
        for watch in self._watches:
            if (silent := watch.silent_for()) > limit:
                return f"the watch of {watch.name} has been silent for {silent:.0f} s"
        if (silent := self._clock() - self._audited) > limit:
            return f"the API server has not answered for {silent:.0f} s"
        for (plural, namespace, name), (_, since) in self._behind.items():
            if self._clock() - since > limit:
                return f"kopf's watch of {plural} has missed a change of {namespace}/{name}"
        return None

    async def audit(self) -> None:
        """Compare for ever, once a period."""
        while True:
            await asyncio.sleep(self._period)
            try:
                behind = await self._compare()
            except ApiError as error:
                logger.warning("audit of the watches: %s", error)
                continue
            now = self._clock()
            self._audited = now
            self._behind = {what: (version, self._since(what, version, now)) for what, version in behind.items()}

    def _since(self, what: tuple[str, str, str], version: int, now: float) -> float:
        """When this object began to be behind: it has been since it was, if what was missing then is missing still."""
        known = self._behind.get(what)
        return known[1] if known is not None else now

    async def _compare(self) -> dict[tuple[str, str, str], int]:
        behind: dict[tuple[str, str, str], int] = {}
        for kind in CUSTOM_KINDS:
            known = self._store.versions(kind)
            for namespace in self._namespaces:
                params = {"resourceVersion": "0"}  # from the API server's cache: costs etcd nothing
                path = kind.path(namespace)
                try:
                    answer = await self._api.request("GET", path, params=params, kind=kind.plural, accept=ONLY_METADATA)
                except ApiError as error:
                    if error.status == 404:  # the definitions are not there yet
                        continue
                    raise
                for item in answer["items"] or ():  # null, not [], where there is none
                    meta = item["metadata"]
                    version = int(meta["resourceVersion"])
                    if known.get((meta["namespace"], meta["name"]), 0) < version:
                        behind[kind.plural, meta["namespace"], meta["name"]] = version
        return behind


def _state(pod: Pod) -> str:
    if pod.deleting or pod.retire_since is not None:
        return "leaving"
    if pod.trouble is not None:
        return "in trouble"
    return "ready" if pod.ready else "starting"


def _counted(label: str, values: Iterable[str]) -> dict[Labels, float]:
    return {((label, value),): float(count) for value, count in Counter(values).items()}


async def serve(
    listen: str, health: Health, metrics: Metrics, store: Store, leads: Callable[[], bool], queued: Callable[[], int]
) -> web.AppRunner:
    """Start to answer on ``host:port``; the caller cleans the runner up."""

    async def healthz(request: web.Request) -> web.Response:
        trouble = health.trouble()
        return web.Response(status=503, text=trouble) if trouble else web.Response(text="ok")

    async def readyz(request: web.Request) -> web.Response:
        return web.Response(text="ok, leading" if leads() else "ok, standing by")

    async def metricsz(request: web.Request) -> web.Response:
        lines = [*metrics.lines()]
        phases = _counted("phase", store.phases())
        states = _counted("state", (_state(pod) for pod in store.pods() if pod.component == names.WORKER))
        lines += gauge("daskfleet_operator_clusters", "DaskClusters by phase.", phases)
        lines += gauge("daskfleet_operator_workers", "Worker pods by state.", states)
        lines += gauge("daskfleet_operator_queue_depth", "Clusters waiting for a pass.", {(): float(queued())})
        lines += gauge("daskfleet_operator_leader", "1 on the replica that works.", {(): float(leads())})
        lines += process_lines()
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metricsz)])
    runner = web.AppRunner(app, handle_signals=False, access_log=None)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    await web.TCPSite(runner, host.strip("[]") or "0.0.0.0", int(port)).start()
    return runner
