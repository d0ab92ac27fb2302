"""Followed logs end with the cluster, in whatever order its pods and its record go."""

from __future__ import annotations

import asyncio
from typing import Any

from daskfleet.deploy.kubernetes.api import Api
from daskfleet.deploy.kubernetes.logs import follow_logs
from operator_bed import Namespace, cluster_manifest

HELD = {"finalizers": ["daskfleet.test/held"]}  # as the foreground deletion of a cluster holds its record


async def heard(namespace: str, cluster: str) -> list[tuple[str, str]]:
    api = await Api.connect()
    try:
        return [pair async for pair in follow_logs(api, namespace, cluster)]
    finally:
        await api.close()


async def test_a_record_that_outlives_its_pods_and_a_cluster_without_any_hold_nobody_up(
    kubernetes_api: Any, namespace: str
) -> None:
    lab = Namespace(kubernetes_api, namespace)
    pod = {"labels": {"dask.org/cluster-name": "held", "dask.org/component": "worker"}, "name": "held-worker"}
    nowhere = {"schedulerName": "nobody", "containers": [{"name": "worker", "image": "example.invalid/nothing:1"}]}
    held, empty = cluster_manifest("held"), cluster_manifest("empty")
    held["metadata"] |= HELD
    lab.apply({"apiVersion": "v1", "kind": "Pod", "metadata": pod, "spec": nowhere})
    lab.apply({"apiVersion": "v1", "kind": "List", "items": [held, empty]})
    following = [asyncio.ensure_future(heard(namespace, name)) for name in ("held", "empty")]
    try:
        await asyncio.sleep(0.5)
        assert not any(each.done() for each in following)
        lab.kubectl("delete", "dsk", "held", "empty", "--wait=false")
        done, _ = await asyncio.wait(following, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert done == {following[1]}  # the other has a pod still
        lab.kubectl("delete", "pod", "held-worker", "--wait=false")
        assert await asyncio.wait_for(asyncio.gather(*following), 60) == [[], []]
    finally:
        for each in following:
            each.cancel()
        lab.kubectl("patch", "dsk", "held", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
