"""``idleTimeout``: end a cluster whose scheduler has had nothing to do for so many seconds.

The scheduler says since when; it is asked again at the moment when the time would be up, so a cluster that became busy
in the last second lives on, and a silent scheduler is not taken for an idle one. Only one that has been silent for
`STARTING` at least is: nobody works there, and whoever made the cluster may have died before it was up. The cluster of
a DaskJob is left alone: it ends with its job, whose runner may still be pulling its image.
"""

from __future__ import annotations

from daskfleet_operator.kube.kinds import CLUSTER, Json
from daskfleet_operator.plan import job, status
from daskfleet_operator.plan.model import Action, AskIdle, Delete, Memory, Observed

REGULAR = 15.0  # seconds between questions, at most
FRESH = 1.0  # seconds for which an answer counts as now
STARTING = 900.0  # seconds that a scheduler may take to become ready: images are pulled, nodes are added


def plan_idle(observed: Observed, cluster: Json, now: float) -> tuple[list[Action], float | None]:
    """Ask, wait or end the cluster."""
    timeout = cluster["spec"].get("idleTimeout", 0)
    if not timeout or (observed.job is not None and job.belongs(cluster, observed.job)):
        return [], None
    memory = observed.memory
    due = _next_question(timeout, memory.idle_since, memory.idle_asked, now)
    if memory.idle_asked is None or now >= due:
        return [AskIdle()], now + FRESH
    fresh = now - memory.idle_asked < FRESH
    if fresh and memory.idle_since is not None and now - memory.idle_since >= timeout:
        why = f"idle for {now - memory.idle_since:.0f} s, idleTimeout is {timeout} s"
        return [Delete(CLUSTER, observed.key.name, cluster["metadata"]["uid"], why)], None
    if not status.scheduler_ready(observed) and memory.silent_since is not None:
        silent = now - memory.silent_since
        if fresh and silent >= max(timeout, STARTING):
            why = f"its scheduler has not been ready for {silent:.0f} s, and idleTimeout is {timeout} s"
            return [Delete(CLUSTER, observed.key.name, cluster["metadata"]["uid"], why)], None
    return [], due


def silent_since(memory: Memory, now: float) -> float:
    """Since when the scheduler is known to be silent, when asking it now has shown that it is.

    Silence is counted from the first question again after a pause in the questions: while a cluster is suspended, its
    scheduler is no trouble.
    """
    paused = memory.idle_asked is None or now - memory.idle_asked > 2 * REGULAR
    return now if paused or memory.silent_since is None else memory.silent_since


def _next_question(timeout: float, since: float | None, asked: float | None, now: float) -> float:
    """Asked every quarter of the timeout (at least every 15 s, at most every second), and when the time is up."""
    asked = now if asked is None else asked
    regular = asked + min(REGULAR, max(1.0, timeout / 4))
    return regular if since is None else min(regular, max(since + timeout, asked + FRESH))
