"""The resources of clusters, written and read: what `KubeCluster` and the command line have in common.

Each function is one or two requests on an `Api`, and turns the API server's refusals into sentences about clusters.
Nothing here needs a connection to a scheduler, so that ``daskfleet scale`` or ``delete`` cost a few milliseconds and
work when the scheduler does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from daskfleet.deploy.kubernetes import fixed
from daskfleet.deploy.kubernetes import spec as specs
from daskfleet.deploy.kubernetes.api import Api, resource_path
from daskfleet.deploy.kubernetes.errors import (
    INSTALL_OPERATOR,
    ApiError,
    ClusterExists,
    ClusterNotFound,
    Forbidden,
    OperatorMissing,
)

Object = dict[str, Any]
LEAVING = "Terminating"
"""The status of a cluster that has been deleted and whose record waits for what it owns."""


@dataclass(frozen=True)
class Summary:
    """One cluster in a list.

    Attributes
    ----------
    name, namespace
        What it is called.
    status
        Its phase, as the operator sees it.
    workers, ready
        Workers it is to have, and those that are ready, in its default group.
    created
        When, in UTC.
    made_by
        ``operator``, or ``chart`` when it is plain Deployments.
    """

    name: str
    namespace: str
    status: str
    workers: int
    ready: int
    created: datetime
    made_by: str = "operator"

    @property
    def full_name(self) -> str:
        """``namespace/name``, which `KubeCluster.from_name` takes."""
        return f"{self.namespace}/{self.name}"


def summarise(cluster: Mapping[str, Any]) -> Summary:
    """The `Summary` of a DaskCluster resource; one that has adopted a release stands for that."""
    metadata, status = cluster["metadata"], cluster.get("status") or {}
    return Summary(
        name=metadata["name"],
        namespace=metadata["namespace"],
        status=LEAVING if metadata.get("deletionTimestamp") else str(status.get("phase") or "Unknown"),
        workers=int(status.get("replicas") or 0),
        ready=int(status.get("readyReplicas") or 0),
        created=_time(metadata["creationTimestamp"]),
        made_by="chart" if "adopt" in cluster["spec"] else "operator",
    )


async def list_clusters(api: Api, namespace: str | None = None, *, own: str | None = None) -> list[Summary]:
    """The clusters in `namespace`, or in all that we may look at.

    Parameters
    ----------
    namespace
        All by default.
    own
        The namespace to look at where all may not be; by default the context's.

    Raises
    ------
    OperatorMissing
        If this Kubernetes does not know DaskCluster resources.
    Forbidden
        If they may not even be listed in `own`.
    """
    try:
        summaries, missing = await _list(api, namespace)
    except Forbidden:
        if namespace is not None:
            raise
        summaries, missing = await _list(api, own or api.namespace)
    if missing is not None and not summaries:
        raise missing
    return sorted(summaries, key=lambda summary: (summary.namespace, summary.name))


async def _list(api: Api, namespace: str | None) -> tuple[list[Summary], Exception | None]:
    """The clusters, made by an operator or not; and the error to raise if there are none."""
    missing: Exception | None = None
    operated: dict[tuple[str, str], Summary] = {}
    try:
        listing = await api.get(resource_path("DaskCluster", namespace))
        operated = {(made.namespace, made.name): made for made in map(summarise, listing["items"])}
    except ApiError as error:
        missing = _without_definitions(error)
        if not isinstance(missing, OperatorMissing):
            raise
    charts: dict[tuple[str, str], list[Object]] = {}
    with contextlib.suppress(Forbidden):
        charts = await fixed.list_deployments(api, namespace)
    # a release that the operator has adopted is both
    found = operated | {key: summarise_chart(*key, deployments) for key, deployments in charts.items()}
    return list(found.values()), missing


def summarise_chart(namespace: str, name: str, deployments: list[Object]) -> Summary:
    """The `Summary` of a cluster that is Deployments, the scheduler's first."""
    scheduler, *workers = deployments
    ready = (scheduler.get("status") or {}).get("readyReplicas")
    return Summary(
        name=name,
        namespace=namespace,
        status="Running" if ready else "Pending",
        workers=sum(int(worker["spec"].get("replicas") or 0) for worker in workers),
        ready=sum(int((worker.get("status") or {}).get("readyReplicas") or 0) for worker in workers),
        created=_time(scheduler["metadata"]["creationTimestamp"]),
        made_by="chart",
    )


def _time(timestamp: str) -> datetime:
    return datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def split(name: str, namespace: str | None) -> tuple[str, str | None]:
    """``namespace/name`` into its parts; a `namespace` given besides must agree."""
    if "/" not in name:
        return name, namespace
    before, _, after = name.partition("/")
    if namespace not in (None, before):
        raise ClusterNotFound(f"cluster {name!r} is not in namespace {namespace!r}")
    return after, before


