"""How many worker pods a group has, and which of them go.

The pods of a group are in one of these states, and only `active` ones count against ``replicas``:

    active ──► marked ──► retiring ──► deleting ──► gone
       └─────► finished ─────────────────┘

*marked* carries the intent to retire on the pod itself, or on its group (`plan.waves`), written before anything else
happens. So an operator that dies at any point finds there what it had decided, finishes exactly that, and never chooses
again: retiring first and deleting after, without the mark, is how dask-kubernetes retires other workers on its second
try. A mark is never taken back; if the group grows meanwhile, new pods are made instead, because the scheduler may have
emptied the marked ones.

A template edit rolls: some new pods are made above ``replicas``, and as they become ready out-of-date ones are marked.
What is out of date and not ready serves nobody and goes at once, so that mending a broken image needs no waiting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from daskfleet_operator.kube.kinds import Json
from daskfleet_operator.kube.objects import Pod
from daskfleet_operator.plan import backoff as wait
from daskfleet_operator.plan.model import (
    Action,
    Backoff,
    CreateWorkers,
    DeletePod,
    MarkVictims,
    Refusal,
    Retire,
    RetireAll,
    SetBackoff,
)

SURGE = 0.25  # of the group's size, at least one pod, during a roll
BATCH = 256  # pods created before the plan looks again: an edit meanwhile need not wait for a thousand
LONGEST_REFUSED = 30.0  # seconds between attempts at what the API server refuses: quotas are raised while users wait
RETIREMENT = 60.0  # seconds a scheduler may take to move data; after that the pod's SIGTERM must do


@dataclass(frozen=True, slots=True)
class Pods:
    """The pods of one group by state."""

    active: tuple[Pod, ...]
    marked: tuple[Pod, ...]
    finished: tuple[Pod, ...]

    @property
    def ready(self) -> int:
        return sum(pod.ready for pod in self.active)


def count_ready(pods: Sequence[Pod], now: float) -> int:
    """How many serve."""
    return sum(pod.serves(now) for pod in pods)


def sort_pods(pods: Sequence[Pod], group: Json) -> Pods:
    """The group's pods that are not being deleted already. By owner: an earlier group of that name has left others.
    Those of an adopted Deployment are not the group's, and are told by their label."""
    name, uid, adopted = group["metadata"]["name"], group["metadata"]["uid"], "adopt" in group["spec"]
    mine = [pod for pod in pods if not pod.deleting and (pod.group == name if adopted else pod.owner == uid)]
    return Pods(
        active=tuple(pod for pod in mine if not pod.finished and pod.retire_since is None),
        marked=tuple(pod for pod in mine if not pod.finished and pod.retire_since is not None),
        finished=tuple(pod for pod in mine if pod.finished),
    )


@dataclass(frozen=True, slots=True)
class GroupState:
    """All that decides over the pods of one group."""

    name: str
    uid: str
    generation: int
    retired: int  # see `plan.waves`
    replicas: int
    template: str
    pods: Pods
    backoff: Backoff
    refusal: Refusal | None
    retiring: frozenset[str]
    scheduler_ever_ready: bool


def plan_replicas(state: GroupState, pod: Json, now: float) -> tuple[list[Action], float | None]:
    """Actions for one group, and when to look again."""
    actions: list[Action] = []
    backoff, wake_at = _settle_backoff(state, now)
    if backoff != state.backoff:
        actions.append(SetBackoff(state.name, backoff))
    actions += [DeletePod(gone, "finished") for gone in state.pods.finished]
    actions += _retire(state, now)
    missing, surplus = balance(state, now)
    if missing:
        allowed_at = attempt_at(state, backoff)
        if now >= allowed_at:
            if count := _batch(state, backoff, missing):
                actions.append(CreateWorkers(state.name, count, pod, state.generation))
        else:
            wake_at = allowed_at if wake_at is None else min(wake_at, allowed_at)
    if surplus:
        actions += _victims(state, surplus)
    return actions, wake_at


