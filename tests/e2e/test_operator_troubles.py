"""What can only be seen once pods are there becomes a condition with a reason and a sentence, and clears when mended.

All clusters are made at once and share a namespace; their containers sleep, as it is not their work that matters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from daskfleet.deploy.kubernetes.spec import DEFAULT_IMAGE
from operator_bed import Json, Namespace, cluster_manifest, eventually

REQUESTS = {"requests": {"cpu": "10m", "memory": "16Mi"}}
SLEEP = ["sleep", "600"]


@dataclass(frozen=True)
class Trouble:
    """A fault, what is said of it, and what mends it: an object that was missing, or else an edit of the template."""

    half: str
    container: Json
    pod: Json
    reason: str
    words: str
    missing: tuple[Json, ...] = ()


def volume(**source: Any) -> tuple[Json, Json]:
    """Of a container, and of its pod."""
    return {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, {"volumes": [{"name": "v", **source}]}


def plain(kind: str, name: str, **content: Any) -> Json:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **content}


CLAIM = {"accessModes": ["ReadWriteOnce"], "storageClassName": "none", "resources": {"requests": {"storage": "1Mi"}}}
TROUBLES = {  # the kubelet tries to mount with growing delays, so what misses a volume is mended first
    "config": Trouble(
        "worker",
        *volume(configMap={"name": "absent-files"}),
        "VolumeFailed",
        '"absent-files" not found',
        (plain("ConfigMap", "absent-files"),),
    ),
    "secret": Trouble(
        "scheduler",
        *volume(secret={"secretName": "absent"}),
        "VolumeFailed",
        '"absent" not found',
        (plain("Secret", "absent"),),
    ),
    "image": Trouble("worker", {"image": "example.invalid/none:1"}, {}, "ImagePullFailed", "example.invalid/none:1"),
    "scheduler-image": Trouble(
        "scheduler", {"image": "example.invalid/none:1"}, {}, "ImagePullFailed", "cannot be pulled"
    ),
    "crash": Trouble("worker", {"command": ["sh", "-c", "exit 7"]}, {}, "CrashLoop", "exit code 7"),
    "scheduler-crash": Trouble("scheduler", {"command": ["sh", "-c", "exit 3"]}, {}, "CrashLoop", "exit code 3"),
    "no-program": Trouble("worker", {"command": ["no-such"]}, {}, "ContainerConfigError", '"no-such"'),
    "selector": Trouble("worker", {}, {"nodeSelector": {"gpu": "many"}}, "Unschedulable", "cannot be placed on a node"),
    "memory": Trouble(
        "worker", {"resources": {"requests": {"memory": "900Ti"}}}, {}, "Unschedulable", "Insufficient memory"
    ),
    "claim": Trouble(
        "worker",
        *volume(persistentVolumeClaim={"claimName": "absent"}),
        "Unschedulable",
        'persistentvolumeclaim "absent" not found',
        (plain("PersistentVolumeClaim", "absent", spec=CLAIM),),
    ),
    "variable": Trouble(
        "worker",
        {"envFrom": [{"configMapRef": {"name": "absent-variables"}}]},
        {},
        "ContainerConfigError",
        '"absent-variables" not found',
        (plain("ConfigMap", "absent-variables"),),
    ),
}


def manifest(name: str, trouble: Trouble | None) -> Json:
    made = cluster_manifest(name, 1, DEFAULT_IMAGE)
    for half in ("worker", "scheduler"):
        spec = made["spec"][half]["spec"]
        spec["terminationGracePeriodSeconds"] = 0
        spec["containers"][0] |= {"command": SLEEP, "resources": REQUESTS}
        if trouble is not None and trouble.half == half:
            spec |= trouble.pod
            spec["containers"][0] |= trouble.container
    return made


@pytest.fixture(scope="module")
def lab(operator_in_cluster: Any, module_namespace: str) -> Iterator[Namespace]:
    """A namespace with a cluster for each trouble, and a volume for the claim that will be made."""
    lab = Namespace(operator_in_cluster, module_namespace)
    reserved = {"claimRef": {"namespace": lab.name, "name": "absent"}, "capacity": {"storage": "1Mi"}}
    spec = {key: CLAIM[key] for key in ("accessModes", "storageClassName")}
    volume = plain("PersistentVolume", lab.name, spec={**spec, **reserved, "hostPath": {"path": "/tmp"}})
    lab.kubectl("apply", "-f", "-", input=json.dumps(volume))
    lab.apply(plain("List", "", items=[manifest(name, trouble) for name, trouble in TROUBLES.items()]))
    yield lab
    lab.kubectl("delete", "persistentvolume", lab.name, "--wait=false")


def resources(name: str) -> list[tuple[str, str]]:
    """Which tell of the trouble: the cluster, and the group whose workers have it."""
    group = [("daskworkergroup", f"{name}-default")] if TROUBLES[name].half == "worker" else []
    return [("dsk", name), *group]


def seconds_until_said(lab: Namespace, kind: str, resource: str) -> float:
    """From the making of the resource, as the API server's whole seconds tell; `pytest -rA` shows it."""
    told, made = (
        datetime.fromisoformat(text)
        for text in (
            lab.condition(kind, resource, "ReplicaFailure")["lastTransitionTime"],
            lab.get(kind, resource)["metadata"]["creationTimestamp"],
        )
    )
    return (told - made).total_seconds()


@pytest.mark.parametrize("name", TROUBLES)
def test_a_trouble_is_said(lab: Namespace, name: str) -> None:
    trouble = TROUBLES[name]

    def said(kind: str, resource: str) -> bool:
        conditions = {item["type"]: item for item in lab.get(kind, resource)["status"]["conditions"]}
        failure = conditions["ReplicaFailure"]
        assert failure["status"] == "True" and failure["reason"] == trouble.reason, failure
        assert trouble.words in failure["message"], failure
        assert conditions["Ready"]["status"] == "False", conditions["Ready"]
        return True

    for kind, resource in resources(name):
        eventually(lambda k=kind, r=resource: said(k, r), f"the condition of {kind} {resource}")
        sys.stderr.write(f"{kind} {resource}: said within {seconds_until_said(lab, kind, resource):.0f} s\n")
        eventually(lambda r=resource: trouble.reason in lab.events(r), f"the event of {kind} {resource}")
    for item in trouble.missing or (manifest(name, None),):
        lab.apply(item)


@pytest.mark.parametrize("name", TROUBLES)
def test_it_clears_when_it_is_mended(lab: Namespace, name: str) -> None:
    """The tests above have mended all."""
    for kind, resource in resources(name):
        eventually(
            lambda k=kind, r=resource: lab.condition(k, r, "ReplicaFailure").get("status") == "False",
            f"no failure of {kind} {resource}",
            60,
        )
