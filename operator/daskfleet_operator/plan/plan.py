"""The list of policies, in one place: what a pass over one cluster does.

Level-triggered: the same function is right after a creation, an edit, a lost pod, a restart of the operator or an event
that never came, because it only compares what is with what should be. Order does not matter: actions are applied
concurrently, and whatever one of them makes possible is found by the next pass, which follows at once.
"""

from __future__ import annotations

from daskfleet_operator import names
from daskfleet_operator.kube.kinds import Json
from daskfleet_operator.plan import adopt, autoscale, groups, held_up, idle, job, scheduler, status, trial, waves
from daskfleet_operator.plan.model import Action, AwaitScheduler, Backoff, Forget, Observed, Plan, StatusWrite
from daskfleet_operator.plan.replicas import GroupState, plan_replicas, sort_pods


def plan(observed: Observed, now: float) -> Plan:
    """What to do now about one cluster.

    Parameters
    ----------
    observed
        The cluster's objects as the caches show them, and what is remembered of it.
    now
        Seconds since the epoch.
    """
    actions: list[Action] = []
    wakes: list[float | None] = [status.clears_at(observed.pods, now)]
    if observed.job is not None and not _leaving(observed.job):
        job_actions, wake_at = job.plan_job(observed, observed.job, now)
        actions += job_actions
        wakes.append(wake_at)
    cluster = observed.cluster
    if cluster is None:
        actions += adopt.plan_release(observed)
    elif not _leaving(cluster):
        policy = _plan_adopting if adopt.adopting(cluster) else _plan_cluster
        actions += policy(observed, cluster, wakes, now)
    questions, wake_at = held_up.plan_held_up(observed, now)
    actions += questions
    wakes.append(wake_at)
    due = [wake for wake in wakes if wake is not None]
    return Plan(tuple(actions), min(due, default=None))


def statuses(observed: Observed, now: float) -> tuple[StatusWrite, ...]:
    """The status that each of the cluster's custom resources should have."""
    writes: list[StatusWrite] = []
    if observed.cluster is not None and not _leaving(observed.cluster):
        writes.append(status.cluster_status(observed, observed.cluster, now))
    groups_here = [group for group in observed.groups if not _leaving(group) and not _orphan(observed, group)]
    writes += [status.group_status(observed, group, now) for group in groups_here]
    scalers = [scaler for scaler in observed.autoscalers if not _leaving(scaler) and not _orphan(observed, scaler)]
    writes += [autoscale.autoscaler_status(observed, scaler, now) for scaler in scalers]
    if observed.job is not None and not _leaving(observed.job):
        writes.append(job.job_status(observed, observed.job, now))
    return tuple(writes)


def _plan_cluster(observed: Observed, cluster: Json, wakes: list[float | None], now: float) -> list[Action]:
    suspended = scheduler.suspended(cluster)
    actions, may_start = trial.plan_trials(observed, cluster, now)
    may_roll = may_start and (suspended or not _workers_roll(observed, cluster))
    actions += scheduler.plan_scheduler(observed, cluster, may_start, may_roll, now)
    wakes += [scheduler.retry_at(observed, cluster), scheduler.secrets_due_at(observed, cluster, now)]
    actions += groups.plan_groups(observed, cluster, may_start or observed.deployment is not None, now)
    actions += _await_scheduler(observed)
    for group in observed.groups:
        if not _leaving(group):
            state = group_state(observed, cluster, group)
            template = groups.worker_pod(observed.key, cluster, group, observed.cluster_domain)
            group_actions, wake_at = plan_replicas(state, template, now)
            actions += group_actions
            wakes.append(wake_at)
            if state.refusal is not None and state.replicas <= len(state.pods.active):
                actions.append(Forget(f"Pod/{state.name}"))
    if not suspended:
        for policy in (autoscale.plan_autoscalers, idle.plan_idle):
            more, wake_at = policy(observed, cluster, now)
            actions += more
            wakes.append(wake_at)
    return actions


def _plan_adopting(observed: Observed, cluster: Json, wakes: list[float | None], now: float) -> list[Action]:
    actions, wake_at = adopt.plan_adoption(observed, cluster, now)
    actions += _await_scheduler(observed)
    wakes += [scheduler.retry_at(observed, cluster), wake_at]
    for group in observed.groups:
        if "adopt" in group["spec"] and not _leaving(group):
            state = adopt.adopted_state(observed, group)
            more, wake_at = ([], None) if state is None else adopt.plan_adopted(state, now)
            actions += more
            wakes.append(wake_at)
    more, wake_at = autoscale.plan_autoscalers(observed, cluster, now)
    wakes.append(wake_at)
    return actions + more


def _await_scheduler(observed: Observed) -> list[Action]:
    pod = status.scheduler_pod(observed)
    if pod is not None and pod.ip and pod.phase == "Running" and observed.memory.scheduler_answers != pod.uid:
        return [AwaitScheduler(pod)]
    return []


def group_state(observed: Observed, cluster: Json, group: Json) -> GroupState:
    """The facts about one group that `plan.replicas` decides on."""
    name = group["metadata"]["name"]
    return GroupState(
        name=name,
        uid=group["metadata"]["uid"],
        retired=waves.retired(group),
        generation=group["metadata"].get("generation", 0),
        replicas=0 if scheduler.suspended(cluster) else groups.replicas_of(group),
        template=groups.pod_hash(cluster, group),
        pods=sort_pods(observed.pods, group),
        backoff=observed.memory.backoffs.get(name, Backoff()),
        refusal=observed.memory.refusals.get(f"Pod/{name}"),
        retiring=observed.memory.retiring,
        scheduler_ever_ready=status.scheduler_ready(observed) or status.was_running(cluster),
    )


def _workers_roll(observed: Observed, cluster: Json) -> bool:
    """Whether pods of an older template are left: the scheduler is changed after them."""
    templates = {group["metadata"]["name"]: groups.pod_hash(cluster, group) for group in observed.groups}
    # the default group may not have been told yet
    templates[names.default_group_name(observed.key.name)] = groups.pod_hash(cluster, cluster)
    return any(
        pod.component == names.WORKER and not pod.deleting and pod.template != templates.get(pod.group, pod.template)
        for pod in observed.pods
    )


def _leaving(resource: Json) -> bool:
    return "deletionTimestamp" in resource["metadata"]


def _orphan(observed: Observed, resource: Json) -> bool:
    """Whether its owner is gone, so that Kubernetes is about to delete it: nothing to report."""
    return observed.cluster is None and bool(resource["metadata"].get("ownerReferences"))
