"""``idleTimeout``: end a cluster whose scheduler has had nothing to do for so many seconds.

The scheduler says since when; it is asked again at the moment when the time would be up, so a cluster that became busy
in the last second lives on, and a silent scheduler is never taken for an idle one.
"""

from __future__ import annotations

from daskfleet_operator.kube.kinds import CLUSTER, Json
from daskfleet_operator.plan import status
from daskfleet_operator.plan.model import Action, AskIdle, Delete, Observed

FRESH = 1.0  # seconds for which an answer counts as now


def plan_idle(observed: Observed, cluster: Json, now: float) -> tuple[list[Action], float | None]:
    """Ask, wait or end the cluster."""
    timeout = cluster["spec"].get("idleTimeout", 0)
    if not timeout or not status.scheduler_ready(observed):
        return [], None
    memory = observed.memory
    due = _next_question(timeout, memory.idle_since, memory.idle_asked, now)
    if memory.idle_asked is None or now >= due:
        return [AskIdle()], now + FRESH
    fresh = now - memory.idle_asked < FRESH
    if fresh and memory.idle_since is not None and now - memory.idle_since >= timeout:
        why = f"idle for {now - memory.idle_since:.0f} s, idleTimeout is {timeout} s"
        return [Delete(CLUSTER, observed.key.name, cluster["metadata"]["uid"], why)], None
    return [], due


def _next_question(timeout: float, since: float | None, asked: float | None, now: float) -> float:
    """Asked every quarter of the timeout (at least every 15 s, at most every second), and when the time is up."""
    asked = now if asked is None else asked
    regular = asked + min(15.0, max(1.0, timeout / 4))
    return regular if since is None else min(regular, max(since + timeout, asked + FRESH))
