"""Adoption: the worker Deployments of a Helm release, scaled by the operator as if it had made their pods.

A DaskCluster with ``spec.adopt`` makes no scheduler and no pods. Each Deployment named there is marked as adopted (an
annotation, which daskfleet's chart heeds on `helm upgrade`) and gets a DaskWorkerGroup of its size, so that
autoscalers, `kubectl scale` and statuses work as everywhere. Nothing of the release is owned: when the DaskCluster is
gone, the annotations go, and everything else stays as it is then.

A Deployment chooses by itself which pods it ends, and what it ends is lost unless the pod hands it over. So for fewer
workers, the pods that go are marked with the lowest ``controller.kubernetes.io/pod-deletion-cost``, retired, and only
then are the replicas lowered:

    active ──► marked ──► retired ──► (replicas lowered) ──► ended by the Deployment
                              └─────► deleted, and thus replaced, when the Deployment ended others or more are wanted

Pods that are not ready go before all others whatever they cost, so they are the first to be marked. As for pods of our
own, the mark is on the pod and is never taken back (see `plan.replicas`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from daskfleet_operator import names
from daskfleet_operator.kube.kinds import DEPLOYMENT, WORKERGROUP, Json
from daskfleet_operator.kube.objects import Deployment, Pod
from daskfleet_operator.plan import groups
from daskfleet_operator.plan.model import (
    Action,
    Adopt,
    Create,
    DeletePod,
    FindPods,
    Key,
    MarkVictims,
    Observed,
    Patch,
    ReadToken,
    Release,
    Retire,
)
from daskfleet_operator.plan.replicas import RETIREMENT, Pods, sort_pods
from daskfleet_operator.plan.scheduler import may_attempt

LOOK = 1.0  # seconds between two looks for pods that carry no label of ours


def adopting(cluster: Json) -> bool:
    """Whether the cluster is of Deployments that something else made."""
    return "adopt" in cluster["spec"]


def deployments_of(key: Key, cluster: Json) -> dict[str, str | None]:
    """The adopted Deployments and the DaskWorkerGroup of each; of the scheduler's, None."""
    adopt = cluster["spec"]["adopt"]
    found: dict[str, str | None] = {adopt["scheduler"]: None}
    return found | {item["deployment"]: f"{key.name}-{item['name']}" for item in adopt["workerGroups"]}


def plan_adoption(observed: Observed, cluster: Json, now: float) -> tuple[list[Action], float | None]:
    """Take the Deployments over, make their groups, find their pods."""
    actions: list[Action] = []
    wakes: list[float] = []
    key, there = observed.key, {group["metadata"]["name"]: group for group in observed.groups}
    scheduler, refusals = cluster["spec"]["adopt"]["scheduler"], observed.memory.refusals
    sources = (refusals.get(f"Secret/{scheduler}"), refusals.get(f"Deployment/{scheduler}"))
    if observed.memory.token_ensured is None and all(may_attempt(refusal, cluster, now) for refusal in sources):
        actions.append(ReadToken(scheduler))
    for name, group in deployments_of(key, cluster).items():
        known = observed.deployments.get(name)
        if known is None or known.adopted_by != key.name:
            if may_attempt(refusals.get(f"Deployment/{name}"), cluster, now):
                actions.append(Adopt(name, group))
            continue
        missing = not known.labelled and len(_pods(observed, known, group)) < known.replicas
        if missing and (due := observed.memory.looked.get(name, 0.0) + LOOK) > now:
            wakes.append(due)
        elif missing:
            actions.append(FindPods(name, group))
            wakes.append(now + LOOK)
        if group is not None and group not in there:
            actions.append(Create(WORKERGROUP, group, _group(key, cluster, group, known)))
    default = there.get(names.default_group_name(key.name))
    if default is not None and "worker" in cluster["spec"] and (followed := groups.follow(cluster, default)):
        actions.append(followed)
    return actions + groups.plan_ownership(observed, cluster), min(wakes, default=None)


def plan_release(observed: Observed) -> list[Action]:
    """Give back what a DaskCluster that is gone had adopted."""
    return [Release(known.name) for known in observed.deployments.values() if known.adopted_by]


