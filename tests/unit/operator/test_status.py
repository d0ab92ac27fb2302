"""plan/status.py and plan/conditions.py: what users are told."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
from daskfleet_operator.kube.objects import Deployment
from daskfleet_operator.plan import model, status
from daskfleet_operator.plan.conditions import Reason, merged
from daskfleet_operator.plan.plan import plan
from operator_builders import NOW, Json, cluster, group, observed, pod, scheduler_pod


def test_every_reason_is_documented() -> None:
    text = (Path(__file__).parents[3] / "operator" / "README.md").read_text()
    assert [reason for reason in Reason if f"`{reason}`" not in text] == []


def conditions(write: model.StatusWrite) -> dict[str, Json]:
    return {item["type"]: item for item in write.status["conditions"]}


def of_group(state: model.Observed) -> model.StatusWrite:
    return status.group_status(state, state.groups[0], NOW)


def of_cluster(state: model.Observed) -> model.StatusWrite:
    assert state.cluster is not None
    return status.cluster_status(state, state.cluster, NOW)


def test_a_group_at_rest() -> None:
    write = of_group(observed(pods=(pod(), pod())))
    assert write.status["replicas"] == write.status["readyReplicas"] == 2
    assert write.status["observedGeneration"] == 1
    assert write.status["selector"] == (
        "dask.org/cluster-name=c,dask.org/component=worker,dask.org/workergroup-name=c-default"
    )
    assert conditions(write)["Ready"]["status"] == "True"
    assert conditions(write)["ReplicaFailure"]["status"] == "False"


def test_counts_are_told_apart_from_what_is_news() -> None:
    starting, more = (of_group(observed(pods=(pod(), *(pod(ready=False) for _ in range(n))))).status for n in (1, 2))
    assert starting != more and status.only_counts(starting, more)
    done = of_group(observed(pods=(pod(), pod()))).status
    assert not status.only_counts(starting, done), "Ready has changed"
    assert not status.only_counts({}, starting)


def test_pods_being_retired_no_longer_count() -> None:
    write = of_group(observed(pods=(pod(), pod(), pod(retire_since=NOW), pod(deleting=True))))
    assert write.status["replicas"] == 2
    assert conditions(write)["Ready"]["reason"] == Reason.SCALING_DOWN


@pytest.mark.parametrize(
    "trouble", [Reason.IMAGE_PULL_FAILED, Reason.UNSCHEDULABLE, Reason.CRASH_LOOP, Reason.CONTAINER_CONFIG]
)
def test_trouble_of_pods_is_said_on_group_and_cluster_with_one_event_each(trouble: Reason) -> None:
    broken = [pod(ready=False, trouble=(trouble.value, f"pod {n}: sentence")) for n in range(3)]
    state = observed(pods=(pod(), *broken))
    for write in (of_group(state), of_cluster(state)):
        failure = conditions(write)["ReplicaFailure"]
        assert (failure["status"], failure["reason"]) == ("True", trouble.value)
        assert failure["message"] == "pod 0: sentence (and 2 more)"
        assert [event.reason for event in write.events] == [trouble.value]


def test_an_event_is_told_once_and_its_end_too() -> None:
    broken = observed(pods=(pod(ready=False, trouble=("CrashLoop", "it fell")),))
    first = of_group(broken)
    told = copy.deepcopy(broken.groups[0]) | {"status": first.status}
    assert of_group(replace(broken, groups=(told,))).events == ()
    mended = replace(broken, groups=(told,), pods=(scheduler_pod(), pod(), pod()))
    assert [event.reason for event in of_group(mended).events] == ["Recovered"]


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("Forbidden", 'pods "x" is forbidden: exceeded quota: q', Reason.QUOTA_EXCEEDED),
        ("Forbidden", "violates PodSecurity", Reason.FORBIDDEN),
        ("Invalid", "spec.containers[0].image: Required value", Reason.REFUSED),
    ],
)
def test_refusals_pass_the_servers_sentence_on(reason: str, message: str, expected: Reason) -> None:
    refusal = model.Refusal(reason, message, NOW, 1, 1)
    state = observed(memory=model.Memory(refusals={"Pod/c-default": refusal}))
    failure = conditions(of_group(state))["ReplicaFailure"]
    assert (failure["reason"], failure["message"]) == (expected.value, message)


def test_a_restarted_container_has_to_hold_before_its_trouble_clears() -> None:
    restarted = pod(trouble=("CrashLoop", "it fell"), trouble_until=NOW + 5)
    state = observed(pods=(pod(), restarted))
    assert conditions(of_group(state))["ReplicaFailure"]["reason"] == Reason.CRASH_LOOP
    assert plan(state, NOW).wake_at == NOW + 5
    later = status.group_status(state, state.groups[0], NOW + 5)
    assert conditions(later)["ReplicaFailure"]["status"] == "False"


@pytest.mark.parametrize("of", ["worker", "scheduler"])
def test_nothing_is_ready_while_its_trouble_stands(of: str) -> None:
    """The kubelet calls a container without a probe ready as it starts, also one that crashes every second."""
    trouble = {"trouble": ("CrashLoop", "it fell"), "trouble_until": NOW + 5}
    ours = {"worker": (pod(**trouble), scheduler_pod()), "scheduler": (pod(), scheduler_pod(**trouble))}[of]
    state = replace(observed(), pods=(pod(), *ours))
    assert state.cluster is not None

    def said(now: float) -> list[tuple[str, str, int]]:
        writes = [status.cluster_status(state, state.cluster, now)]  # type: ignore[arg-type]
        writes += [status.group_status(state, state.groups[0], now)] * (of == "worker")
        ready = [conditions(write)["Ready"] for write in writes]
        return [
            (it["status"], it["reason"], write.status["readyReplicas"]) for it, write in zip(ready, writes, strict=True)
        ]

    count = 1 if of == "worker" else 2
    assert set(said(NOW)) == {("False", "CrashLoop", count)}
    assert set(said(NOW + 5)) == {("True", "Ready", 2)}


def test_a_token_that_the_scheduler_does_not_take_is_said_until_its_pod_goes() -> None:
    state = observed(memory=model.Memory(token_ensured=NOW, token_refused_by="c-scheduler-x-uid"))
    failure = conditions(of_cluster(state))["ReplicaFailure"]
    assert failure["reason"] == Reason.TOKEN_LOST
    assert "'c-token'" in failure["message"] and "kubectl delete pods -l dask.org/cluster-name=c" in failure["message"]
    for pods in ((scheduler_pod(deleting=True),), (replace(scheduler_pod(), uid="another"),)):
        assert conditions(of_cluster(replace(state, pods=pods)))["ReplicaFailure"]["status"] == "False"


def test_a_group_without_its_cluster_says_so() -> None:
    write = of_group(replace(observed(), cluster=None))
    assert conditions(write)["Ready"]["reason"] == Reason.CLUSTER_NOT_FOUND
    assert "does not exist in the namespace 'lab'" in conditions(write)["Ready"]["message"]


def test_phases() -> None:
    c = cluster()

    def phase(**facts: object) -> str:
        return status.phase(observed(c, **facts), c, NOW)  # type: ignore[arg-type]

    starting = {"pods": (), "memory": model.Memory()}
    unready = replace(observed(c), pods=(scheduler_pod(ready=False),), memory=model.Memory())
    assert phase(deployment=None, **starting) == "Created"
    assert status.phase(unready, c, NOW) == "Pending"
    assert phase() == "Running"
    service = observed(c).service
    assert service is not None
    assert phase(service=replace(service, awaits_balancer=True)) == "Pending"
    refused = model.Memory(refusals={"Deployment/c-scheduler": model.Refusal("Invalid", "no", NOW, 1, 1)})
    assert phase(deployment=None, memory=refused) == "Error"
    assert status.phase(observed(c), cluster(suspend=True), NOW) == "Suspended"


def test_an_edit_that_is_refused_is_no_error_of_a_cluster_that_runs_and_no_trouble_after_the_next_edit() -> None:
    memory = model.Memory(
        scheduler_answers="c-scheduler-x-uid",
        refusals={"Template/scheduler": model.Refusal("Invalid", "no such volume", NOW, 1, 2)},
    )
    edited, taken_back = cluster(), cluster()
    edited["metadata"]["generation"], taken_back["metadata"]["generation"] = 2, 3
    edited["spec"]["scheduler"]["spec"]["containers"][0]["image"] = "new"
    workers = (scheduler_pod(), pod(), pod())
    write = of_cluster(replace(observed(memory=memory), cluster=edited, pods=workers))
    assert write.status["phase"] == "Running"
    assert conditions(write)["ReplicaFailure"]["message"] == "no such volume"
    ready = conditions(write)["Ready"]
    assert (
        ready["status"] == "False" and ready["message"] == "still of the older template: the scheduler; no such volume"
    )
    write = of_cluster(replace(observed(memory=memory), cluster=taken_back, pods=workers))
    assert {it["type"] for it in write.status["conditions"] if it["status"] == "True"} == {"SchedulerReady", "Ready"}


def test_a_cluster_is_not_ready_while_an_edit_is_on_its_way() -> None:
    state = observed(pods=(pod(), pod(), pod(template="old"), pod(template="old", retire_since=NOW)))
    for write in (of_group(state), of_cluster(state)):
        ready = conditions(write)["Ready"]
        assert (ready["status"], ready["reason"]) == ("False", "Rolling")
        assert ready["message"] == "still of the older template: 1 of 3 workers"
    last = replace(observed(), pods=(replace(scheduler_pod(), template="old"), pod(), pod()))
    assert conditions(of_cluster(last))["Ready"]["message"] == "still of the older template: the scheduler"


def test_a_scheduler_that_answers_counts_before_the_kubelet_says_so() -> None:
    state = replace(observed(), pods=(scheduler_pod(ready=False),))
    assert status.scheduler_ready(state)
    assert not status.scheduler_ready(replace(state, memory=model.Memory()))


def test_a_deployment_whose_pod_is_refused_is_an_error_with_the_servers_sentence() -> None:
    refused = Deployment("c-scheduler", 1, "cluster-uid", "", 'pods "x" is forbidden: exceeded quota: q')
    state = replace(observed(deployment=refused), pods=())
    assert conditions(of_cluster(state))["SchedulerReady"]["reason"] == Reason.QUOTA_EXCEEDED


def test_a_foreign_deployment_is_named() -> None:
    state = observed(deployment=Deployment("c-scheduler", 1, None, "", None))
    write = of_cluster(state)
    assert write.status["phase"] == "Error"
    assert "does not belong to this DaskCluster" in conditions(write)["ReplicaFailure"]["message"]


def test_transition_time_moves_only_with_the_status() -> None:
    old = [{"type": "Ready", "status": "False", "reason": "A", "lastTransitionTime": "2020-01-01T00:00:00Z"}]
    same = merged(old, [{"type": "Ready", "status": "False", "reason": "B"}], NOW)
    assert same[0]["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    changed = merged(old, [{"type": "Ready", "status": "True", "reason": "B"}], NOW)
    assert changed[0]["lastTransitionTime"] != "2020-01-01T00:00:00Z"


def test_every_condition_has_what_metav1_asks_for() -> None:
    for item in of_cluster(observed(groups=(group(),))).status["conditions"]:
        assert {"type", "status", "reason", "message", "lastTransitionTime", "observedGeneration"} == set(item)
        assert item["reason"] in {reason.value for reason in Reason}
