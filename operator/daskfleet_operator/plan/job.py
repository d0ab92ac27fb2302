"""DaskJob: a cluster and a pod that uses it, together from start to end.

    JobCreated ──► ClusterCreated ──► Running ──► Successful | Failed

The cluster carries the job's name and belongs to it, and so does the runner pod. A runner that fails is made anew, up
to ``spec.backoffLimit`` times (0 by default, as in dask-kubernetes) with growing delays; when it has ended for good the
cluster is deleted and the runner is kept for its logs, until ``ttlSecondsAfterFinished`` removes the job and all of it.

An edit of the job's cluster is handed down to that, and rolls it. An edit of the runner reaches one that has not
started, or that fails and is restarted by the kubelet: it is made anew. One that works is left to its work.
"""

from __future__ import annotations

from daskfleet_operator import names
from daskfleet_operator.kube.kinds import CLUSTER, JOB, POD, Json
from daskfleet_operator.kube.objects import Pod, parse_time
from daskfleet_operator.plan import backoff as wait
from daskfleet_operator.plan import scheduler, status, templates, tls, trial
from daskfleet_operator.plan.conditions import Reason, condition, merged, timestamp
from daskfleet_operator.plan.model import (
    Action,
    Backoff,
    Create,
    Delete,
    DeletePod,
    Event,
    Forget,
    Observed,
    Patch,
    StatusWrite,
)

SUCCESSFUL = "Successful"
FAILED = "Failed"
COMPLETE = "Complete"


def plan_job(observed: Observed, job: Json, now: float) -> tuple[list[Action], float | None]:
    """Make the cluster and the runner; when the runner has ended, end the cluster, and later the job."""
    old = job.get("status") or {}
    if old.get("jobStatus") in (SUCCESSFUL, FAILED):
        return _after_the_end(observed, job, now)
    if suspended(job):
        return _suspend(observed, job), None
    actions: list[Action] = []
    if observed.cluster is None:
        shown = trial.attempt(observed, job, trial.RUNNER, runner_pod(observed, job))
        if trial.passed(observed, shown):
            actions.append(Create(CLUSTER, observed.key.name, job_cluster(observed, job)))
        elif trial.due(observed, shown, job, now):
            actions.append(shown)
        return actions, scheduler.retry_at(observed, job)
    if not belongs(observed.cluster, job):
        return actions, None
    followed, wake_at = _follow(observed, job, observed.cluster, now)
    actions += followed
    pod = runner(observed, job)
    failures = int(old.get("failed", 0))
    if pod is None:
        name = names.runner_name(observed.key.name)
        allowed_at = wait.until(Backoff(failures, parse_time(old.get("lastFailureTime")) or 0.0))
        allowed_at = max(allowed_at, scheduler.attempt_at(observed.memory.refusals.get(f"{POD.name}/{name}"), job))
        if now < allowed_at:
            return actions, allowed_at if wake_at is None else min(allowed_at, wake_at)
        actions.append(Create(POD, name, runner_pod(observed, job)))
    elif pod.phase == "Failed" and failures <= limit(job) and counted(old, pod) and not pod.deleting:
        actions.append(DeletePod(pod, "failed, and another attempt is left"))
    elif outdated(job, pod) and (pod.phase == "Pending" or pod.in_trouble(now)) and not pod.deleting:
        actions.append(DeletePod(pod, "it does not work, and its template was edited"))
    return actions, wake_at


def _follow(observed: Observed, job: Json, cluster: Json, now: float) -> tuple[list[Action], float | None]:
    """Hand down to the cluster what was edited in the job."""
    noted, what = cluster["metadata"].get("annotations") or {}, f"{CLUSTER.name}/{observed.key.name}"
    refusal = observed.memory.refusals.get(what)
    if "deletionTimestamp" in cluster["metadata"]:
        return [], None
    if noted.get(names.TEMPLATE) == cluster_hash(job):
        return ([Forget(what)] if refusal is not None else []), None
    if now < (at := scheduler.attempt_at(refusal, job)):
        return [], at
    changes = [
        {"op": "replace", "path": "/spec", "value": job["spec"]["cluster"]["spec"]},
        {"op": "add", "path": "/metadata/annotations", "value": {**noted, names.TEMPLATE: cluster_hash(job)}},
    ]
    return [Patch(CLUSTER, observed.key.name, changes, job["metadata"].get("generation", 0))], None


def cluster_hash(job: Json) -> str:
    """Fingerprint of what the job's cluster is made from."""
    return templates.fingerprint(job["spec"]["cluster"]["spec"])


def runner_hash(job: Json) -> str:
    """Fingerprint of what the runner is made from."""
    return templates.fingerprint(job["spec"]["job"])


