"""The status of a cluster and of its worker groups.

Computed from the same observation as the plan, once nothing is left to do in a pass, so that it is written once and
says what is and not what was. What a user can mend becomes the condition ``ReplicaFailure`` with a reason and the
server's or kubelet's own sentence; it clears by being computed anew. A new failure is also an Event.
"""

from __future__ import annotations

from collections.abc import Sequence

from daskfleet_operator import names
from daskfleet_operator.kube.kinds import CLUSTER, WORKERGROUP, Json
from daskfleet_operator.kube.objects import Pod
from daskfleet_operator.plan import scheduler, secret, tls
from daskfleet_operator.plan.adopt import adopting, deployments_of
from daskfleet_operator.plan.conditions import Reason, condition, merged
from daskfleet_operator.plan.groups import pod_hash, replicas_of
from daskfleet_operator.plan.model import Event, Observed, Refusal, StatusWrite
from daskfleet_operator.plan.replicas import Pods, count_ready, sort_pods

Trouble = tuple[Reason, str]

FAILURE = "ReplicaFailure"
READY = "Ready"
SCHEDULER_READY = "SchedulerReady"
FATAL = (Reason.REFUSED, Reason.NAME_TAKEN, Reason.FORBIDDEN, Reason.DEPLOYMENT_NOT_FOUND)
TOKEN_LOST = (
    "the scheduler began with another token than is in the Secret {secret!r} now, which was deleted or changed while "
    "no operator ran: what runs goes on, but other workers and clients cannot join it. To begin anew, for which the "
    "cluster loses what its workers hold: kubectl delete pods -l dask.org/cluster-name={cluster}"
)


def scheduler_pod(observed: Observed) -> Pod | None:
    """The scheduler's pod: the newest, as an older one is on its way out."""
    pods = [pod for pod in observed.pods if pod.component == names.SCHEDULER and not pod.deleting and not pod.finished]
    return max(pods, key=lambda pod: pod.created, default=None)


def scheduler_ready(observed: Observed) -> bool:
    """Whether the scheduler answers, as the kubelet's probe or our own question says."""
    pod = scheduler_pod(observed)
    return pod is not None and (pod.ready or pod.uid == observed.memory.scheduler_answers)


def was_running(cluster: Json) -> bool:
    """Whether the cluster's status, written by an earlier pass, says that its scheduler ran."""
    return (cluster.get("status") or {}).get("phase") == "Running"


def refusal_trouble(refusal: Refusal | None) -> Trouble | None:
    """What the API server would not make, as a reason of ours."""
    if refusal is None:
        return None
    if refusal.reason == "Forbidden":
        return (Reason.QUOTA_EXCEEDED if "quota" in refusal.message else Reason.FORBIDDEN), refusal.message
    if refusal.reason == "AlreadyExists":
        return Reason.NAME_TAKEN, refusal.message
    if refusal.reason == "Lost":
        return Reason.CERTIFICATES_LOST, refusal.message
    if refusal.reason == "NotFound":
        return Reason.DEPLOYMENT_NOT_FOUND, refusal.message
    return Reason.REFUSED, refusal.message


def clears_at(pods: Sequence[Pod], now: float) -> float | None:
    """When the first pod that was restarted will have held long enough, so that its trouble is over."""
    times = [pod.trouble_until for pod in pods if pod.trouble_until is not None and pod.in_trouble(now)]
    return min(times, default=None)


def pods_trouble(pods: Sequence[Pod], now: float) -> Trouble | None:
    """The first of these pods' troubles, by name so that the message does not flicker between equals."""
    troubled = [pod for pod in pods if pod.in_trouble(now)]
    if not troubled:
        return None
    worst = min(troubled, key=lambda pod: pod.name)
    assert worst.trouble is not None
    reason, message = worst.trouble
    others = sum(pod.trouble is not None and pod.trouble[0] == reason for pod in troubled) - 1
    return Reason(reason), message + (f" (and {others} more)" if others else "")


def _failure(trouble: Trouble | None, generation: int) -> Json:
    if trouble is None:
        return condition(FAILURE, False, Reason.NO_FAILURE, "nothing keeps the pods from running", generation)
    return condition(FAILURE, True, trouble[0], trouble[1], generation)