def not_found(name: str, namespace: str | None, others: Iterable[Summary]) -> ClusterNotFound:
    """The exception for a name that no cluster has, with the names that there are."""
    others = list(others)
    same = sorted(other.full_name for other in others if other.name == name)
    if same:
        which = " or ".join(f"'{full_name}'" for full_name in same)
        return ClusterNotFound(f"there is no cluster {name!r} in namespace {namespace!r}, but elsewhere: say {which}")
    names = [other.name if other.namespace == namespace else other.full_name for other in others]
    where = f" in namespace {namespace!r}" if namespace else ""
    there = f"there are: {', '.join(sorted(names))}" if names else "there are none"
    return ClusterNotFound(f"there is no cluster {name!r}{where}; {there}")


async def create_cluster(api: Api, namespace: str, manifest: Mapping[str, Any]) -> Object:
    """Create a DaskCluster.

    Raises
    ------
    ClusterExists
        If there is one of this name.
    InvalidManifest, Forbidden, NamespaceNotFound, OperatorMissing
        As the API server says.
    """
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "namespace"}
    try:
        return await api.create(resource_path("DaskCluster", namespace), {**manifest, "metadata": metadata})
    except ApiError as error:
        if error.status == 409:
            raise ClusterExists(
                f"there is a cluster {metadata['name']!r} in namespace {namespace!r} already: choose another name, "
                "or create_mode=CREATE_OR_CONNECT to use it"
            ) from None
        raise _without_definitions(error) from None


def _without_definitions(error: ApiError) -> Exception:
    """The API server's 404 for a collection it does not know has no details."""
    if error.status != 404 or error.details:
        return error
    return OperatorMissing(
        "this Kubernetes knows no DaskCluster resources: the operator is not installed. "
        f"To install it: {INSTALL_OPERATOR}"
    )


async def delete_cluster(api: Api, namespace: str, name: str, uid: str | None = None) -> None:
    """Delete a DaskCluster; what it owns goes in the background. No error if it is gone.

    Parameters
    ----------
    uid
        Delete only the one of this uid, and not another that has taken its name meanwhile.
    """
    options: dict[str, Any] = {"propagationPolicy": "Background"}
    if uid is not None:
        options["preconditions"] = {"uid": uid}
    try:
        await api.delete(resource_path("DaskCluster", namespace, name), options)
    except ApiError as error:
        if error.status != 409:  # of another uid
            raise


async def scale_group(api: Api, namespace: str, cluster: str, n: int, worker_group: str = "default") -> Object:
    """Ask for `n` workers in a worker group, and end adaptive scaling; return the group."""
    if n < 0:
        raise ValueError(f"scale({n}): a cluster cannot have less than no workers")
    path = resource_path("DaskWorkerGroup", namespace, specs.group_name(cluster, worker_group))
    try:
        await delete_autoscaler(api, namespace, cluster)  # first: it would set another size after ours
        group: Object = await api.patch(path, {"spec": {"worker": {"replicas": int(n)}}})
    except ApiError as error:
        if error.status != 404:
            raise
        raise await _no_such_group(api, namespace, cluster, worker_group) from None
    return group


async def _no_such_group(api: Api, namespace: str, cluster: str, worker_group: str) -> ClusterNotFound:
    selector = f"{specs.CLUSTER_LABEL}={cluster}"
    listing = await api.get(resource_path("DaskWorkerGroup", namespace), labelSelector=selector)
    names = sorted(item["metadata"]["name"].removeprefix(f"{cluster}-") for item in listing["items"])
    there = f"it has: {', '.join(names)}" if names else "it has none"
    return ClusterNotFound(f"cluster {cluster!r} has no worker group {worker_group!r}; {there}")


async def set_autoscaler(api: Api, namespace: str, cluster: str, minimum: int, maximum: float) -> None:
    """Let the operator keep the default worker group between `minimum` and `maximum`."""
    body = specs.make_autoscaler_spec(cluster, minimum, maximum)
    try:
        await api.create(resource_path("DaskAutoscaler", namespace), body)
    except ApiError as error:
        if error.status != 409:
            raise
        await api.patch(resource_path("DaskAutoscaler", namespace, cluster), {"spec": body["spec"]})


async def delete_autoscaler(api: Api, namespace: str, cluster: str) -> None:
    """End adaptive scaling. No error if there is none, nor if that is not ours to do."""
    with contextlib.suppress(Forbidden):
        await api.delete(resource_path("DaskAutoscaler", namespace, cluster))


async def create_group(api: Api, namespace: str, cluster: str, name: str, worker: specs.Spec) -> Object:
    """Add a worker group; return it."""
    specs.check_name(name, "worker group")
    body = specs.make_worker_group_spec(cluster, name, worker)
    try:
        return await api.create(resource_path("DaskWorkerGroup", namespace), body)
    except ApiError as error:
        if error.status != 409:
            raise
        raise ClusterExists(f"cluster {cluster!r} has a worker group {name!r} already") from None


async def delete_group(api: Api, namespace: str, cluster: str, name: str) -> None:
    """Delete a worker group. No error if it is gone."""
    await api.delete(resource_path("DaskWorkerGroup", namespace, specs.group_name(cluster, name)))
