"""Handing the workers of a Helm release over to the operator, and taking them back.

A DaskCluster with ``spec.adopt`` names the release's Deployments, and a DaskAutoscaler its bounds; from then on the
operator decides the replicas, with or without a session. The DaskCluster is owned by the scheduler's Deployment, so
`helm uninstall` takes it along; nothing of the release is ever owned by it. Where no operator answers, the caller is
told why and scales from the session, as `fixed` does.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from daskfleet.deploy.kubernetes import diagnosis, fixed, lifecycle
from daskfleet.deploy.kubernetes import spec as specs
from daskfleet.deploy.kubernetes.api import resource_path
from daskfleet.deploy.kubernetes.errors import (
    ApiError,
    ClusterExists,
    Forbidden,
    InvalidManifest,
    OperatorMissing,
    StartFailed,
)

if TYPE_CHECKING:
    from daskfleet.deploy.kubernetes.link import Link

ADOPTED_BY = "kubernetes.dask.org/adopted-by"
# An operator takes notice within milliseconds; one that is just being restarted, or is electing a leader, within this.
PATIENCE = 15.0


def adopted(link: Link, deployment: str) -> bool:
    """Whether an operator decides over this Deployment's replicas."""
    annotations = link.view.groups[deployment]["metadata"].get("annotations") or {}
    return ADOPTED_BY in annotations


async def hand_over(link: Link, minimum: int, maximum: float) -> str | None:
    """Let the operator keep the default workers between `minimum` and `maximum`.

    Returns
    -------
    str or None
        Why no operator does it; None when one does.

    Raises
    ------
    ClusterExists
        If a DaskCluster of this name is there which is not the release's.
    StartFailed
        If the operator cannot adopt the release, with the reason.
    """
    assert link.fixed is not None
    autoscaler = specs.make_autoscaler_spec(link.name, minimum, maximum)  # refuses wrong bounds before all else
    await link.view.wait_until(lambda: link.view.synced)
    replicas = int(link.view.groups[link.fixed.deployment()]["spec"].get("replicas") or 0)
    made = False
    try:
        try:
            await lifecycle.create_cluster(link.api, link.namespace, manifest(link.fixed, replicas))
            made = True
        except ClusterExists:
            await _check_ours(link)
        await lifecycle.set_autoscaler(link.api, link.namespace, link.name, minimum, autoscaler["spec"]["maximum"])
        async with asyncio.timeout(PATIENCE):
            await _taken_notice_of(link)
    except (OperatorMissing, Forbidden, InvalidManifest) as error:
        reason = str(error)
    except TimeoutError:
        reason = f"no operator took notice within {PATIENCE:g} s"
    except StartFailed:
        if made:
            await _delete(link)
        raise
    else:
        return None
    if made:
        with contextlib.suppress(ApiError):
            await _delete(link)
    return reason


def manifest(release: fixed.Fixed, replicas: int) -> specs.Spec:
    """The DaskCluster that adopts a release; the release's end is its end."""
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": release.scheduler, "uid": release.uid}
    groups = [{"name": name, "deployment": deployment} for name, deployment in release.groups.items()]
    return {
        "apiVersion": specs.API_VERSION,
        "kind": "DaskCluster",
        "metadata": {"name": release.name, "ownerReferences": [owner]},
        "spec": {
            "adopt": {"scheduler": release.scheduler, "workerGroups": groups},
            "worker": {"replicas": replicas},
        },
    }


async def take_back(link: Link) -> None:
    """End what `hand_over` began: the workers stay as many as they are. Nothing to do is no error."""
    assert link.fixed is not None
    try:
        found = await link.api.get(resource_path("DaskCluster", link.namespace, link.name))
    except ApiError as error:
        if error.status not in (403, 404):
            raise
        return
    if "adopt" not in found["spec"]:
        return
    await _delete(link, found["metadata"]["uid"])
    groups = tuple(link.fixed.groups.values())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE / 3):
            await link.view.wait_until(lambda: not any(adopted(link, group) for group in groups))
            return
    for group in groups:  # the operator has been uninstalled
        body = {"metadata": {"annotations": {ADOPTED_BY: None}}}
        await link.api.patch(resource_path("Deployment", link.namespace, group), body)


async def scale(link: Link, worker_group: str, n: int) -> None:
    """Give a worker group `n` workers: by the operator where it has adopted them, else from here."""
    assert link.fixed is not None
    await link.view.wait_until(lambda: link.view.synced)
    deployment = link.fixed.deployment(worker_group)
    if not adopted(link, deployment):
        return await fixed.scale(link, deployment, n)
    group = next(name for name, known in link.fixed.groups.items() if known == deployment)
    await lifecycle.scale_group(link.api, link.namespace, link.name, n, group)


async def _check_ours(link: Link) -> None:
    found = await link.api.get(resource_path("DaskCluster", link.namespace, link.name))
    if "adopt" not in found["spec"]:
        raise ClusterExists(
            f"DaskCluster {link.namespace}/{link.name} has the name of this Helm release, but pods of its own: "
            "delete or rename one of them"
        )


async def _taken_notice_of(link: Link) -> None:
    """Wait until the operator has adopted the release; raise why it cannot."""
    assert link.fixed is not None
    watching = link.api.watch(resource_path("DaskCluster", link.namespace), fields=f"metadata.name={link.name}")
    async for event in watching:
        if event.type not in ("SYNCED", "DELETED"):
            problem = diagnosis.resource_problem(event.object)
            if problem is not None and problem.certain:
                raise StartFailed(problem.sentence)
            if diagnosis.reconciled(event.object):
                break
    groups = link.fixed.groups.values()
    await link.view.wait_until(lambda: all(adopted(link, group) for group in groups))


async def _delete(link: Link, uid: str | None = None) -> None:
    await lifecycle.delete_autoscaler(link.api, link.namespace, link.name)
    await lifecycle.delete_cluster(link.api, link.namespace, link.name, uid)
