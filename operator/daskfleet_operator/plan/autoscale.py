"""DaskAutoscaler: the size of one worker group by what the scheduler wants.

Up at once, down with thought. The scheduler is asked twice a second for its target, which is for the whole cluster:
what other groups have is taken off. A target above the group's size is followed immediately, clamped to ``maximum``:
pods on their way count as size, so a second answer while they start adds nothing. Down goes only to the highest
target of the last ``scaleDownDelaySeconds`` (a lull between two waves of tasks costs no workers), by at most
``scaleDownPercent`` of the size a step, and not before ``cooldownSeconds`` after the step before. Which workers go is
the scheduler's choice within that group (`plan.replicas`). A group may shrink to nothing and comes back, as the
target needs no worker.
"""

from __future__ import annotations

from daskfleet_operator import names
from daskfleet_operator.kube.kinds import AUTOSCALER, Json
from daskfleet_operator.plan import status
from daskfleet_operator.plan.conditions import Reason, condition, merged
from daskfleet_operator.plan.groups import replicas_of
from daskfleet_operator.plan.model import Action, AskTarget, Event, Observed, Resize, StatusWrite, Target

PERIOD = 0.5  # of the three seconds in which work should bring workers, a pod takes two
DELAY = 15
PERCENT = 25
COOLDOWN = 15
DURATION = "5s"


def plan_autoscalers(observed: Observed, cluster: Json, now: float) -> tuple[list[Action], float | None]:
    """Ask for targets that are due, and resize groups."""
    actions: list[Action] = []
    wakes: list[float] = []
    if not observed.autoscalers or not status.scheduler_ready(observed):
        return actions, None
    for autoscaler in observed.autoscalers:
        group = group_of(observed, autoscaler)
        if "deletionTimestamp" in autoscaler["metadata"] or group is None or rival(observed, autoscaler) is not None:
            continue
        name = autoscaler["metadata"]["name"]
        targets = observed.memory.targets.get(name, ())
        if not targets or now - targets[-1].at >= PERIOD:
            actions.append(AskTarget(name, autoscaler["spec"].get("targetDuration", DURATION)))
            wakes.append(now + PERIOD)
            continue
        wakes.append(targets[-1].at + PERIOD)
        others = sum(replicas_of(other) for other in observed.groups) - replicas_of(group)
        last_down = observed.memory.scaled_down.get(name, 0.0)
        size = desired_size(autoscaler["spec"], replicas_of(group), others, targets, last_down, now)
        if size != replicas_of(group):
            actions.append(Resize(group["metadata"]["name"], name, replicas_of(group), size))
    return actions, min(wakes, default=None)


