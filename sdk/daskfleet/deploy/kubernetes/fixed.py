"""Clusters that no operator made: a scheduler and workers as plain Deployments, as Helm charts install them.

They are found by their labels (daskfleet's chart and dask's own ``dask`` chart) and scaled by their worker Deployment's
replicas: by the operator, once it has adopted them (`adoption`), else from here. A Deployment chooses by itself which
pods end, and an ended worker takes its results along; so for fewer workers the scheduler names those that are cheapest
to end and moves their data, these pods get the lowest ``controller.kubernetes.io/pod-deletion-cost``, and only then the
number goes down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskfleet.deploy.kubernetes import diagnosis
from daskfleet.deploy.kubernetes.api import Api, resource_path
from daskfleet.deploy.kubernetes.errors import ApiError, ClusterNotFound
from daskfleet.deploy.kubernetes.spec import CLUSTER_LABEL, COMPONENT_LABEL, GROUP_LABEL

if TYPE_CHECKING:
    from daskfleet.deploy.kubernetes.link import Link

SETTLE = 5.0  # seconds that a worker pod which just began may take to become ready
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


@dataclass(frozen=True)
class Layout:
    """How the pods of a cluster are labelled.

    Attributes
    ----------
    cluster_label, component_label
        The labels that hold the cluster's name, and ``scheduler`` or ``worker``.
    also
        What else all of them have, as a selector.
    """

    cluster_label: str = CLUSTER_LABEL
    component_label: str = COMPONENT_LABEL
    also: str = ""

    def selector(self, name: str) -> str:
        """Selects everything that belongs to the cluster `name`."""
        return ",".join(part for part in (self.also, f"{self.cluster_label}={name}") if part)


OURS = Layout()
DASK_CHART = Layout("release", "component", "app=dask")


@dataclass(frozen=True)
class Fixed:
    """A cluster made of Deployments.

    Attributes
    ----------
    name
        Of the cluster, which is the Helm release's.
    layout
        How it is labelled.
    scheduler, uid
        Its scheduler's Deployment.
    groups
        Its worker Deployments by what users call them; the first is the ``default`` group.
    """

    name: str
    layout: Layout
    scheduler: str
    uid: str
    groups: dict[str, str]

    def deployment(self, worker_group: str = "default") -> str:
        """The Deployment of what users call `worker_group`, by its own name or the group's."""
        for group, deployment in self.groups.items():
            if worker_group in (group, deployment):
                return deployment
        there = ", ".join(self.groups) or "none"
        raise ClusterNotFound(f"cluster {self.name!r} has no worker group {worker_group!r}; it has: {there}")


def owned(deployment: Mapping[str, Any]) -> bool:
    """Whether an operator made this Deployment."""
    return any(owner["kind"] == "DaskCluster" for owner in deployment["metadata"].get("ownerReferences") or [])


def recognise(name: str, layout: Layout, deployments: Iterable[Mapping[str, Any]]) -> Fixed | None:
    """The cluster that these Deployments are, or None when they have no scheduler or a DaskCluster owns them."""
    workers, scheduler = [], None
    for deployment in deployments:
        metadata = deployment["metadata"]
        if owned(deployment):
            continue
        component = metadata["labels"].get(layout.component_label)
        if component == "scheduler":
            scheduler = metadata
        elif component == "worker":
            workers.append(metadata)
    if scheduler is None:
        return None
    workers.sort(key=lambda metadata: (len(metadata["name"]), metadata["name"]))
    groups: dict[str, str] = {}
    for metadata in workers:
        groups["default" if not groups else _group_name(name, metadata, workers[0])] = metadata["name"]
    return Fixed(name, layout, scheduler["name"], scheduler["uid"], groups)


