"""What adopting the Deployments of a Helm release needs of the API server; `plan.adopt` says when.

Refusals are remembered as the reconciler's are: as facts for conditions, tried again later by the plan.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import replace

from daskfleet_operator import names
from daskfleet_operator.kube.client import Api, ApiError
from daskfleet_operator.kube.kinds import CLUSTER, DEPLOYMENT, POD, SECRET, Json
from daskfleet_operator.kube.objects import Pod
from daskfleet_operator.plan import model
from daskfleet_operator.plan.conditions import timestamp
from daskfleet_operator.pods import PodWriter
from daskfleet_operator.schedulers import Schedulers
from daskfleet_operator.store import Store


class Adoption:
    """Marks Deployments and pods that are not ours, and reads what a release's scheduler is opened with."""

    def __init__(
        self, api: Api, store: Store, schedulers: Schedulers, pods: PodWriter, now: Callable[[], float]
    ) -> None:
        self._api = api
        self._store = store
        self._schedulers = schedulers
        self._pods = pods
        self._now = now

    async def adopt(self, key: model.Key, action: model.Adopt) -> bool:
        """Annotate and label the Deployment. Its pods' template stays as it is, or they would all be replaced."""
        found = await self._deployment(key, action.deployment)
        if found is None:
            return False
        if (objection := _objection(key, action, found)) is not None:
            return self._refused(key, f"Deployment/{action.deployment}", "AlreadyExists", objection)
        head = {"annotations": {names.ADOPTED_BY: key.name}, "labels": {names.CLUSTER_LABEL: key.name}}
        head["resourceVersion"] = found["metadata"]["resourceVersion"]
        return await self._patch_deployment(key, action.deployment, {"metadata": head})

    async def release(self, key: model.Key, action: model.Release) -> bool:
        """Take the annotation off, if the DaskCluster is gone: one that was not seen yet is no reason."""
        try:
            await self._api.get(CLUSTER, key.namespace, key.name)
        except ApiError as error:
            if error.status != 404:
                raise
            body = {"metadata": {"annotations": {names.ADOPTED_BY: None}}}
            return await self._patch_deployment(key, action.deployment, body)
        return False

    async def find_pods(self, key: model.Key, action: model.FindPods) -> bool:
        """Label the Deployment's pods, found by its selector and, as charts' selectors overlap, by their names."""
        found = await self._deployment(key, action.deployment)
        if found is None:
            return False
        labels = found["spec"]["selector"].get("matchLabels") or {}
        selector = ",".join(f"{label}={value}" for label, value in labels.items())
        listed = await self._api.request(
            "GET", POD.path(key.namespace), params={"labelSelector": selector}, kind=POD.plural
        )
        ours = {names.CLUSTER_LABEL: key.name, names.COMPONENT_LABEL: names.SCHEDULER}
        if action.group is not None:
            ours |= {names.COMPONENT_LABEL: names.WORKER, names.GROUP_LABEL: action.group}

        async def label(pod: Json) -> bool:
            name, given = pod["metadata"]["name"], pod["metadata"].get("labels") or {}
            missing = {label: value for label, value in ours.items() if label not in given}
            if name.rsplit("-", 2)[0] != action.deployment or "deletionTimestamp" in pod["metadata"] or not missing:
                return False
            return await self._pods.patch(key.namespace, name, {"metadata": {"labels": missing}})

        done = await asyncio.gather(*map(label, listed["items"]))
        now = self._now()
        self._store.remember(key, lambda memory: replace(memory, looked={**memory.looked, action.deployment: now}))
        return any(done)

    async def mark(self, key: model.Key, pod: Pod) -> bool:
        """Write on the pod that it is to retire, and that its Deployment had best end it."""
        noted = {names.RETIRING_SINCE: timestamp(self._now()), names.DELETION_COST: "-1000"}
        return await self._pods.patch(key.namespace, pod.name, {"metadata": {"uid": pod.uid, "annotations": noted}})

    async def read_token(self, key: model.Key, action: model.ReadToken) -> bool:
        """The token that the scheduler's container has in its environment, by value or from a Secret."""
        what = f"Secret/{action.deployment}"
        found = await self._deployment(key, action.deployment)
        if found is None:
            return False
        containers = found["spec"]["template"]["spec"]["containers"]
        variables = [item for container in containers for item in container.get("env") or ()]
        variable: Json = next((item for item in variables if item["name"] == names.TOKEN_ENV), {})
        token = variable.get("value")
        if reference := (variable.get("valueFrom") or {}).get("secretKeyRef"):
            try:
                secret = await self._api.get(SECRET, key.namespace, reference["name"])
            except ApiError as error:
                if error.transient:
                    raise
                return self._refused(key, what, error.reason, error.message)
            token = base64.b64decode((secret.get("data") or {}).get(reference["key"], "")).decode()
        if token:
            self._schedulers.set_token(key, token)
        self._store.accepted(key, what)
        self._store.remember(key, lambda memory: replace(memory, token_ensured=self._now()))
        return True

    # --- requests --------------------------------------------------------------------------------------------------

    async def _deployment(self, key: model.Key, name: str) -> Json | None:
        try:
            return await self._api.get(DEPLOYMENT, key.namespace, name)
        except ApiError as error:
            if error.transient:
                raise
            message = f"there is no Deployment {name!r} to adopt" if error.status == 404 else error.message
            self._refused(key, f"Deployment/{name}", error.reason, message)
            return None

    async def _patch_deployment(self, key: model.Key, name: str, body: Json) -> bool:
        try:
            answer = await self._api.patch(DEPLOYMENT, key.namespace, name, body)
        except ApiError as error:
            if error.transient or error.reason == "Conflict":
                raise
            return self._refused(key, f"Deployment/{name}", error.reason, error.message)
        self._store.accepted(key, f"Deployment/{name}")
        self._store.changed(DEPLOYMENT, answer)
        return True

    def _refused(self, key: model.Key, what: str, reason: str, message: str) -> bool:
        cluster = self._store.observed(key).cluster
        generation = cluster["metadata"].get("generation", 0) if cluster else 0
        self._store.refused(key, what, model.Refusal(reason, message, self._now(), 1, generation))
        return False


def _objection(key: model.Key, action: model.Adopt, deployment: Json) -> str | None:
    """Why this Deployment cannot be this cluster's."""
    meta, name = deployment["metadata"], action.deployment
    pods = deployment["spec"]["template"].get("metadata", {}).get("labels") or {}
    owners = [owner["kind"] for owner in meta.get("ownerReferences") or () if owner.get("controller")]
    if owners:
        return f"the Deployment {name!r} is not Helm's but a {owners[0]}'s"
    for cluster in ((meta.get("labels") or {}).get(names.CLUSTER_LABEL), pods.get(names.CLUSTER_LABEL)):
        if cluster not in (None, key.name):
            return (
                f"the Deployment {name!r} is of the cluster {cluster!r}: only a DaskCluster of that name can adopt it"
            )
    group = pods.get(names.GROUP_LABEL)
    if action.group is not None and group not in (None, action.group):
        called = group.removeprefix(f"{key.name}-")
        return f"the pods of the Deployment {name!r} are of the worker group {called!r}: call it so in spec.adopt"
    return None