def desired_size(
    spec: Json, current: int, others: int, targets: tuple[Target, ...], last_down: float, now: float
) -> int:
    """Size for a group of `current` workers, `others` being in other groups of the cluster.

    Parameters
    ----------
    spec
        The autoscaler's.
    targets
        The scheduler's answers, oldest first, over at least ``scaleDownDelaySeconds``.
    last_down
        When the group was last made smaller, in seconds since the epoch.
    """
    minimum, maximum = int(spec["minimum"]), int(spec["maximum"])

    def clamp(workers: int) -> int:
        return max(minimum, min(maximum, workers - others))

    if current < minimum or current > maximum:
        return max(minimum, min(maximum, current))
    latest = clamp(targets[-1].workers)
    if latest >= current:
        return latest
    delay = spec.get("scaleDownDelaySeconds", DELAY)
    if now - targets[0].at < delay or now - last_down < spec.get("cooldownSeconds", COOLDOWN):
        return current
    recent = max((clamp(target.workers) for target in targets if target.at >= now - delay), default=latest)
    step = max(1, current * int(spec.get("scaleDownPercent", PERCENT)) // 100)
    return max(min(recent, current), current - step)


def remembered(targets: tuple[Target, ...], new: Target, delay: float) -> tuple[Target, ...]:
    """The answers worth keeping: those of the last `delay` seconds and the one before."""
    recent = [target for target in targets if target.at >= new.at - delay]
    before = [target for target in targets if target.at < new.at - delay][-1:]
    return (*before, *recent, new)


def group_of(observed: Observed, autoscaler: Json) -> Json | None:
    """The group it is for: ``spec.workerGroup``, by its full or its short name, else the default group."""
    wanted = autoscaler["spec"].get("workerGroup") or names.default_group_name(observed.key.name)
    for group in observed.groups:
        if group["metadata"]["name"] in (wanted, f"{observed.key.name}-{wanted}"):
            return group
    return None


def rival(observed: Observed, autoscaler: Json) -> str | None:
    """The older autoscaler of the same group, which wins."""

    def age(resource: Json) -> tuple[str, str]:
        return resource["metadata"].get("creationTimestamp", ""), resource["metadata"]["name"]

    group = group_of(observed, autoscaler)
    for other in observed.autoscalers:
        if other is not autoscaler and group_of(observed, other) is group and age(other) < age(autoscaler):
            return str(other["metadata"]["name"])
    return None


def autoscaler_status(observed: Observed, autoscaler: Json, now: float) -> StatusWrite:
    """What the autoscaler does or why it does nothing."""
    name, generation = autoscaler["metadata"]["name"], autoscaler["metadata"].get("generation", 0)
    old = autoscaler.get("status") or {}
    group = group_of(observed, autoscaler)
    status_fields: Json = {"observedGeneration": generation}
    if observed.cluster is None:
        missing = f"the DaskCluster {observed.key.name!r} does not exist in the namespace {observed.key.namespace!r}"
        state = condition(status.READY, False, Reason.CLUSTER_NOT_FOUND, missing, generation)
    elif group is None and "workerGroup" not in autoscaler["spec"]:
        message = "the cluster's default worker group is not there yet"
        state = condition(status.READY, False, Reason.CLUSTER_STARTING, message, generation)
    elif group is None:
        missing = f"the cluster has no DaskWorkerGroup named {autoscaler['spec']['workerGroup']!r}"
        state = condition(status.READY, False, Reason.GROUP_NOT_FOUND, missing, generation)
    elif (other := rival(observed, autoscaler)) is not None:
        message = f"the DaskAutoscaler {other!r} is for the same worker group and is older: this one does nothing"
        state = condition(status.READY, False, Reason.CONFLICTING_AUTOSCALER, message, generation)
    elif not status.scheduler_ready(observed):
        message = "the scheduler does not answer yet"
        state = condition(status.READY, False, Reason.SCHEDULER_STARTING, message, generation)
    elif said := observed.memory.silent.get(name):
        message = f"the scheduler does not tell how many workers it wants: {said}{_mending(said)}"
        state = condition(status.READY, False, Reason.SCHEDULER_UNREACHABLE, message, generation)
    else:
        state = condition(status.READY, True, Reason.READY, "follows the scheduler's target", generation)
        status_fields |= {"workerGroup": group["metadata"]["name"], "replicas": replicas_of(group)}
    status_fields["conditions"] = merged(old.get("conditions"), [state], now)
    return StatusWrite(AUTOSCALER, name, status_fields, _news(old, state))


def _news(old: Json, state: Json) -> tuple[Event, ...]:
    """An event for what does not pass by itself, when it is new."""
    known = any(item["reason"] == state["reason"] for item in old.get("conditions") or ())
    lasting = state["reason"] in (Reason.CLUSTER_NOT_FOUND, Reason.GROUP_NOT_FOUND, Reason.CONFLICTING_AUTOSCALER)
    return (Event(True, state["reason"], state["message"]),) if lasting and not known else ()


def _mending(said: str) -> str:
    """What to do about it: upstream's scheduler has these routes only when it is told to."""
    route = "distributed.http.scheduler.api"
    return f" (upstream's engine: add {route!r} to distributed.scheduler.http.routes)" if "404" in said else ""
