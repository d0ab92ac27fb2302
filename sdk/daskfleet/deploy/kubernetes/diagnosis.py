"""What keeps a pod or a cluster from starting, in one sentence, and whether waiting can still help. Pure.

`certain` is for what no waiting mends: an image that the registry says does not exist, a command that the image does
not have, a process that has died three times. All else may pass (a registry that is busy, a node that is still being
added, a Secret that is about to be made) and is told only when the deadline has passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_PULLING = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "RegistryUnavailable")
# What container runtimes pass on of a registry's final answers; time-outs, 5xx and refused connections are not here.
_NO_SUCH_IMAGE = (
    "not found",
    "manifest unknown",
    "pull access denied",
    "unauthorized",
    "authorization failed",
    "no basic auth credentials",
    "repository does not exist",
    "invalid reference format",
    "no such host",
    "no match for platform",
)
_NO_SUCH_COMMAND = ("executable file not found", "no such file or directory", "permission denied")
_DEATHS = 2  # restarts after which a crash loop is believed


@dataclass(frozen=True)
class Problem:
    """Why something does not start.

    Attributes
    ----------
    sentence
        For a person; without the pod's log.
    certain
        Waiting will not help.
    pod
        The pod whose log tells more, if one does.
    previous
        Whether that is the log of its previous container.
    container
        The container of the pod, None where it has only one.
    """

    sentence: str
    certain: bool = False
    pod: str | None = None
    previous: bool = False
    container: str | None = None


def pod_problem(pod: dict[str, Any]) -> Problem | None:
    """What keeps `pod` from running, or None when it runs or is merely starting."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for init, kind in ((True, "initContainerStatuses"), (False, "containerStatuses")):
        for container in status.get(kind) or []:
            if problem := _container_problem(name, container, init):
                return problem
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Problem(f"pod {name} is {condition.get('reason')}: {condition.get('message')}")
    if status.get("phase") == "Failed":
        reason = status.get("reason") or "Error"
        return Problem(f"pod {name} failed ({reason}): {status.get('message') or ''}", pod=name)
    return None


def _container_problem(pod: str, container: dict[str, Any], init: bool) -> Problem | None:
    what = f"its initContainer {container['name']}" if init else "its container"
    state = container.get("state") or {}
    waiting, terminated = state.get("waiting") or {}, state.get("terminated") or {}
    reason, message = waiting.get("reason") or "", " ".join(str(waiting.get("message") or "").split())
    if reason in _PULLING:
        certain = reason in ("ErrImageNeverPull", "InvalidImageName") or _mentions(message, _NO_SUCH_IMAGE)
        return Problem(f"pod {pod}: {reason}: image {container.get('image')!r} cannot be pulled: {message}", certain)
    ended = terminated or (container.get("lastState") or {}).get("terminated") or {}
    # one that runs again has recovered, but for an init container, which has not until it ends well
    if reason == "CrashLoopBackOff" or (ended if init else terminated).get("exitCode"):
        how = f"exit code {ended.get('exitCode')}" + (f", {ended['reason']}" if ended.get("reason") else "")
        said = " ".join(str(ended.get("message") or "").split())
        deaths = int(container.get("restartCount") or 0) + (1 if terminated else 0)
        certain = deaths > _DEATHS or _mentions(said, _NO_SUCH_COMMAND)
        sentence = f"pod {pod}: {what} ended with {how}" + (f", {deaths} times" if deaths > 1 else "")
        return Problem(sentence + (f": {said}" if said else ""), certain, pod, not terminated, container.get("name"))
    if reason in ("", "ContainerCreating", "PodInitializing"):
        return None
    return Problem(f"pod {pod}: {reason}: {message}", _mentions(message, _NO_SUCH_COMMAND))


def _mentions(message: str, words: Iterable[str]) -> bool:
    lowered = message.lower()
    return any(word in lowered for word in words)


def resource_problem(resource: dict[str, Any] | None) -> Problem | None:
    """What the operator says about a DaskCluster or DaskWorkerGroup, or None when it says nothing bad."""
    if resource is None:
        return None
    status = resource.get("status") or {}
    what = f"{resource.get('kind', 'DaskCluster')} {resource['metadata']['namespace']}/{resource['metadata']['name']}"
    failures = [c for c in status.get("conditions") or [] if c.get("type") == "ReplicaFailure"]
    said = "; ".join(f"{c.get('reason')}: {c.get('message')}" for c in failures if c.get("status") == "True")
    if status.get("phase") == "Error":
        return Problem(f"{what} is in phase Error" + (f": {said}" if said else ""), certain=True)
    return Problem(f"{what}: {said}") if said else None


def reconciled(resource: dict[str, Any] | None) -> bool:
    """Whether an operator has taken notice of `resource`."""
    return bool(resource and (resource.get("status") or {}).get("phase"))


def phase(pod: dict[str, Any]) -> str:
    """What ``kubectl get pods`` shows: the phase, or the reason that a container waits for."""
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        if reason := ((container.get("state") or {}).get("waiting") or {}).get("reason"):
            return str(reason)
    return str(status.get("phase") or "Pending")


def running(pod: dict[str, Any]) -> bool:
    """Whether the containers of `pod` run and it is not about to go."""
    return (pod.get("status") or {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")


def ready(pod: dict[str, Any]) -> bool:
    """Whether the kubelet calls `pod` ready."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
