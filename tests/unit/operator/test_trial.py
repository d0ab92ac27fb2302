"""plan/trial.py: nothing is started for a pod template that the API server refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from daskfleet_operator.plan import model, status, trial
from daskfleet_operator.plan.model import Memory, Observed
from daskfleet_operator.plan.plan import plan
from operator_builders import NOW, Json, cluster, observed

REFUSED = model.Refusal("Invalid", "spec.containers[0].image: Required value", NOW, 1, 1)


def fresh(**memory: object) -> Observed:
    nothing = {"deployment": None, "service": None, "budget": None, "groups": (), "pods": ()}
    return replace(observed(), **nothing, memory=Memory(token_ensured=NOW, **memory))  # type: ignore[arg-type]


def made(state: Observed, source: Json | None = None, now: float = NOW) -> list[str]:
    state = state if source is None else replace(state, cluster=source)
    return [action.kind.name for action in plan(state, now).actions if isinstance(action, model.Create | model.Replace)]


def shown(state: Observed, now: float = NOW) -> dict[str, str]:
    return {
        action.what: action.fingerprint for action in plan(state, now).actions if isinstance(action, model.TryTemplate)
    }


def test_both_templates_are_shown_before_anything_runs() -> None:
    first = fresh()
    assert set(shown(first)) == {trial.SCHEDULER, trial.WORKER}
    assert made(first) == ["Service", "PodDisruptionBudget"]
    taken = fresh(approved=shown(first))
    assert shown(taken) == {} and made(taken) == ["Deployment", "Service", "PodDisruptionBudget", "DaskWorkerGroup"]


@pytest.mark.parametrize("refused", [trial.SCHEDULER, trial.WORKER])
def test_when_one_is_refused_neither_is_started_and_the_cluster_says_why(refused: str) -> None:
    other = {what: mark for what, mark in shown(fresh()).items() if what != refused}
    state = fresh(approved=other, refusals={refused: REFUSED})
    assert shown(state) == {} and "Deployment" not in made(state) and "DaskWorkerGroup" not in made(state)
    assert set(shown(state, NOW + 1)) == {refused}  # what it misses may have come meanwhile
    told = status.cluster_status(state, cluster(), NOW).status
    ready = {item["type"]: item for item in told["conditions"]}["Ready"]
    assert (told["phase"], ready["reason"], ready["message"]) == ("Error", "Refused", REFUSED.message)


def test_a_cluster_at_rest_is_not_asked_about() -> None:
    assert shown(observed()) == {}


def test_a_scheduler_that_runs_is_not_ended_for_one_that_is_refused() -> None:
    edited = cluster()
    edited["spec"]["scheduler"]["spec"]["containers"][0]["image"] = "new"
    state = replace(observed(), cluster=edited)
    (what,) = shown(state)
    assert what == trial.SCHEDULER and "Deployment" not in made(state)
    taken = replace(state, memory=replace(state.memory, approved=shown(state)))
    assert made(taken) == ["Deployment"]


def test_the_pods_shown_are_those_that_would_be_made_but_for_their_owners() -> None:
    for action in plan(fresh(), NOW).actions:
        if isinstance(action, model.TryTemplate):
            assert "ownerReferences" not in action.pod["metadata"]
            assert action.pod["metadata"]["name"] in ("c-scheduler", "c-default-worker")
            assert action.pod["metadata"]["labels"]["dask.org/cluster-name"] == "c"
