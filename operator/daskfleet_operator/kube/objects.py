"""What the caches keep of pods, Services and Deployments: the few facts that plans need, not the kilobytes sent.

A thousand pods as parsed JSON are some 15 MB, and most of it is managedFields and the spec we wrote ourselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache

from daskfleet_operator import names
from daskfleet_operator.kube.kinds import Json

SOON = 0.2  # seconds until Kubernetes has deleted what belonged to a resource that is gone


@lru_cache(maxsize=256)  # a thousand pods that start together have few timestamps: they count whole seconds
def parse_time(text: str | None) -> float | None:
    """Seconds since the epoch of a Kubernetes timestamp."""
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of a cluster.

    ``trouble`` is what keeps it from being ready, as (reason, sentence): a reason of `plan.conditions`. A container
    that crashed and was started again counts as ready to the kubelet at once; it stays in trouble until
    ``trouble_until``, or conditions and alerts would flap with every restart. ``held_up_since`` is since when it has
    had a node and no container that was ever started.
    """

    name: str
    uid: str
    version: int = field(compare=False)
    cluster: str
    component: str
    group: str
    created: float
    deleting: bool
    phase: str
    ready: bool
    ready_since: float | None
    template: str
    retire_since: float | None
    wave: int
    owner: str | None
    ip: str | None
    http_port: int
    trouble: tuple[str, str] | None
    trouble_until: float | None
    held_up_since: float | None

    @property
    def finished(self) -> bool:
        return self.phase in ("Failed", "Succeeded")

    @property
    def staying(self) -> bool:
        """Whether it serves, and goes on to."""
        return self.ready and not self.finished and not self.deleting and self.retire_since is None

    def in_trouble(self, now: float) -> bool:
        """Whether something is wrong with it now."""
        return (
            self.trouble is not None and not self.deleting and (self.trouble_until is None or now < self.trouble_until)
        )

    def serves(self, now: float) -> bool:
        """Whether it is ready. Of a container that crashed and was started again a moment ago nobody knows yet."""
        return self.ready and not self.in_trouble(now)

    @classmethod
    def parse(cls, raw: Json) -> Pod:
        meta, status = raw["metadata"], raw.get("status", {})
        labels, annotations = meta.get("labels", {}), meta.get("annotations") or {}
        conditions = {item["type"]: item for item in status.get("conditions") or ()}
        ready = conditions.get("Ready", {})
        is_ready = ready.get("status") == "True"
        retiring = conditions.get(names.RETIRING, {})
        trouble = _trouble(meta["name"], status, {} if is_ready else conditions)
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            version=version_of(raw),
            cluster=labels.get(names.CLUSTER_LABEL, ""),
            component=labels.get(names.COMPONENT_LABEL, ""),
            group=labels.get(names.GROUP_LABEL, ""),
            created=parse_time(meta.get("creationTimestamp")) or 0.0,
            deleting="deletionTimestamp" in meta,
            phase=status.get("phase", "Pending"),
            ready=is_ready,
            ready_since=parse_time(ready.get("lastTransitionTime")) if is_ready else None,
            template=annotations.get(names.TEMPLATE, ""),
            retire_since=_retire_since(retiring, annotations),
            wave=_number(annotations.get(names.WAVE)),
            owner=controller(raw),
            ip=status.get("podIP"),
            http_port=_http_port(raw),
            trouble=trouble,
            trouble_until=_proven_at(status) if is_ready and trouble is not None else None,
            held_up_since=_held_up_since(status, conditions),
        )


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    version: int = field(compare=False)
    owner: str | None
    template: str
    address: str | None
    http_port: int
    awaits_balancer: bool
    selects: bool

    @classmethod
    def parse(cls, raw: Json) -> Service:
        spec = raw["spec"]
        ports = {port.get("name"): port["port"] for port in spec.get("ports") or ()}
        ingress = raw.get("status", {}).get("loadBalancer", {}).get("ingress")
        return cls(
            name=raw["metadata"]["name"],
            version=version_of(raw),
            owner=controller(raw),
            template=template_of(raw),
            address=spec.get("clusterIP"),
            http_port=ports.get(names.HTTP_PORT_NAME, names.HTTP_PORT),
            awaits_balancer=spec.get("type") == "LoadBalancer" and not ingress,
            selects=bool(spec.get("selector")),
        )


