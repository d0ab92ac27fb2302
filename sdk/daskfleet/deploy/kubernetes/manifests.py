"""A cluster from manifests in a file: `create`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from daskfleet.deploy.kubernetes.api import PLURALS, resource_path
from daskfleet.deploy.kubernetes.errors import InvalidManifest
from daskfleet.deploy.kubernetes.kubecluster import KubeCluster
from daskfleet.deploy.kubernetes.options import CreateMode
from daskfleet.deploy.kubernetes.spec import API_VERSION, Spec


def check(documents: Sequence[Spec]) -> Spec:
    """The one DaskCluster among the documents of a file.

    Raises
    ------
    InvalidManifest
        If there is none, or several, or something else than its worker groups and autoscaler besides.
    """
    kinds = [f"{document.get('apiVersion')} {document.get('kind')}" for document in documents]
    known = [f"{API_VERSION} {kind}" for kind in PLURALS]
    strange = [kind for kind in kinds if kind not in known]
    clusters = [document for document in documents if document.get("kind") == "DaskCluster"]
    if strange or len(clusters) != 1:
        raise InvalidManifest(
            f"the file holds {', '.join(kinds)}; one DaskCluster of {API_VERSION} is expected, with its worker groups "
            "and autoscaler if there are any. For all else: kubectl apply -f",
            422,
        )
    return clusters[0]


def create(documents: Sequence[Spec], namespace: str | None = None, **options: Any) -> KubeCluster:
    """Create what the documents describe, wait for the scheduler, and return its manager.

    Raises
    ------
    ClusterExists, InvalidManifest, StartFailed
        What was created is deleted again.
    """
    manifest = check(documents)
    cluster = KubeCluster(
        custom_cluster_spec=manifest,
        namespace=namespace,
        create_mode=CreateMode.CREATE_ONLY,
        shutdown_on_close=False,
        **options,
    )
    try:
        for document in documents:
            if document is not manifest:
                cluster.sync(_add, cluster, document)
    except BaseException:
        cluster.shutdown_on_close = True
        cluster.close()
        raise
    return cluster


async def _add(cluster: KubeCluster, document: Spec) -> None:
    link = cluster._connected()
    metadata = {key: value for key, value in document["metadata"].items() if key != "namespace"}
    await link.api.create(resource_path(document["kind"], link.namespace), {**document, "metadata": metadata})
