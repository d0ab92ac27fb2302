"""The scheduler's side of a cluster: Deployment, Service, PodDisruptionBudget and token Secret.

Each carries a fingerprint of what it was made from, so a difference between the resource and the object costs a string
comparison and not a walk through fields that the API server defaulted. An object that differs is replaced as a whole:
what was taken out of the resource leaves the object too. Edits reach the scheduler last, after the workers have rolled
(`plan.plan`). An object by our name that is not this cluster's is never touched.

No probes are added to what the user gave: a scheduler busy with a large graph answers late, and a probe of ours that
restarts it then would lose what it holds. Whether it answers is found out by asking it (`AwaitScheduler`). Instead the
Service publishes a scheduler that is not ready yet, unless the user set that field: workers and clients retry by
themselves, and would otherwise wait for the kubelet's first probe, five seconds in dask-kubernetes' manifests.

And the Service gets its selector only when the first scheduler pod has an address. With a selector it gets an empty
EndpointSlice at once, and kube-proxy, which writes its rules at most once a second, writes those of no address just
before the address comes: workers reached the scheduler up to a second later.
"""

from __future__ import annotations

import copy
from functools import partial

from daskfleet_operator import names
from daskfleet_operator.kube.kinds import BUDGET, CLUSTER, DEPLOYMENT, SERVICE, Json
from daskfleet_operator.plan import backoff, secret, templates, tls
from daskfleet_operator.plan.model import Action, Backoff, Create, EnsureToken, Key, Observed, Refusal, Replace
from daskfleet_operator.plan.replicas import LONGEST_REFUSED

# Upstream's default routes and its /api/v1, which is not among them; the bundled runtime ignores the variable.
ROUTES = [
    "distributed.http.scheduler.prometheus",
    "distributed.http.scheduler.info",
    "distributed.http.scheduler.json",
    "distributed.http.scheduler.api",
    "distributed.http.health",
    "distributed.http.proxy",
    "distributed.http.statics",
]


def plan_scheduler(observed: Observed, cluster: Json, may_start: bool, may_roll: bool, now: float) -> list[Action]:
    """Make what is missing, change what differs; the Deployment only when it `may_start`, or `may_roll`."""
    actions: list[Action] = []
    key, uid = observed.key, cluster["metadata"]["uid"]
    name = names.scheduler_name(key.name)
    if (due := token_due_at(observed)) is not None and now >= due:
        actions.append(token(key, cluster))
    authority = observed.memory.refusals.get(f"Secret/{tls.secret_name(cluster)}")
    actions += tls.plan_tls(observed, cluster, may_attempt(authority, cluster, now), now)
    wanted = service_spec(cluster, selects(observed, cluster))
    for kind, known, template, build in (
        (DEPLOYMENT, observed.deployment, scheduler_hash(cluster), deployment),
        (SERVICE, observed.service, service_hash(cluster, wanted), partial(service, wanted=wanted)),
        (BUDGET, observed.budget, "", budget),
    ):
        if known is None:
            allowed = may_start or kind is not DEPLOYMENT
            if allowed and may_attempt(observed.memory.refusals.get(f"{kind.name}/{name}"), cluster, now):
                actions.append(Create(kind, name, build(key, cluster)))
        elif known.owner == uid and known.template != template and (may_roll or kind is not DEPLOYMENT):
            actions.append(Replace(kind, name, build(key, cluster)))
    return actions


def holds(refusal: Refusal | None, owner: Json) -> bool:
    """Whether the API server has refused what the owner asks for now, and not what it asked for before an edit."""
    return refusal is not None and refusal.generation == owner["metadata"].get("generation", 0)


def attempt_at(refusal: Refusal | None, owner: Json) -> float:
    """When to try to make an object: at once after an edit, else with growing delays after each refusal."""
    if refusal is None or not holds(refusal, owner):
        return 0.0
    return backoff.until(Backoff(refusal.count, refusal.last), LONGEST_REFUSED)


def may_attempt(refusal: Refusal | None, owner: Json, now: float) -> bool:
    """Whether it is time to."""
    return now >= attempt_at(refusal, owner)


def retry_at(observed: Observed, owner: Json) -> float | None:
    """When the first of the owner's refused objects may be tried again."""
    times = [
        attempt_at(refusal, owner)
        for name, refusal in observed.memory.refusals.items()
        if not name.startswith("Pod/") and holds(refusal, owner)
    ]
    return min(times, default=None)


def token_due_at(observed: Observed) -> float | None:
    """When to see to the token's Secret, and whether the scheduler takes it; see `plan.secret`."""
    ensured = observed.memory.token_ensured
    if ensured is not None and secret.token_refused(observed):
        return ensured + secret.AGAIN
    return secret.due_at(observed, names.token_secret_name(observed.key.name), ensured)


