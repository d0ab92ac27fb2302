"""kube/objects.py: what the kubelet and the API server write about pods, as they wrote it on a real node."""

from __future__ import annotations

from typing import Any

import pytest
from daskfleet_operator import names
from daskfleet_operator.kube.objects import (
    PROVEN_AFTER,
    Deployment,
    Pod,
    Service,
    held_up_by,
    of_a_predecessor,
    parse_time,
)
from operator_builders import Json

UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu.",
        }
    ],
}
WAITING = {"name": "worker", "image": "nowhere/x:1", "restartCount": 0, "ready": False}


def pod(**status: Any) -> Pod:
    raw: Json = {
        "metadata": {"name": "w", "namespace": "lab", "uid": "u", "resourceVersion": "7"},
        "spec": {"containers": [{"name": "worker"}]},
        "status": status,
    }
    return Pod.parse(raw)


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (UNSCHEDULABLE, "Unschedulable", "Insufficient cpu"),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    WAITING | {"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}
                ],
            },
            "ImagePullFailed",
            "the image 'nowhere/x:1' cannot be pulled: not found",
        ),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    WAITING
                    | {
                        "state": {
                            "waiting": {"reason": "CreateContainerConfigError", "message": 'secret "t" not found'}
                        }
                    }
                ],
            },
            "ContainerConfigError",
            'secret "t" not found',
        ),
        (
            {
                "phase": "Running",
                "containerStatuses": [
                    WAITING
                    | {
                        "restartCount": 2,
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}},
                    }
                ],
            },
            "CrashLoop",
            "ended 2 times (exit code 3, Error)",
        ),
        (
            {
                "phase": "Running",
                "containerStatuses": [
                    WAITING
                    | {
                        "restartCount": 2,
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {"terminated": {"exitCode": 128, "reason": "StartError", "message": "no x"}},
                    }
                ],
            },
            "ContainerConfigError",
            "'worker' cannot be started: no x",
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
            "PodFailed",
            "Evicted: The node was low",
        ),
        (
            {"phase": "Failed", "containerStatuses": [WAITING | {"state": {"terminated": {"exitCode": 1}}}]},
            "PodFailed",
            "'worker' ended with code 1",
        ),
    ],
)
def test_trouble_is_one_reason_and_one_sentence(status: Json, reason: str, words: str) -> None:
    trouble = pod(**status).trouble
    assert trouble is not None
    assert trouble[0] == reason
    assert words in trouble[1] and "pod w" in trouble[1]


def test_a_pod_that_just_starts_has_no_trouble() -> None:
    creating = WAITING | {"state": {"waiting": {"reason": "ContainerCreating"}}}
    assert pod(phase="Pending", containerStatuses=[creating]).trouble is None


def test_a_pod_that_is_held_up_says_since_when_and_its_events_by_what() -> None:
    creating = WAITING | {"state": {"waiting": {"reason": "ContainerCreating"}}}
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    since = parse_time("2026-01-01T00:00:00Z")
    assert pod(phase="Pending", conditions=[placed], containerStatuses=[creating]).held_up_since == since
    assert pod(phase="Pending", conditions=[placed], containerStatuses=[WAITING]).held_up_since is None
    assert pod(phase="Pending", conditions=[placed]).held_up_since is None  # the kubelet has not taken it up
    events = [
        {"reason": "FailedMount", "message": 'configmap "old" not found', "lastTimestamp": "2026-01-01T00:00:01Z"},
        {"reason": "FailedMount", "message": 'configmap "new" not found', "lastTimestamp": "2026-01-01T00:00:02Z"},
        {"reason": "DNSConfigForming", "message": "too many", "lastTimestamp": "2026-01-01T00:00:03Z"},
    ]
    expected = ("VolumeFailed", 'pod w cannot be started: configmap "new" not found')
    assert held_up_by("w", events) == expected
    assert held_up_by("w", events[2:]) is None


def test_ready_since() -> None:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    seen = pod(phase="Running", conditions=[ready])
    assert seen.ready and seen.ready_since == parse_time("2026-01-01T00:00:00Z") and seen.version == 7


def test_a_container_that_crashed_and_runs_again_is_in_trouble_for_a_while() -> None:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    container = WAITING | {
        "ready": True,
        "restartCount": 1,
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        "lastState": {"terminated": {"exitCode": 7, "reason": "Error"}},
    }
    seen = pod(phase="Running", conditions=[ready], containerStatuses=[container])
    started = parse_time("2026-01-01T00:00:00Z")
    assert seen.ready and started is not None
    assert seen.trouble is not None and seen.trouble_until == started + PROVEN_AFTER


def test_the_mark_of_a_worker_that_is_to_retire_is_a_condition() -> None:
    mark = {"type": names.RETIRING, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    assert pod(phase="Running", conditions=[mark]).retire_since == parse_time("2026-01-01T00:00:00Z")
    assert pod(phase="Running").retire_since is None


def test_services_say_whether_their_balancer_is_there() -> None:
    raw: Json = {"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}
    assert Service.parse(raw).awaits_balancer
    raw["status"] = {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}
    assert not Service.parse(raw).awaits_balancer


def test_deployments_say_why_their_pod_is_refused() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    raw: Json = {"metadata": {"name": "d"}, "spec": {"template": {"spec": {}}}, "status": {"conditions": [failure]}}
    assert Deployment.parse(raw).refusal == "exceeded quota"


def test_what_an_earlier_resource_of_that_name_has_left() -> None:
    def owned(kind: str, name: str, uid: str) -> Json:
        return {"metadata": {"ownerReferences": [{"kind": kind, "name": name, "uid": uid, "controller": True}]}}

    wanted = owned("DaskCluster", "c", "new")
    assert of_a_predecessor(owned("DaskCluster", "c", "old"), wanted)
    assert not of_a_predecessor(owned("DaskCluster", "c", "new"), wanted)
    assert not of_a_predecessor(owned("StatefulSet", "c", "old"), wanted)
    assert not of_a_predecessor({"metadata": {}}, wanted)