def _pods(observed: Observed, deployment: Deployment, group: str | None) -> list[Pod]:
    wanted = (names.WORKER, group) if group else (names.SCHEDULER, "")
    return [pod for pod in observed.pods if (pod.component, pod.group) == wanted and not pod.deleting]


def _group(key: Key, cluster: Json, name: str, deployment: Deployment) -> Json:
    """The DaskWorkerGroup of an adopted Deployment; its size is the Deployment's, unless the cluster says another."""
    size, noted = deployment.replicas, {}
    if name == names.default_group_name(key.name) and "worker" in cluster["spec"]:
        size = groups.replicas_of(cluster)
        noted = {names.REPLICAS: str(size)}
    return groups.group_of(key, cluster, name, noted, {"adopt": deployment.name, "worker": {"replicas": size}})


@dataclass(frozen=True, slots=True)
class AdoptedState:
    """All that decides over the pods of one adopted Deployment."""

    name: str
    want: int
    deployment: Deployment
    pods: Pods
    retiring: frozenset[str]
    retired: frozenset[str]
    looked: float

    @property
    def alive(self) -> int:
        return len(self.pods.active) + len(self.pods.marked)

    def done(self, pod: Pod, now: float) -> bool:
        """Whether a marked pod may end: it is empty, never held anything, or had its time."""
        expired = now >= (pod.retire_since or 0.0) + RETIREMENT
        return pod.uid in self.retired or pod.phase == "Pending" or expired


def adopted_state(observed: Observed, group: Json) -> AdoptedState | None:
    """The facts about an adopted group; None while its Deployment is not ours to scale."""
    known = observed.deployments.get(group["spec"]["adopt"])
    if known is None or known.adopted_by != observed.key.name:
        return None
    return AdoptedState(
        name=group["metadata"]["name"],
        want=groups.replicas_of(group),
        deployment=known,
        pods=sort_pods(observed.pods, group),
        retiring=observed.memory.retiring,
        retired=observed.memory.retired,
        looked=_looked(observed.memory.looked, known),
    )


def _looked(looked: Mapping[str, float], deployment: Deployment) -> float:
    """When the pods were looked for last. Those with our labels are watched: always just now."""
    return float("inf") if deployment.labelled else looked.get(deployment.name, 0.0)


def plan_adopted(state: AdoptedState, now: float) -> tuple[list[Action], float | None]:
    """Actions for one adopted Deployment, and when to look again."""
    actions = _retire(state, now)
    replicas = Patch(DEPLOYMENT, state.deployment.name, {"spec": {"replicas": state.want}})
    if state.want > state.deployment.replicas:
        return [*actions, replicas], None
    done = [pod for pod in state.pods.marked if state.done(pod, now)]
    if state.want == state.deployment.replicas:
        if state.deployment.settled:
            actions += [DeletePod(pod, "retired, and the Deployment kept it") for pod in done]
        return actions, None
    if now - state.looked > LOOK:  # some of its pods may not be known here
        return [*actions, FindPods(state.deployment.name, state.name)], now + LOOK
    surplus = state.alive - state.want
    if surplus > len(state.pods.marked):
        return [*actions, *_victims(state, surplus - len(state.pods.marked))], None
    if len(done) == len(state.pods.marked):
        actions.append(replicas)
    return actions, None


def _retire(state: AdoptedState, now: float) -> list[Action]:
    waiting = tuple(pod for pod in state.pods.marked if not state.done(pod, now) and pod.uid not in state.retiring)
    if not waiting:
        return []
    deadline = min((pod.retire_since or 0.0) + RETIREMENT for pod in waiting)
    return [Retire(waiting, deadline, adopted=True)]


def _victims(state: AdoptedState, count: int) -> list[Action]:
    """Whom to mark: those whom the Deployment would end first in any case, then whom the scheduler names."""
    newest = sorted(state.pods.active, key=lambda pod: (pod.created, pod.name), reverse=True)
    unready = sorted((pod for pod in newest if not pod.ready), key=lambda pod: pod.phase != "Pending")[:count]
    ready = tuple(pod for pod in newest if pod.ready)
    actions: list[Action] = []
    if unready:
        actions.append(MarkVictims(state.name, len(unready), tuple(unready), adopted=True))
    if count > len(unready):
        actions.append(MarkVictims(state.name, count - len(unready), ready, adopted=True))
    return actions
