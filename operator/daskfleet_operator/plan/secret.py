"""When to see to the Secrets that a cluster's pods take variables from: once, and again when a pod misses one.

They are not watched, so that the operator needs no right to list Secrets. What was deleted comes back as it was, since
pods that run go on with the content that they began with, and new ones have to understand them.
"""

from __future__ import annotations

from daskfleet_operator.plan.model import Observed

AGAIN = 5.0  # seconds between two attempts for the same Secret: the kubelet looks again every ten


def token_refused(observed: Observed) -> bool:
    """Whether the scheduler that runs began with another token than the Secret has now."""
    return any(pod.uid == observed.memory.token_refused_by and not pod.deleting for pod in observed.pods)


def due_at(observed: Observed, name: str, ensured: float | None) -> float | None:
    """When to see to the Secret, which was last seen to at `ensured`; None if there is no need."""
    if ensured is None:
        return 0.0
    missing = any(pod.trouble and f'"{name}"' in pod.trouble[1] for pod in observed.pods if not pod.deleting)
    return ensured + AGAIN if missing else None