def secrets_due_at(observed: Observed, cluster: Json, now: float) -> float | None:
    """When a pod that misses a Secret now gets it again."""
    due = (token_due_at(observed), tls.due_at(observed, cluster))
    return min((at for at in due if at is not None and at > now), default=None)


def suspended(cluster: Json) -> bool:
    return bool(cluster["spec"].get("suspend"))


def scheduler_hash(cluster: Json) -> str:
    scheduler = cluster["spec"]["scheduler"]
    secret = tls.secret_name(cluster)
    more = () if secret is None else (secret,)
    return templates.fingerprint(scheduler.get("metadata") or {}, scheduler["spec"], suspended(cluster), *more)


def selects(observed: Observed, cluster: Json) -> bool:
    """Whether the Service is to have its selector by now. What kube-proxy alone does not serve has it from the start:
    name servers and balancers wait for nobody."""
    given, known = cluster["spec"]["scheduler"]["service"], observed.service
    if given.get("type", "ClusterIP") != "ClusterIP" or given.get("clusterIP") == "None":
        return True
    if known is not None and known.owner == cluster["metadata"]["uid"] and known.selects:
        return True
    return any(pod.component == names.SCHEDULER and pod.ip and not pod.deleting for pod in observed.pods)


def service_spec(cluster: Json, selecting: bool) -> Json:
    """The Service's spec as the user wrote it, with or without its selector."""
    given: Json = cluster["spec"]["scheduler"]["service"]
    return given if selecting else {name: value for name, value in given.items() if name != "selector"}


def service_hash(cluster: Json, wanted: Json) -> str:
    return templates.fingerprint(cluster["spec"]["scheduler"].get("metadata") or {}, wanted)


def selector(cluster: str, component: str) -> dict[str, str]:
    return {names.CLUSTER_LABEL: cluster, names.COMPONENT_LABEL: component}


def _head(key: Key, cluster: Json, template: str, **extra: str) -> Json:
    """Metadata of an object of the scheduler's."""
    reserved = selector(key.name, names.SCHEDULER) | extra
    labels, annotations = templates.metadata(cluster, cluster["spec"]["scheduler"], reserved)
    return {
        "name": names.scheduler_name(key.name),
        "namespace": key.namespace,
        "labels": labels,
        "annotations": annotations | {names.TEMPLATE: template},
        "ownerReferences": [templates.owner_reference(CLUSTER, cluster)],
    }


def deployment(key: Key, cluster: Json) -> Json:
    """The scheduler's Deployment: never two at once, so the old one is gone before the new one starts."""
    head = _head(key, cluster, scheduler_hash(cluster), **{names.ISTIO: "false"})
    spec = templates.with_env(
        tls.with_tls(cluster["spec"]["scheduler"]["spec"], cluster),
        {"name": names.ROUTES_ENV, "value": str(ROUTES)},
        templates.token_variable(key.name),
    )
    return {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": DEPLOYMENT.name,
        "metadata": head,
        "spec": {
            "replicas": 0 if suspended(cluster) else 1,
            "revisionHistoryLimit": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": selector(key.name, names.SCHEDULER)},
            "template": {"metadata": {"labels": head["labels"], "annotations": head["annotations"]}, "spec": spec},
        },
    }


def service(key: Key, cluster: Json, wanted: Json) -> Json:
    """The Service with this spec; see `service_spec`."""
    spec = copy.deepcopy(wanted)
    spec.setdefault("publishNotReadyAddresses", True)
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")  # part of the list's merge key: server-side apply needs it
    head = _head(key, cluster, service_hash(cluster, wanted))
    return {"apiVersion": SERVICE.api_version, "kind": SERVICE.name, "metadata": head, "spec": spec}


def budget(key: Key, cluster: Json) -> Json:
    """A node drain asks before it takes the scheduler; workers hand their data over and need none."""
    return {
        "apiVersion": BUDGET.api_version,
        "kind": BUDGET.name,
        "metadata": _head(key, cluster, ""),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": selector(key.name, names.SCHEDULER)}},
    }


def token(key: Key, cluster: Json) -> EnsureToken:
    """The Secret without its content: random bytes are drawn where I/O is done."""
    name = names.token_secret_name(key.name)
    head = {
        "name": name,
        "namespace": key.namespace,
        "labels": {names.CLUSTER_LABEL: key.name},
        "ownerReferences": [templates.owner_reference(CLUSTER, cluster)],
    }
    return EnsureToken(name, {"apiVersion": "v1", "kind": "Secret", "metadata": head, "type": "Opaque"})