# --- worker groups -------------------------------------------------------------------------------------------------


def group_trouble(observed: Observed, group: Json, now: float) -> Trouble | None:
    """What keeps the group from its workers."""
    name = group["metadata"]["name"]
    refusal = observed.memory.refusals.get(
        f"Deployment/{adopted}" if (adopted := group["spec"].get("adopt")) else f"Pod/{name}"
    )
    pods = [pod for pod in observed.pods if pod.group == name and pod.retire_since is None]
    backoff = observed.memory.backoffs.get(name)
    trouble = refusal_trouble(refusal) or pods_trouble(pods, now)
    if trouble is None and backoff is not None and backoff.failures and backoff.message:
        return Reason.POD_FAILED, f"{backoff.message}; {backoff.failures} times in a row, replaced with growing delays"
    return trouble


def group_status(observed: Observed, group: Json, now: float) -> StatusWrite:
    """Status of one worker group."""
    name, generation = group["metadata"]["name"], group["metadata"].get("generation", 0)
    old = group.get("status") or {}
    replicas = 0 if observed.cluster and scheduler.suspended(observed.cluster) else replicas_of(group)
    pods = sort_pods(observed.pods, group)
    serving = count_ready(pods.active, now)
    trouble = group_trouble(observed, group, now)
    if observed.cluster is None:
        missing = f"the DaskCluster {observed.key.name!r} does not exist in the namespace {observed.key.namespace!r}"
        ready = condition(READY, False, Reason.CLUSTER_NOT_FOUND, missing, generation)
        trouble = Reason.CLUSTER_NOT_FOUND, missing
    else:
        ready = _group_ready(observed.cluster, group, replicas, pods, serving, trouble)
    conditions = [ready, _failure(trouble, generation)]
    labels = {names.CLUSTER_LABEL: observed.key.name, names.COMPONENT_LABEL: names.WORKER, names.GROUP_LABEL: name}
    status = {
        "observedGeneration": generation,
        "replicas": len(pods.active),
        "readyReplicas": serving,
        "selector": ",".join(f"{key}={value}" for key, value in labels.items()),
        "conditions": merged(old.get("conditions"), conditions, now),
        **({"retired": old["retired"]} if "retired" in old else {}),
    }
    return StatusWrite(WORKERGROUP, name, status, news(old, status))


def _group_ready(cluster: Json, group: Json, replicas: int, pods: Pods, ready: int, trouble: Trouble | None) -> Json:
    generation, active = group["metadata"].get("generation", 0), pods.active
    template = None if "adopt" in group["spec"] else pod_hash(cluster, group)
    outdated = 0 if template is None else sum(pod.template != template for pod in active)
    if scheduler.suspended(cluster):
        return condition(READY, False, Reason.SUSPENDED, "spec.suspend of the cluster is true", generation)
    count = f"{ready} of {replicas} workers are ready"
    if outdated:
        return _rolling(f"{outdated} of {len(active)} workers", trouble, generation)
    if ready < replicas:
        reason, message = (trouble[0], f"{count}: {trouble[1]}") if trouble else (Reason.WORKERS_STARTING, count)
        return condition(READY, False, reason, message, generation)
    if len(active) > replicas or pods.marked:
        return condition(READY, True, Reason.SCALING_DOWN, "workers are being retired", generation)
    return condition(READY, True, Reason.READY, count, generation)


def _rolling(stale: str, trouble: Trouble | None, generation: int) -> Json:
    """Not ready while an edit is on its way: waiting for ``Ready`` after one waits for its end."""
    message = f"still of the older template: {stale}"
    reason, message = (trouble[0], f"{message}; {trouble[1]}") if trouble else (Reason.ROLLING, message)
    return condition(READY, False, reason, message, generation)


# --- the cluster ---------------------------------------------------------------------------------------------------


