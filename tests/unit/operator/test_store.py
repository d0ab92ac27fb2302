"""store.py: what the caches believe when answers and events cross."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from daskfleet_operator import names, store
from daskfleet_operator.kube.kinds import CLUSTER, POD, WORKERGROUP, Kind
from daskfleet_operator.plan.model import Key
from daskfleet_operator.store import Store
from operator_builders import KEY, Json, cluster, group


def raw_pod(name: str = "p", version: int = 10, uid: str | None = None, **status: Any) -> Json:
    labels = {names.CLUSTER_LABEL: "c", names.COMPONENT_LABEL: "worker", names.GROUP_LABEL: "c-default"}
    return {
        "metadata": {
            "name": name,
            "namespace": "lab",
            "uid": uid or f"{name}-uid",
            "resourceVersion": str(version),
            "labels": labels,
        },
        "spec": {"containers": [{"name": "worker"}]},
        "status": status,
    }


class Woken:
    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.store = Store(self.keys.append, "cluster.local")

    def phase(self) -> str:
        (pod,) = self.store.observed(KEY).pods
        return pod.phase


def versioned(resource: Json, version: int) -> Json:
    return resource | {"metadata": resource["metadata"] | {"resourceVersion": str(version)}}


def test_an_older_event_does_not_undo_a_newer_answer() -> None:
    woken = Woken()
    woken.store.changed(POD, raw_pod(version=12, phase="Running"))
    woken.store.changed(POD, raw_pod(version=11, phase="Pending"))
    assert woken.phase() == "Running"


def test_a_late_answer_does_not_raise_the_dead() -> None:
    woken = Woken()
    woken.store.changed(CLUSTER, versioned(cluster(), 1))
    woken.store.deleted(POD, raw_pod(version=20))
    woken.store.changed(POD, raw_pod(version=10))
    assert woken.store.observed(KEY).pods == ()


def test_the_deletion_of_an_earlier_object_leaves_a_new_one_by_its_name() -> None:
    woken = Woken()
    woken.store.changed(POD, raw_pod(version=30, uid="new"))
    woken.store.deleted(POD, raw_pod(version=25, uid="old"))
    assert len(woken.store.observed(KEY).pods) == 1


def test_echoes_of_status_writes_wake_nobody() -> None:
    woken = Woken()
    woken.store.changed(WORKERGROUP, versioned(group(), 5))
    assert woken.keys == [KEY]
    woken.store.changed(WORKERGROUP, versioned(group() | {"status": {"replicas": 2}}, 6))
    assert woken.keys == [KEY]
    assert woken.store.observed(KEY).groups[0]["status"] == {"replicas": 2}


def test_changes_of_pods_wake_their_cluster() -> None:
    woken = Woken()
    woken.store.changed(POD, raw_pod(version=1, phase="Pending"))
    woken.store.changed(POD, raw_pod(version=2, phase="Pending"))
    woken.store.changed(POD, raw_pod(version=3, phase="Running"))
    assert len(woken.keys) == 2


def test_what_a_new_list_lacks_is_gone() -> None:
    woken = Woken()
    for name in ("a", "b"):
        woken.store.changed(POD, raw_pod(name))
    woken.store.replaced(POD, None, [raw_pod("b")])
    assert [pod.name for pod in woken.store.observed(KEY).pods] == ["b"]


def test_nothing_is_kept_of_a_cluster_that_is_gone() -> None:
    woken = Woken()
    woken.store.changed(CLUSTER, versioned(cluster(), 1))
    woken.store.changed(POD, raw_pod())
    woken.store.deleted(POD, raw_pod(version=11))
    woken.store.deleted(CLUSTER, versioned(cluster(), 12))
    assert woken.store.clusters() == []


def test_a_new_cluster_by_an_old_name_starts_with_nothing_remembered() -> None:
    woken = Woken()
    woken.store.changed(CLUSTER, versioned(cluster(), 1))
    woken.store.remember(KEY, lambda memory: replace(memory, token_ensured=1.0))
    again = versioned(cluster(), 9)
    again["metadata"]["uid"] = "another"
    woken.store.changed(CLUSTER, again)
    assert woken.store.observed(KEY).memory.token_ensured is None


def test_memory_of_a_cluster_keeps_no_secrets_and_no_bulk() -> None:
    woken = Woken()
    bulky = versioned(cluster(), 1)
    bulky["metadata"]["managedFields"] = [{"x": 1}]
    woken.store.changed(CLUSTER, bulky)
    kept = woken.store.observed(KEY).cluster
    assert kept is not None and "managedFields" not in kept["metadata"]


def test_a_groups_record_marks_its_pods_in_whatever_order_they_are_seen() -> None:
    marked = versioned(group(), 5)
    marked["status"] = {"retired": {"wave": 1, "since": "2026-01-01T00:00:00Z"}}
    owner = [{"controller": True, "uid": marked["metadata"]["uid"], "kind": "DaskWorkerGroup", "name": "c-default"}]

    def pod_of_wave(wave: int) -> Json:
        pod = raw_pod(f"wave-{wave}")
        pod["metadata"] |= {"annotations": {names.WAVE: str(wave)}, "ownerReferences": owner}
        return pod

    def marks(*seen: tuple[Kind, Json]) -> dict[str, bool]:
        woken = Woken()
        for kind, item in seen:
            woken.store.changed(kind, item)
        return {pod.name: pod.retire_since is not None for pod in woken.store.observed(KEY).pods}

    pods = [(POD, pod_of_wave(1)), (POD, pod_of_wave(2))]
    expected = {"wave-1": True, "wave-2": False}
    assert marks(*pods, (WORKERGROUP, versioned(group(), 4))) == {"wave-1": False, "wave-2": False}
    assert marks(*pods, (WORKERGROUP, versioned(group(), 4)), (WORKERGROUP, marked)) == expected
    assert marks((WORKERGROUP, marked), *pods) == expected


def test_only_the_latest_of_the_gone_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BURIED", 3)
    woken = Woken()
    for _ in range(2):  # each deletion is told twice, by its answer and by a watch
        for name in "abcd":
            woken.store.deleted(POD, raw_pod(name, version=20))
    for name in "abcd":
        woken.store.changed(POD, raw_pod(name, version=10))
    assert {pod.name for pod in woken.store.observed(KEY).pods} == {"a"}