def balance(state: GroupState, now: float) -> tuple[int, int]:
    """How many pods to make, and how many active ones are too many. Never both, but in a roll."""
    active = state.pods.active
    outdated = [pod for pod in active if pod.template != state.template]
    current = len(active) - len(outdated)
    if not outdated or state.replicas == 0:
        return max(0, state.replicas - len(active)), max(0, len(active) - state.replicas)
    surge = max(1, math.ceil(state.replicas * SURGE))
    missing = min(state.replicas - current, state.replicas + surge - len(active))
    useless = sum(not pod.ready for pod in outdated)
    spare = count_ready(active, now) - state.replicas  # pods that the group can do without
    serving = len(outdated) - useless
    surplus = useless + max(0, min(spare, serving))
    return max(0, missing), max(surplus, len(active) - state.replicas - surge, current - state.replicas)


def _batch(state: GroupState, backoff: Backoff, missing: int) -> int:
    """How many of the missing pods to make now: all, or one that tries out whether what was refused, or died, holds.

    One round of failures may be a node's fault, and all its pods come back together; from the second on a single pod
    goes ahead, and the others follow when it has become ready.
    """
    if state.refusal is not None:
        return 1
    if backoff.failures < 2 or any(pod.ready and pod.created > backoff.last for pod in state.pods.active):
        return min(missing, BATCH)
    return 0 if any(not pod.ready and pod.created >= backoff.last for pod in state.pods.active) else 1


def attempt_at(state: GroupState, backoff: Backoff) -> float:
    """When the next pod may be made, after failures and refusals."""
    at = wait.until(backoff)
    if state.refusal is not None and state.refusal.generation == state.generation:
        at = max(at, wait.until(Backoff(state.refusal.count, state.refusal.last), LONGEST_REFUSED))
    return at


def _settle_backoff(state: GroupState, now: float) -> tuple[Backoff, float | None]:
    backoff = state.backoff
    failed = [pod for pod in state.pods.finished if pod.retire_since is None]
    if failed:
        last = max(failed, key=lambda pod: (pod.created, pod.name))
        return wait.failed(backoff, now, last.trouble[1] if last.trouble else f"pod {last.name} ended"), None
    if backoff.failures and state.pods.ready >= state.replicas:
        if wait.forgiven(backoff, now):
            return Backoff(), None
        return backoff, backoff.last + 2 * wait.delay(backoff) + wait.FORGIVEN_AFTER
    return backoff, None


def _retire(state: GroupState, now: float) -> list[Action]:
    """Go on with what is marked. Pods that never served have nothing to hand over."""
    actions: list[Action] = []
    on_time: list[Pod] = []
    for pod in state.pods.marked:
        if pod.uid in state.retiring:
            continue
        if not (pod.ready and state.scheduler_ever_ready):
            actions.append(DeletePod(pod, "scaled down"))
        elif now >= (pod.retire_since or 0.0) + RETIREMENT:
            actions.append(DeletePod(pod, "retirement timed out"))
        else:
            on_time.append(pod)
    if on_time:
        deadline = min((pod.retire_since or 0.0) + RETIREMENT for pod in on_time)
        actions.append(Retire(tuple(on_time), deadline))
    return actions


def _victims(state: GroupState, surplus: int) -> list[Action]:
    """Whom to mark: the out-of-date, then what never became ready, newest first, then whom the scheduler names. When
    all go, the group is marked."""
    active = state.pods.active
    if state.replicas == 0:
        return [RetireAll(state.name, state.uid, max(state.retired, *(pod.wave for pod in active)), active)]
    newest = sorted(active, key=lambda pod: (pod.created, pod.name), reverse=True)
    preferred = [pod for pod in newest if pod.template != state.template and not pod.ready]
    preferred += [pod for pod in newest if pod.template != state.template and pod.ready]
    preferred += [pod for pod in newest if pod.template == state.template and not pod.ready]
    sure = preferred[:surplus]
    rest = surplus - len(sure)
    actions: list[Action] = []
    if sure:
        actions.append(MarkVictims(state.name, len(sure), tuple(sure)))
    if rest:
        serving = tuple(pod for pod in newest if pod.template == state.template and pod.ready)
        actions.append(MarkVictims(state.name, rest, serving))
    return actions
