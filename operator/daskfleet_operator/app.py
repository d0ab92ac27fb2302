"""The running operator: what it is made of, and the order in which that starts and stops.

Watches fill the caches first; only then does the work queue open, or a pass would take what it has not seen for
missing. With leader election the caches fill while standing by, and the queue opens with the lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import kopf

from daskfleet_operator import handlers, names
from daskfleet_operator.health import Health, serve
from daskfleet_operator.kube.client import Api
from daskfleet_operator.kube.config import Connection, load_connection
from daskfleet_operator.kube.kinds import BUDGET, DEPLOYMENT, POD, SERVICE
from daskfleet_operator.kube.lease import Lease
from daskfleet_operator.kube.queue import WorkQueue
from daskfleet_operator.kube.watch import Watch
from daskfleet_operator.metrics import Metrics
from daskfleet_operator.plan.model import Key
from daskfleet_operator.reconcile import Reconciler
from daskfleet_operator.schedulers import Schedulers
from daskfleet_operator.settings import Settings
from daskfleet_operator.store import Store

logger = logging.getLogger(__name__)

LEASE_NAME = "daskfleet-operator"
WATCHED = (POD, SERVICE, DEPLOYMENT, BUDGET)
REST = 5e-4  # seconds between passes for each pod of a cluster, some twenty times what a pass computes for it


class Operator:
    """One operator process.

    Parameters
    ----------
    clock, now
        Monotonic seconds, and seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self._clock = clock
        self._now = now
        self._leads = False
        self._woken: dict[Key, float] = {}
        self.metrics = Metrics()
        self.api = Api(connection, connections=settings.connections, on_request=self.metrics.request)
        self.queue: WorkQueue[Key] = WorkQueue(
            self._pass, concurrency=settings.concurrency, on_error=self._on_error, rest=self._rest
        )
        self.store = Store(self._wake, settings.cluster_domain)
        self.schedulers = Schedulers(self.api)
        self.reconciler = Reconciler(
            self.api,
            self.store,
            self.schedulers,
            self.metrics,
            wake=self._wake,
            wake_in=self.queue.wake_in,
            now=now,
        )
        self._namespaces: tuple[str | None, ...] = settings.namespaces or (None,)
        self.watches = [
            Watch(
                self.api,
                kind,
                self.store,
                selector=names.CLUSTER_LABEL,
                namespace=namespace,
                period=settings.watch_period,
                clock=clock,
            )
            for kind in WATCHED
            for namespace in self._namespaces
        ]
        self.health = Health(self.api, self.store, self.watches, self._namespaces, settings.watch_period, clock)

    def _wake(self, key: Key) -> None:
        self._woken.setdefault(key, self._clock())
        self.queue.wake(key)

    async def _pass(self, key: Key) -> float | None:
        begun = self._clock()
        if (woken := self._woken.pop(key, None)) is not None:
            self.metrics.waits.observe(begun - woken)
        try:
            return await self.reconciler.pass_over(key)
        finally:
            self.metrics.passes.observe(self._clock() - begun)

    def _rest(self, key: Key) -> float:
        return REST * self.store.pods_of(key)

    def _on_error(self, key: Key, error: Exception) -> None:
        self.metrics.errors.add(kind=type(error).__name__)
        # with its traceback only where it is a defect of ours: a refused connection needs none
        defect = error if not hasattr(error, "transient") else None
        logger.warning("%s: the pass failed and is repeated: %s", key, error, exc_info=defect)

    async def run(self) -> None:
        """Run until a signal, or until leadership is lost."""
        async with self.api, self.schedulers:
            runner = await serve(
                self.settings.listen, self.health, self.metrics, self.store, lambda: self._leads, self.queue.__len__
            )
            try:
                await self._run_tasks()
            finally:
                await self.queue.stop()
                await self.reconciler.close()
                await runner.cleanup()

    async def _run_tasks(self) -> None:
        """Until the first of the parts ends: none should but kopf, which ends on SIGTERM and SIGINT."""
        parts = [self._kopf(), self._work(), self.health.audit(), *(watch.run() for watch in self.watches)]
        tasks = [asyncio.get_running_loop().create_task(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _kopf(self) -> None:
        registry = kopf.get_default_registry()
        await kopf.operator(
            registry=registry,
            memo=self,
            standalone=True,
            clusterwide=not self.settings.namespaces,
            namespaces=self.settings.namespaces,
        )

    async def _work(self) -> None:
        """Open the work queue once the caches are filled and, with leader election, the lease is held."""
        for watch in self.watches:
            await watch.synced.wait()
        if not self.settings.leader_elect:
            await self._lead()
            await asyncio.Event().wait()
        namespace = self.settings.lease_namespace or self.connection.namespace
        lease = Lease(self.api, namespace, LEASE_NAME, self.settings.identity, self.settings.lease_seconds, self._clock)
        await lease.acquire()
        await self._lead()
        try:
            await lease.keep()
        except asyncio.CancelledError:
            await self.queue.stop()
            await lease.release()
            raise

    async def _lead(self) -> None:
        self._leads = True
        logger.info("caches are filled: working on %d clusters", len(self.store.clusters()))
        for key in self.store.clusters():
            self._wake(key)
        self.queue.start()


async def run(settings: Settings) -> None:
    """Run an operator with these settings."""
    assert handlers.on_event  # importing the module registers kopf's handlers
    connection = await load_connection(settings.kubeconfig, settings.context)
    scope = ", ".join(settings.namespaces) or "all namespaces"
    logger.info("operator for %s at %s", scope, connection.server)
    await Operator(settings, connection).run()