def cluster_status(observed: Observed, cluster: Json, now: float) -> StatusWrite:
    """Status of the cluster: its scheduler, and its groups summed up."""
    generation = cluster["metadata"].get("generation", 0)
    old = cluster.get("status") or {}
    default = names.default_group_name(observed.key.name)
    workers = [pod for pod in observed.pods if pod.component == names.WORKER and not pod.deleting]
    active = [pod for pod in workers if pod.group == default and pod.retire_since is None and not pod.finished]
    trouble = cluster_trouble(observed, now)
    scheduler_state = _scheduler_condition(observed, cluster, now)
    wanted = sum(replicas_of(group) for group in observed.groups)
    stale = _stale(observed, cluster, workers)
    ready = {**scheduler_state, "type": READY}
    if scheduler_state["status"] == "True":
        serving = count_ready([pod for pod in workers if pod.retire_since is None], now)
        ready = _rolling(stale, trouble, generation) if stale else _cluster_ready(serving, wanted, trouble, generation)
    conditions = [
        scheduler_state,
        ready,
        _failure(trouble, generation),
    ]
    labels = {names.CLUSTER_LABEL: observed.key.name, names.COMPONENT_LABEL: names.WORKER, names.GROUP_LABEL: default}
    status = {
        "phase": phase(observed, cluster, now),
        "observedGeneration": generation,
        "replicas": len(active),
        "readyReplicas": count_ready(active, now),
        "selector": ",".join(f"{key}={value}" for key, value in labels.items()),
        "conditions": merged(old.get("conditions"), conditions, now),
    }
    return StatusWrite(CLUSTER, observed.key.name, status, news(old, status))


def cluster_trouble(observed: Observed, now: float) -> Trouble | None:
    """What keeps the scheduler or, if nothing does, workers from running."""
    return scheduler_trouble(observed, now) or next(
        (found for group in observed.groups if (found := group_trouble(observed, group, now))), None
    )


def _stale(observed: Observed, cluster: Json, workers: Sequence[Pod]) -> str:
    """What an edit has not reached yet."""
    if adopting(cluster):
        return ""
    wanted = {group["metadata"]["name"]: pod_hash(cluster, group) for group in observed.groups}
    active = [pod for pod in workers if pod.retire_since is None and not pod.finished]
    outdated = sum(pod.template != wanted.get(pod.group, pod.template) for pod in active)
    made_from = scheduler.scheduler_hash(cluster)
    there = [it.template for it in (observed.deployment, scheduler_pod(observed)) if it is not None]
    return ", ".join(
        [f"{outdated} of {len(active)} workers"] * (outdated > 0)
        + ["the scheduler"] * any(template not in ("", made_from) for template in there)
    )


def phase(observed: Observed, cluster: Json, now: float) -> str:
    """dask-kubernetes' word for how far the cluster is. An edit that is refused is no error of one that runs."""
    trouble = scheduler_trouble(observed, now)
    if trouble is not None and trouble[0] in FATAL and not _complete(observed, cluster):
        return "Error"
    if scheduler.suspended(cluster):
        return "Suspended"
    if adopting(cluster):
        return "Running" if scheduler_ready(observed) else "Pending"
    if observed.deployment is None or observed.service is None:
        return "Created"
    return "Running" if scheduler_ready(observed) and not observed.service.awaits_balancer else "Pending"


def _complete(observed: Observed, cluster: Json) -> bool:
    """Whether there is all that clients need."""
    uid, default = cluster["metadata"]["uid"], names.default_group_name(observed.key.name)
    ours = all(it is not None and it.owner == uid for it in (observed.deployment, observed.service))
    return ours and scheduler_ready(observed) and any(group["metadata"]["name"] == default for group in observed.groups)


