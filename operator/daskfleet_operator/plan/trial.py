"""Pod templates are shown to the API server before anything is started for them.

The resource definitions keep pod templates whole and know nothing of their fields, so it is the API server that has to
say what is wrong with one: by a dry run of the pod, with admission and all. A cluster of which one half can never run
is not started with the other half, and a scheduler that works is not ended for a new one that is refused. What passed
is remembered by its fingerprint: an attempt costs one request for each template, not for each pod.

A quota is no fault of the template's: it is said when the pods themselves are refused (`plan.replicas`).
"""

from __future__ import annotations

from daskfleet_operator.kube.kinds import POD, Json
from daskfleet_operator.plan import groups, scheduler, templates
from daskfleet_operator.plan.model import Action, Observed, TryTemplate

SCHEDULER, WORKER, RUNNER = "Template/scheduler", "Template/worker", "Template/runner"


def plan_trials(observed: Observed, cluster: Json, now: float) -> tuple[list[Action], bool]:
    """Dry runs that are due, and whether the scheduler, and with it the cluster, may be started or changed."""
    known = observed.deployment
    if known is not None and known.template == scheduler.scheduler_hash(cluster):
        return [], True
    tries = [attempt(observed, cluster, SCHEDULER, _scheduler_pod(observed, cluster))]
    if known is None:
        tries.append(attempt(observed, cluster, WORKER, _worker_pod(observed, cluster)))
    wanted = [trial for trial in tries if not passed(observed, trial)]
    return [trial for trial in wanted if due(observed, trial, cluster, now)], not wanted


def attempt(observed: Observed, owner: Json, what: str, pod: Json) -> TryTemplate:
    """The dry run of a pod, which is never made and has no owner."""
    head = {key: value for key, value in pod["metadata"].items() if key != "ownerReferences"}
    trial = {**pod, "metadata": {**head, "namespace": observed.key.namespace}}
    return TryTemplate(what, templates.fingerprint(trial), trial, owner["metadata"].get("generation", 0))


def passed(observed: Observed, trial: TryTemplate) -> bool:
    """Whether this very template has been shown and taken."""
    return observed.memory.approved.get(trial.what) == trial.fingerprint


def due(observed: Observed, trial: TryTemplate, owner: Json, now: float) -> bool:
    """Whether to try now; what was refused is tried again with growing delays, as what it misses may come."""
    return scheduler.may_attempt(observed.memory.refusals.get(trial.what), owner, now)


def _scheduler_pod(observed: Observed, cluster: Json) -> Json:
    made = scheduler.deployment(observed.key, cluster)
    template = made["spec"]["template"]
    head = {**template["metadata"], "name": made["metadata"]["name"]}
    return {"apiVersion": POD.api_version, "kind": POD.name, "metadata": head, "spec": template["spec"]}


def _worker_pod(observed: Observed, cluster: Json) -> Json:
    group = groups.default_group(observed.key, cluster)
    group["metadata"]["uid"] = ""  # it does not exist yet
    made = groups.worker_pod(observed.key, cluster, group, observed.cluster_domain)
    return groups.named(made, f"{group['metadata']['name']}-worker")
