"""Pods that have a node and do not get started: what keeps the kubelet, only its Events tell.

A volume of a ConfigMap, Secret or claim that is not there, or a network that gives no address, leaves no trace in the
pod's status but "ContainerCreating", which a large image looks like, too. So after a few seconds the warnings of one
such pod of each group are read; all pods of a group wait for the same. Nobody watches events: they are many.
"""

from __future__ import annotations

from daskfleet_operator.plan.model import Action, AskEvents, Observed

PATIENCE = 3.0  # seconds: most pods are started by then
PERIOD = 5.0  # seconds between two questions about one pod


def plan_held_up(observed: Observed, now: float) -> tuple[list[Action], float | None]:
    """Ask about one pod of each group that has waited for long."""
    waiting = [pod for pod in observed.pods if pod.held_up_since is not None and not pod.deleting]
    first = {(pod.component, pod.group): pod for pod in sorted(waiting, key=lambda pod: pod.name, reverse=True)}
    actions: list[Action] = []
    times = []
    for pod in first.values():
        known = observed.memory.held_up.get(pod.uid)
        at = (pod.held_up_since or now) + PATIENCE if known is None else known.asked + PERIOD
        if now >= at:
            actions.append(AskEvents(pod))
            at = now + PERIOD
        times.append(at)
    return actions, min(times, default=None)