def outdated(job: Json, pod: Pod) -> bool:
    """Whether the runner was made from what the job said before."""
    return pod.template not in ("", runner_hash(job))


def limit(job: Json) -> int:
    """Further attempts after the first."""
    return int(job["spec"].get("backoffLimit", 0))


def suspended(job: Json) -> bool:
    return bool(job["spec"].get("suspend"))


def belongs(cluster: Json, job: Json) -> bool:
    """Whether this cluster was made for this job, and did not exist before under its name."""
    owners = cluster["metadata"].get("ownerReferences") or ()
    return any(owner["uid"] == job["metadata"]["uid"] for owner in owners)


def counted(old: Json, pod: Pod) -> bool:
    """Whether the status tells of this pod's failure already: it is deleted only then, or a crash would forget it."""
    return old.get("lastFailedPod") == pod.uid


def runner(observed: Observed, job: Json) -> Pod | None:
    """The runner's pod, also while it is being deleted: its name is taken until it is gone."""
    uid = job["metadata"]["uid"]
    pods = [pod for pod in observed.pods if pod.component == names.JOB_RUNNER and pod.owner == uid]
    return pods[0] if pods else None


def _suspend(observed: Observed, job: Json) -> list[Action]:
    """A suspended job has no runner and no cluster: what they computed is given up, as Kubernetes' Jobs do."""
    actions: list[Action] = []
    pod = runner(observed, job)
    if pod is not None and not pod.deleting:
        actions.append(DeletePod(pod, "suspended"))
    return actions + _end_cluster(observed, job, "the job is suspended")


def _after_the_end(observed: Observed, job: Json, now: float) -> tuple[list[Action], float | None]:
    actions = _end_cluster(observed, job, "the job has ended")
    ttl = job["spec"].get("ttlSecondsAfterFinished")
    ended = parse_time((job.get("status") or {}).get("endTime"))
    if ttl is None or ended is None:
        return actions, None
    if now < ended + ttl:
        return actions, ended + ttl
    why = f"ended more than {ttl} s ago"
    return [*actions, Delete(JOB, observed.key.name, job["metadata"]["uid"], why)], None


def _end_cluster(observed: Observed, job: Json, why: str) -> list[Action]:
    cluster = observed.cluster
    if cluster is None or not belongs(cluster, job) or "deletionTimestamp" in cluster["metadata"]:
        return []
    return [Delete(CLUSTER, observed.key.name, cluster["metadata"]["uid"], why)]


def job_cluster(observed: Observed, job: Json) -> Json:
    name = observed.key.name
    labels, annotations = templates.metadata(job, job["spec"]["cluster"], {names.CLUSTER_LABEL: name})
    return {
        "apiVersion": CLUSTER.api_version,
        "kind": CLUSTER.name,
        "metadata": {
            "name": name,
            "namespace": observed.key.namespace,
            "labels": labels,
            "annotations": {**annotations, names.TEMPLATE: cluster_hash(job)},
            "ownerReferences": [templates.owner_reference(JOB, job)],
        },
        "spec": job["spec"]["cluster"]["spec"],
    }


def runner_pod(observed: Observed, job: Json) -> Json:
    """The runner. As in dask-kubernetes the kubelet restarts what fails, until a ``backoffLimit`` makes us count."""
    key = observed.key
    reserved = {
        names.CLUSTER_LABEL: key.name,
        names.COMPONENT_LABEL: names.JOB_RUNNER,
        names.ISTIO: "false",
    }
    labels, annotations = templates.metadata(job, job["spec"]["job"], reserved)
    cluster = observed.cluster or {"metadata": {"name": key.name}, "spec": job["spec"]["cluster"]["spec"]}
    encrypted = tls.secret_name(cluster) is not None
    spec = templates.with_env(
        tls.with_tls(job["spec"]["job"]["spec"], cluster),
        templates.address_variable(key.name, key.namespace, observed.cluster_domain, tls=encrypted),
        templates.token_variable(key.name),
    )
    spec.setdefault("restartPolicy", "Never" if "backoffLimit" in job["spec"] else "OnFailure")
    return {
        "apiVersion": POD.api_version,
        "kind": POD.name,
        "metadata": {
            "name": names.runner_name(key.name),
            "namespace": key.namespace,
            "labels": labels,
            "annotations": {**annotations, names.TEMPLATE: runner_hash(job)},
            "ownerReferences": [templates.owner_reference(JOB, job)],
        },
        "spec": spec,
    }