@dataclass(frozen=True, slots=True)
class Deployment:
    """The scheduler's Deployment, or one that is adopted.

    ``refusal`` is why it could not make its pods, as the API server said; ``tls_secret`` is where its pods have their
    certificates from. The rest is known of adopted ones only:
    ``labelled``, whether its pods carry our labels; ``settled``, whether it has as many pods as it was told last.
    """

    name: str
    version: int = field(compare=False)
    owner: str | None
    template: str
    refusal: str | None
    tls_secret: str = ""
    adopted_by: str = ""
    replicas: int = 0
    labelled: bool = False
    settled: bool = False

    @classmethod
    def parse(cls, raw: Json) -> Deployment:
        conditions = {item["type"]: item for item in raw.get("status", {}).get("conditions") or ()}
        failure = conditions.get("ReplicaFailure", {})
        known = cls(
            name=raw["metadata"]["name"],
            version=version_of(raw),
            owner=controller(raw),
            template=template_of(raw),
            refusal=failure.get("message") if failure.get("status") == "True" else None,
            tls_secret=_tls_secret(raw),
        )
        adopted_by = (raw["metadata"].get("annotations") or {}).get(names.ADOPTED_BY, "")
        if not adopted_by:
            return known
        status, replicas = raw.get("status") or {}, raw["spec"].get("replicas", 1)
        seen = status.get("observedGeneration", 0) >= raw["metadata"].get("generation", 0)
        return replace(
            known,
            adopted_by=adopted_by,
            replicas=replicas,
            labelled=_labels_of(raw).get(names.CLUSTER_LABEL) == adopted_by,
            settled=seen and status.get("replicas", 0) == replicas,
        )


@dataclass(frozen=True, slots=True)
class Budget:
    name: str
    version: int = field(compare=False)
    owner: str | None
    template: str

    @classmethod
    def parse(cls, raw: Json) -> Budget:
        return cls(raw["metadata"]["name"], version_of(raw), controller(raw), template_of(raw))


def version_of(raw: Json) -> int:
    """The resourceVersion as the number it is, so that an older answer never replaces a newer event."""
    return int(raw["metadata"].get("resourceVersion") or 0)


def template_of(raw: Json) -> str:
    return str((raw["metadata"].get("annotations") or {}).get(names.TEMPLATE, ""))


def controller(raw: Json) -> str | None:
    """uid of the object that owns and controls this one."""
    for reference in raw["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["uid"])
    return None


def _labels_of(deployment: Json) -> dict[str, str]:
    """Labels of its pods."""
    return deployment["spec"]["template"].get("metadata", {}).get("labels") or {}


def _tls_secret(deployment: Json) -> str:
    for container in deployment["spec"]["template"]["spec"].get("containers") or ():
        for item in container.get("env") or ():
            if item["name"] == names.TLS_AUTHORITY_ENV and "secretKeyRef" in (source := item.get("valueFrom") or {}):
                return str(source["secretKeyRef"]["name"])
    return ""


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _retire_since(condition: Json, annotations: dict[str, str]) -> float | None:
    """Since when the pod is marked to retire: by a condition, or by an annotation on adopted ones."""
    if condition.get("status") == "True":
        return parse_time(condition.get("lastTransitionTime"))
    return parse_time(annotations.get(names.RETIRING_SINCE))


def of_a_predecessor(found: Json, wanted: Json) -> bool:
    """Whether `found` belongs to an earlier owner of the same kind and name: it is about to be deleted with that."""

    def owners(raw: Json) -> dict[tuple[str, str], str]:
        references = raw["metadata"].get("ownerReferences") or ()
        return {(item["kind"], item["name"]): item["uid"] for item in references if item.get("controller")}

    ours = owners(wanted)
    return any(ours.get(who, uid) != uid for who, uid in owners(found).items())


def _http_port(raw: Json) -> int:
    """Where a scheduler's pod answers HTTP: what its Service's port is named after, else Dask's default."""
    for container in raw["spec"]["containers"]:
        for port in container.get("ports") or ():
            if port.get("name") == names.HTTP_PORT_NAME:
                return int(port["containerPort"])
    return names.HTTP_PORT


PROVEN_AFTER = 10.0  # seconds, as long as the kubelet's own first back-off
IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
CONFIG_REASONS = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "StartError",
    "ContainerCannotRun",
}


