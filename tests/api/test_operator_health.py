"""health.py: each thing that can be dead is noticed by itself, with the others alive."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from daskfleet_operator.health import Health
from daskfleet_operator.kube.client import Api
from daskfleet_operator.kube.config import load_connection
from daskfleet_operator.kube.kinds import CLUSTER, POD
from daskfleet_operator.kube.watch import Watch
from daskfleet_operator.store import Store
from operator_bed import cluster_manifest

PERIOD = 0.3


async def test_a_dead_watch_a_dead_audit_and_a_watch_of_kopfs_that_misses_changes(
    kubernetes_api: Any, namespace: str
) -> None:
    async with Api(await load_connection(str(kubernetes_api.kubeconfig))) as api:
        store = Store(lambda key: None, "cluster.local")
        watch = Watch(
            api, POD, store, selector="dask.org/cluster-name", namespace=namespace, period=1, clock=time.monotonic
        )
        by_watch = Health(api, store, [watch], [namespace], PERIOD, time.monotonic)
        without = Health(api, store, [], [namespace], PERIOD, time.monotonic)
        audits: list[asyncio.Task[None]] = []

        async def said(health: Health, words: str | None) -> None:
            async with asyncio.timeout(60):
                while (words or "") not in (health.trouble() or "") or (words is None and health.trouble()):
                    await asyncio.sleep(0.02)

        try:
            assert without.trouble() is None
            await said(without, "the API server has not answered")  # nobody audits
            audits.append(asyncio.ensure_future(without.audit()))
            audits.append(asyncio.ensure_future(by_watch.audit()))
            await said(without, None)
            await said(by_watch, f"the watch of pods in {namespace} has been silent")  # nobody runs it
            made = await api.create(CLUSTER, namespace, cluster_manifest("unseen"))
            await said(without, f"kopf's watch of daskclusters has missed a change of {namespace}/unseen")
            store.changed(CLUSTER, made)
            await said(without, None)
        finally:
            for audit in audits:
                audit.cancel()