def scheduler_trouble(observed: Observed, now: float) -> Trouble | None:
    """What keeps the scheduler from running."""
    if observed.cluster is not None and adopting(observed.cluster):
        return _adopted_trouble(observed, observed.cluster, now)
    name = names.scheduler_name(observed.key.name)
    for what in (
        "Template/scheduler",
        "Template/worker",
        f"Deployment/{name}",
        f"Service/{name}",
        f"PodDisruptionBudget/{name}",
        f"DaskWorkerGroup/{names.default_group_name(observed.key.name)}",
        f"Secret/{names.token_secret_name(observed.key.name)}",
        f"Secret/{observed.cluster and tls.secret_name(observed.cluster)}",
    ):
        refusal = observed.memory.refusals.get(what)
        if observed.cluster is not None and scheduler.holds(refusal, observed.cluster):
            return refusal_trouble(refusal)
    for known, kind in ((observed.deployment, "Deployment"), (observed.service, "Service")):
        if known is not None and known.owner is None:
            message = f"a {kind} named {name!r} exists and does not belong to this DaskCluster: rename one of them"
            return Reason.NAME_TAKEN, message
    if observed.deployment is not None and observed.deployment.refusal is not None:
        quota = "quota" in observed.deployment.refusal
        return (Reason.QUOTA_EXCEEDED if quota else Reason.REFUSED), observed.deployment.refusal
    if secret.token_refused(observed):
        lost = TOKEN_LOST.format(secret=names.token_secret_name(observed.key.name), cluster=observed.key.name)
        return Reason.TOKEN_LOST, lost
    pod = scheduler_pod(observed)
    return None if pod is None else pods_trouble([pod], now)


def _adopted_trouble(observed: Observed, cluster: Json, now: float) -> Trouble | None:
    """What keeps a cluster from being adopted, or its scheduler from running."""
    refusals = observed.memory.refusals
    token = f"Secret/{cluster['spec']['adopt']['scheduler']}"
    for what in (*(f"Deployment/{name}" for name in deployments_of(observed.key, cluster)), token):
        if trouble := refusal_trouble(refusals.get(what)):
            return trouble
    pod = scheduler_pod(observed)
    return None if pod is None else pods_trouble([pod], now)


def _scheduler_condition(observed: Observed, cluster: Json, now: float) -> Json:
    generation = cluster["metadata"].get("generation", 0)
    if scheduler.suspended(cluster):
        return condition(SCHEDULER_READY, False, Reason.SUSPENDED, "spec.suspend is true", generation)
    pod = scheduler_pod(observed)
    unproven = pod is not None and pod.in_trouble(now)
    if (trouble := scheduler_trouble(observed, now)) and (unproven or not scheduler_ready(observed)):
        return condition(SCHEDULER_READY, False, trouble[0], trouble[1], generation)
    if not scheduler_ready(observed):
        message = "the scheduler's pod is starting"
        return condition(SCHEDULER_READY, False, Reason.SCHEDULER_STARTING, message, generation)
    if observed.service is not None and observed.service.awaits_balancer:
        message = "the scheduler runs; its LoadBalancer has no address yet"
        return condition(SCHEDULER_READY, False, Reason.BALANCER_PENDING, message, generation)
    return condition(SCHEDULER_READY, True, Reason.READY, "the scheduler runs", generation)


def _cluster_ready(ready: int, wanted: int, trouble: Trouble | None, generation: int) -> Json:
    count = f"{ready} of {wanted} workers are ready"
    if ready >= wanted:
        return condition(READY, True, Reason.READY, count, generation)
    reason, message = (trouble[0], f"{count}: {trouble[1]}") if trouble else (Reason.WORKERS_STARTING, count)
    return condition(READY, False, reason, message, generation)


def only_counts(old: Json, new: Json) -> bool:
    """Whether a status differs in nothing but numbers of workers and the sentences that tell them."""

    def rest(status: Json) -> Json:
        kept = {name: value for name, value in status.items() if name not in ("replicas", "readyReplicas")}
        conditions = [{**item, "message": ""} for item in status.get("conditions") or ()]
        return {**kept, "conditions": conditions}

    return rest(old) == rest(new)


def news(old: Json, new: Json) -> tuple[Event, ...]:
    """Events for what a user can act on: a failure that was not there before, and its end."""
    before = {item["type"]: item for item in old.get("conditions") or ()}
    after = {item["type"]: item for item in new["conditions"]}
    was, now = before.get(FAILURE, {}), after.get(FAILURE, {})
    if now.get("status") == "True" and (was.get("status"), was.get("reason")) != ("True", now["reason"]):
        return (Event(True, now["reason"], now["message"]),)
    if was.get("status") == "True" and now.get("status") == "False":
        return (Event(False, "Recovered", f"no longer: {was.get('reason')}"),)
    return ()
