"""Worker groups and their pods' template.

The default group follows its cluster: its template always, its size only when the cluster's own number changes. Both
`kubectl scale daskcluster` and `kubectl scale daskworkergroup` thus do what they say, and an autoscaler's choice is not
undone by the next pass: the number last handed down is written on the group, and the cluster's wins when it differs
from that. Groups that users make themselves are adopted: owned by the cluster, so that they go with it.
"""

from __future__ import annotations

from daskfleet_operator import names
from daskfleet_operator.kube.kinds import AUTOSCALER, CLUSTER, POD, WORKERGROUP, Json
from daskfleet_operator.plan import templates, tls, waves
from daskfleet_operator.plan.model import Action, Create, Key, Observed, Patch
from daskfleet_operator.plan.scheduler import may_attempt


def replicas_of(resource: Json) -> int:
    """Workers that a group or a cluster asks for."""
    return max(0, int(resource["spec"]["worker"].get("replicas", 1)))


def plan_groups(observed: Observed, cluster: Json, may_start: bool, now: float) -> list[Action]:
    """Make the default group if it `may_start`, let it follow the cluster, adopt all others and the autoscalers."""
    actions: list[Action] = []
    default = names.default_group_name(observed.key.name)
    groups = {group["metadata"]["name"]: group for group in observed.groups}
    if default not in groups:
        if may_start and may_attempt(observed.memory.refusals.get(f"DaskWorkerGroup/{default}"), cluster, now):
            actions.append(Create(WORKERGROUP, default, default_group(observed.key, cluster)))
    elif (followed := follow(cluster, groups[default])) is not None:
        actions.append(followed)
    return actions + plan_ownership(observed, cluster)


def plan_ownership(observed: Observed, cluster: Json) -> list[Action]:
    """Groups and autoscalers that users made themselves become the cluster's."""
    return [
        Patch(kind, resource["metadata"]["name"], _adoption(cluster, resource, component))
        for kind, component, resources in (
            (WORKERGROUP, names.WORKERGROUP, observed.groups),
            (AUTOSCALER, names.AUTOSCALER, observed.autoscalers),
        )
        for resource in resources
        if not _owned(resource, cluster) and "deletionTimestamp" not in resource["metadata"]
    ]


def default_group(key: Key, cluster: Json) -> Json:
    noted = {names.REPLICAS: str(replicas_of(cluster)), names.TEMPLATE: worker_hash(cluster)}
    return group_of(key, cluster, names.default_group_name(key.name), noted, {"worker": cluster["spec"]["worker"]})


def group_of(key: Key, cluster: Json, name: str, noted: Json, spec: Json) -> Json:
    """A DaskWorkerGroup that we make for a cluster, with what is `noted` as annotations."""
    reserved = {names.CLUSTER_LABEL: key.name, names.COMPONENT_LABEL: names.WORKERGROUP}
    labels, annotations = templates.metadata(cluster, {}, reserved)
    return {
        "apiVersion": WORKERGROUP.api_version,
        "kind": WORKERGROUP.name,
        "metadata": {
            "name": name,
            "namespace": key.namespace,
            "labels": labels,
            "annotations": annotations | noted,
            "ownerReferences": [templates.owner_reference(CLUSTER, cluster)],
        },
        "spec": {"cluster": key.name, **spec},
    }


def worker_hash(resource: Json) -> str:
    """Fingerprint of a cluster's or a group's worker template: pods made from another one are out of date."""
    worker = resource["spec"]["worker"]
    return templates.fingerprint(worker.get("metadata") or {}, worker["spec"])


def pod_hash(cluster: Json, group: Json) -> str:
    """Fingerprint of what a worker pod is made from: the group's template and, with TLS, the certificates."""
    secret = tls.secret_name(cluster)
    return worker_hash(group) if secret is None else templates.fingerprint(worker_hash(group), secret)