def _trouble(name: str, status: Json, conditions: dict[str, Json]) -> tuple[str, str] | None:
    if status.get("phase") == "Failed":
        return "PodFailed", f"pod {name} failed: {_why_failed(status)}"
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        if trouble := _container_trouble(name, container):
            return trouble
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return "Unschedulable", f"pod {name} cannot be placed on a node: {scheduled.get('message', '')}"
    return None


def _container_trouble(pod: str, container: Json) -> tuple[str, str] | None:
    waiting = container.get("state", {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message") or waiting.get("reason", "")
    image = container.get("image", "")
    if reason in IMAGE_REASONS:
        return "ImagePullFailed", f"pod {pod}: the image {image!r} cannot be pulled: {message}"
    if reason in CONFIG_REASONS:
        return "ContainerConfigError", f"pod {pod}: the container {container['name']!r} cannot be started: {message}"
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
    if ended and container.get("restartCount", 0) > 0 and (ended.get("exitCode") or not container.get("ready")):
        if ended.get("reason") in CONFIG_REASONS:
            return "ContainerConfigError", (
                f"pod {pod}: the container {container['name']!r} cannot be started: {ended.get('message', '')}"
            )
        how = f"exit code {ended.get('exitCode')}, {ended.get('reason', 'no reason given')}"
        times = container["restartCount"]
        return "CrashLoop", f"pod {pod}: the container {container['name']!r} ended {times} times ({how})"
    return None


def _proven_at(status: Json) -> float:
    """When containers that run after a restart will have held long enough."""
    starts = [
        parse_time(container.get("state", {}).get("running", {}).get("startedAt")) or 0.0
        for container in status.get("containerStatuses") or ()
        if container.get("restartCount", 0) > 0
    ]
    return max(starts, default=0.0) + PROVEN_AFTER


def _held_up_since(status: Json, conditions: dict[str, Json]) -> float | None:
    containers = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    waiting = [(item.get("state", {}).get("waiting") or {}).get("reason") for item in containers]
    if not waiting or any(reason not in ("ContainerCreating", "PodInitializing") for reason in waiting):
        return None
    return parse_time(conditions.get("PodScheduled", {}).get("lastTransitionTime"))


HOLDING_UP = {
    "FailedMount": "VolumeFailed",
    "FailedAttachVolume": "VolumeFailed",
    "FailedMapVolume": "VolumeFailed",
    "FailedCreatePodSandBox": "SandboxFailed",
}


def held_up_by(pod: str, events: Sequence[Json]) -> tuple[str, str] | None:
    """The trouble that the latest of a pod's events tells of."""
    telling = [event for event in events if event.get("reason") in HOLDING_UP]
    if not telling:
        return None
    latest = max(telling, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    return HOLDING_UP[latest["reason"]], f"pod {pod} cannot be started: {latest.get('message', '')}"


def _why_failed(status: Json) -> str:
    if status.get("reason") or status.get("message"):
        return ": ".join(filter(None, (status.get("reason"), status.get("message"))))
    for container in status.get("containerStatuses") or ():
        ended = container.get("state", {}).get("terminated") or {}
        if ended.get("exitCode"):
            said = ended.get("message") or ended.get("reason") or "Error"
            return f"the container {container['name']!r} ended with code {ended['exitCode']} ({said})"
    return "no reason given"