def job_status(observed: Observed, job: Json, now: float) -> StatusWrite:
    """The job's phase and times. What has ended stays ended."""
    old = dict(job.get("status") or {})
    generation = job["metadata"].get("generation", 0)
    new: Json = {key: old[key] for key in KEPT if key in old} | {"observedGeneration": generation}
    pod, cluster = runner(observed, job), observed.cluster
    events: tuple[Event, ...] = ()
    if old.get("jobStatus") in (SUCCESSFUL, FAILED):
        new["conditions"] = old.get("conditions") or []
        return StatusWrite(JOB, observed.key.name, new)
    if cluster is not None and not belongs(cluster, job):
        message = f"a DaskCluster named {observed.key.name!r} exists and is not this job's: rename one of them"
        state = condition(COMPLETE, False, Reason.CLUSTER_EXISTS, message, generation)
        new["jobStatus"] = "JobCreated"
        events = () if _had(old, Reason.CLUSTER_EXISTS) else (Event(True, Reason.CLUSTER_EXISTS, message),)
    elif suspended(job):
        new["jobStatus"] = "Suspended"
        state = condition(COMPLETE, False, Reason.SUSPENDED, "spec.suspend is true", generation)
    else:
        state = _progress(observed, job, pod, new, now)
        trouble = _trouble(observed, job, pod, now)
        if trouble is not None and new["jobStatus"] not in (SUCCESSFUL, FAILED):
            state = condition(COMPLETE, False, trouble[0], trouble[1], generation)
            events = () if _had(old, trouble[0]) else (Event(True, trouble[0], trouble[1]),)
        if new["jobStatus"] == FAILED:
            events = (Event(True, Reason.POD_FAILED, state["message"]),)
    new["conditions"] = merged(old.get("conditions"), [state], now)
    return StatusWrite(JOB, observed.key.name, new, events)


KEPT = (
    "clusterName",
    "jobRunnerPodName",
    "startTime",
    "endTime",
    "failed",
    "lastFailureTime",
    "lastFailedPod",
    "jobStatus",
)


def _had(old: Json, reason: Reason) -> bool:
    return any(item["reason"] == reason for item in old.get("conditions") or ())


def _trouble(observed: Observed, job: Json, pod: Pod | None, now: float) -> tuple[Reason, str] | None:
    """What keeps the runner or, if nothing does, the cluster from working."""
    for what in (
        f"{POD.name}/{names.runner_name(observed.key.name)}",
        trial.RUNNER,
        f"{CLUSTER.name}/{observed.key.name}",
    ):
        refusal = observed.memory.refusals.get(what)
        if scheduler.holds(refusal, job):
            return status.refusal_trouble(refusal)
    found = None if pod is None or pod.finished else status.pods_trouble([pod], now)
    return found or (None if observed.cluster is None else status.cluster_trouble(observed, now))


def _progress(observed: Observed, job: Json, pod: Pod | None, new: Json, now: float) -> Json:
    """Fill in phase and times from the runner's pod; returns the condition ``Complete``."""
    generation = job["metadata"].get("generation", 0)
    if observed.cluster is None:
        new["jobStatus"] = "JobCreated"
        return condition(COMPLETE, False, Reason.CLUSTER_STARTING, "the cluster is being made", generation)
    new["clusterName"] = observed.key.name
    if pod is None:
        new["jobStatus"] = "ClusterCreated"
        return condition(COMPLETE, False, Reason.RUNNER_STARTING, "the runner is being made", generation)
    new["jobRunnerPodName"] = pod.name
    if pod.phase == "Failed" and not (pod.deleting and outdated(job, pod)):
        why = pod.trouble[1] if pod.trouble else f"pod {pod.name} failed"
        if new.get("lastFailedPod") != pod.uid:
            new |= {
                "failed": int(new.get("failed", 0)) + 1,
                "lastFailedPod": pod.uid,
                "lastFailureTime": timestamp(now),
            }
        if new["failed"] <= limit(job):
            new["jobStatus"] = "ClusterCreated"
            message = f"{why}; attempt {new['failed'] + 1} of {limit(job) + 1} follows"
            return condition(COMPLETE, False, Reason.POD_FAILED, message, generation)
        new |= {"jobStatus": FAILED, "endTime": timestamp(now)}
        return condition(COMPLETE, False, Reason.POD_FAILED, why, generation)
    if pod.phase == "Succeeded":
        new |= {"jobStatus": SUCCESSFUL, "endTime": timestamp(now)}
        new.setdefault("startTime", timestamp(pod.created))
        return condition(COMPLETE, True, Reason.READY, "the runner succeeded", generation)
    if pod.phase == "Running":
        new["jobStatus"] = "Running"
        new.setdefault("startTime", timestamp(now))
        return condition(COMPLETE, False, Reason.RUNNING, "the runner runs", generation)
    new["jobStatus"] = "ClusterCreated"
    return condition(COMPLETE, False, Reason.RUNNER_STARTING, "the runner is starting", generation)