def _group_name(cluster: str, metadata: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """What to call the group of this worker Deployment: as it is labelled, else by what its name adds."""
    label = metadata["labels"].get(GROUP_LABEL)
    return str(label).removeprefix(f"{cluster}-") if label else metadata["name"].removeprefix(f"{default['name']}-")


async def find_fixed(api: Api, namespace: str, name: str) -> Fixed | None:
    """The cluster of this name that no operator made; None where there is none, or we may not look."""

    async def look(layout: Layout) -> Fixed | None:
        path = resource_path("Deployment", namespace)
        listing = await api.get(path, labelSelector=layout.selector(name))
        return recognise(name, layout, listing["items"])

    try:
        found = await asyncio.gather(look(OURS), look(DASK_CHART))
    except ApiError as error:
        if error.status != 403:
            raise
        return None
    return found[0] or found[1]


def pods_of(
    names: Iterable[str], workers: Mapping[str, Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]
) -> set[str]:
    """The pods in which the workers of these names run.

    Parameters
    ----------
    names
        As the scheduler knows them; charts seldom name workers after their pods.
    workers
        The scheduler's ``{address: identity}``.
    pods
        The worker pods.
    """
    wanted = set(names)
    hosts = {
        address.partition("://")[2].rpartition(":")[0].strip("[]")
        for address, worker in workers.items()
        if str(worker.get("name", address)) in wanted
    }
    return {
        pod["metadata"]["name"]
        for pod in pods
        if pod["metadata"]["name"] in wanted or (pod.get("status") or {}).get("podIP") in hosts
    }


async def list_deployments(api: Api, namespace: str | None) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """All Deployments that make up clusters which no operator made: scheduler first, by namespace and name."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for layout in (OURS, DASK_CHART):
        parts = (layout.also, layout.cluster_label, f"{layout.component_label} in (scheduler,worker)")
        selector = ",".join(part for part in parts if part)
        listing = await api.get(resource_path("Deployment", namespace), labelSelector=selector)
        for deployment in listing["items"]:
            metadata = deployment["metadata"]
            if not owned(deployment):
                group = found.setdefault((metadata["namespace"], metadata["labels"][layout.cluster_label]), [])
                group.insert(0 if metadata["labels"][layout.component_label] == "scheduler" else len(group), deployment)
    return found


async def scale(link: Link, deployment: str, n: int) -> None:
    """Give a worker Deployment `n` replicas; for fewer than it has, the scheduler chooses who goes.

    Parameters
    ----------
    link
        To the cluster.
    deployment
        One of its `Fixed.groups`.
    n
        Workers to have.
    """
    if n < 0:
        raise ValueError(f"scale({n}): a cluster cannot have less than no workers")
    await link.view.wait_until(lambda: link.view.synced)
    surplus = _replicas(link, deployment) - n
    if surplus > 0 and link.engine == "daskfleet":  # distributed cannot be asked: there, any worker ends
        # A Deployment ends pods that are not ready before all others, whatever their deletion cost.
        pods = await _settled(link, deployment)
        unready = [pod for pod in pods if not diagnosis.ready(pod)]
        workers = (await link.fetch("/json/identity.json"))["workers"]
        names = [str(worker.get("name", address)) for address, worker in workers.items()]
        first = [name for name in names if pods_of([name], workers, unready)]
        others = [name for name in names if name not in first and pods_of([name], workers, pods)]
        more = min(max(0, surplus - len(unready)), len(others))
        cheapest = await link.fetch("/api/v1/workers_to_close", n=more, workers=",".join(others))
        await _retire(link, [*first, *(str(worker["name"]) for worker in cheapest["workers"])], workers)
    await _set_replicas(link, deployment, n)


async def _settled(link: Link, deployment: str) -> list[dict[str, Any]]:
    """The pods of a worker Deployment, when all of them are ready or none is about to become so."""

    def pods() -> list[dict[str, Any]]:
        # A Deployment's pods are called {deployment}-{template}-{pod}; another's name may begin with this one's.
        return [pod for pod in link.view.workers() if pod["metadata"]["name"].rsplit("-", 2)[0] == deployment]

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE):
            await link.view.wait_until(lambda: all(map(diagnosis.ready, pods())))
    return pods()


async def scale_down(link: Link, names: list[str]) -> None:
    """End the workers of these names, of the default group."""
    assert link.fixed is not None
    deployment = link.fixed.deployment()
    await _settled(link, deployment)
    await _retire(link, names, (await link.fetch("/json/identity.json"))["workers"])
    await _set_replicas(link, deployment, max(0, _replicas(link, deployment) - len(names)))


async def _retire(link: Link, names: list[str], workers: Mapping[str, Mapping[str, Any]]) -> None:
    """Move the data of these workers away, and make their pods the first to go."""
    if names:
        pods = pods_of(names, workers, link.view.workers())
        await asyncio.gather(_mark(link, pods), link.retire(names))


async def _mark(link: Link, pods: Iterable[str]) -> None:
    body = {"metadata": {"annotations": {DELETION_COST: "-1000"}}}

    async def one(pod: str) -> None:
        with contextlib.suppress(ApiError):  # gone already, or not ours to annotate: then others may end instead
            await link.api.patch(resource_path("pods", link.namespace, pod), body)

    await asyncio.gather(*map(one, pods))


def _replicas(link: Link, deployment: str) -> int:
    return int(link.view.groups[deployment]["spec"].get("replicas") or 0)


async def _set_replicas(link: Link, deployment: str, n: int) -> None:
    path = resource_path("Deployment", link.namespace, deployment)
    link.view.note("Deployment", await link.api.patch(path, {"spec": {"replicas": n}}))
