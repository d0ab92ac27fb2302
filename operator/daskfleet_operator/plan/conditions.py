"""Conditions in the shape of metav1.Condition, with a closed list of reasons.

Reasons are an interface: scripts wait on them and alerts name them. So they are an enum, and a sentence for people goes
into ``message``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

from daskfleet_operator.kube.kinds import Json


class Reason(StrEnum):
    """Every reason a condition of ours can have."""

    # all is well
    READY = "Ready"
    NO_FAILURE = "NoFailure"
    # on the way
    SCHEDULER_STARTING = "SchedulerStarting"
    WORKERS_STARTING = "WorkersStarting"
    SCALING_DOWN = "ScalingDown"
    ROLLING = "Rolling"
    CLUSTER_STARTING = "ClusterStarting"
    RUNNER_STARTING = "RunnerStarting"
    RUNNING = "Running"
    BALANCER_PENDING = "LoadBalancerPending"
    SUSPENDED = "Suspended"
    # trouble that a user can mend
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_CONFIG = "ContainerConfigError"
    VOLUME_FAILED = "VolumeFailed"
    SANDBOX_FAILED = "SandboxFailed"
    CRASH_LOOP = "CrashLoop"
    POD_FAILED = "PodFailed"
    UNSCHEDULABLE = "Unschedulable"
    REFUSED = "Refused"
    QUOTA_EXCEEDED = "QuotaExceeded"
    FORBIDDEN = "Forbidden"
    CLUSTER_NOT_FOUND = "ClusterNotFound"
    CLUSTER_EXISTS = "ClusterExists"
    GROUP_NOT_FOUND = "WorkerGroupNotFound"
    CONFLICTING_AUTOSCALER = "ConflictingAutoscaler"
    SCHEDULER_UNREACHABLE = "SchedulerUnreachable"
    NAME_TAKEN = "NameTaken"
    CERTIFICATES_LOST = "CertificatesLost"
    TOKEN_LOST = "TokenLost"
    DEPLOYMENT_NOT_FOUND = "DeploymentNotFound"


def timestamp(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, status: bool, reason: Reason, message: str, generation: int) -> Json:
    """A condition without its time of transition, which `merged` fills in."""
    return {
        "type": kind,
        "status": "True" if status else "False",
        "reason": reason.value,
        "message": message[:1024],
        "observedGeneration": generation,
    }


def merged(old: list[Json] | None, new: list[Json], now: float) -> list[Json]:
    """The new conditions, with the old time of transition where the status did not change."""
    before = {item["type"]: item for item in old or ()}
    result = []
    for item in new:
        known = before.get(item["type"])
        same = known is not None and known["status"] == item["status"]
        since = known["lastTransitionTime"] if known is not None and same else timestamp(now)
        result.append({**item, "lastTransitionTime": since})
    return result