def follow(cluster: Json, group: Json) -> Action | None:
    """Hand down to the default group what changed in the cluster; an adopted one has no template."""
    annotations = group["metadata"].get("annotations") or {}
    changes: list[Json] = []
    noted: Json = {}
    if "adopt" not in group["spec"] and annotations.get(names.TEMPLATE) != worker_hash(cluster):
        worker = cluster["spec"]["worker"]
        changes.append({"op": "add", "path": "/spec/worker/spec", "value": worker["spec"]})
        changes.append({"op": "add", "path": "/spec/worker/metadata", "value": worker.get("metadata") or {}})
        noted[names.TEMPLATE] = worker_hash(cluster)
    if annotations.get(names.REPLICAS) != str(replicas_of(cluster)):
        changes.append({"op": "add", "path": "/spec/worker/replicas", "value": replicas_of(cluster)})
        noted[names.REPLICAS] = str(replicas_of(cluster))
    if not changes:
        return None
    changes.append({"op": "add", "path": "/metadata/annotations", "value": annotations | noted})
    return Patch(WORKERGROUP, group["metadata"]["name"], changes)


def _owned(resource: Json, cluster: Json) -> bool:
    owners = resource["metadata"].get("ownerReferences") or ()
    return any(owner["uid"] == cluster["metadata"]["uid"] for owner in owners)


def _adoption(cluster: Json, resource: Json, component: str) -> Json:
    labels = {names.CLUSTER_LABEL: cluster["metadata"]["name"], names.COMPONENT_LABEL: component}
    owners = list(resource["metadata"].get("ownerReferences") or ())
    ours = templates.owner_reference(CLUSTER, cluster)
    if any(owner.get("controller") for owner in owners):
        ours["controller"] = False  # an object has at most one; deletion follows any owner
    return {"metadata": {"labels": labels, "ownerReferences": [*owners, ours]}}


def worker_pod(key: Key, cluster: Json, group: Json, domain: str) -> Json:
    """A worker pod of a group, but for its name: `named` fills that in."""
    name = group["metadata"]["name"]
    reserved = {
        names.CLUSTER_LABEL: key.name,
        names.GROUP_LABEL: name,
        names.COMPONENT_LABEL: names.WORKER,
        names.ISTIO: "false",
    }
    labels, annotations = templates.metadata(group, group["spec"]["worker"], reserved)
    spec = templates.with_env(
        tls.with_tls(group["spec"]["worker"]["spec"], cluster),
        {"name": names.WORKER_NAME_ENV, "value": ""},
        templates.address_variable(key.name, key.namespace, domain, tls=tls.secret_name(cluster) is not None),
        templates.token_variable(key.name),
    )
    noted = {names.TEMPLATE: pod_hash(cluster, group), names.WAVE: str(waves.next_wave(group))}
    return {
        "apiVersion": POD.api_version,
        "kind": POD.name,
        "metadata": {
            "namespace": key.namespace,
            "labels": handed(cluster, labels),
            "annotations": {names.SAFE_TO_EVICT: "true"} | annotations | noted,
            "ownerReferences": [templates.owner_reference(WORKERGROUP, group)],
        },
        "spec": spec,
    }


def handed(cluster: Json, labels: dict[str, str]) -> dict[str, str]:
    """The cluster's own labels reach every worker, under those nearer to it."""
    return templates.handed_down(cluster["metadata"].get("labels")) | labels


def named(pod: Json, name: str) -> Json:
    """A copy of `pod` by this name, which its containers find in ``DASK_WORKER_NAME`` unless the user set it."""
    spec = pod["spec"]
    sections = {
        section: [_with_name(container, name) for container in spec[section]]
        for section in ("initContainers", "containers")
        if spec.get(section)
    }
    return {**pod, "metadata": {**pod["metadata"], "name": name}, "spec": {**spec, **sections}}


def _with_name(container: Json, name: str) -> Json:
    return {**container, "env": [_fill(item, name) for item in container["env"]]}


def _fill(variable: Json, name: str) -> Json:
    blank = variable["name"] == names.WORKER_NAME_ENV and variable.get("value") == ""
    return {"name": names.WORKER_NAME_ENV, "value": name} if blank else variable
