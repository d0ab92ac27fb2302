"""plan/adopt.py: Deployments that something else made, scaled without taking what was not emptied."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis.strategies as st
import pytest
from daskfleet_operator import names
from daskfleet_operator.adoption import _objection
from daskfleet_operator.kube.objects import Deployment, Pod
from daskfleet_operator.plan import adopt, model
from daskfleet_operator.plan.model import Memory
from daskfleet_operator.plan.plan import plan, statuses
from daskfleet_operator.plan.replicas import sort_pods
from hypothesis import given
from operator_builders import KEY, NOW, Json, cluster, group, observed, pod

WORKERS = "c-worker"


def adopting(**spec: Any) -> Json:
    made = cluster()
    adopted = {"scheduler": "c-scheduler", "workerGroups": [{"name": "default", "deployment": WORKERS}]}
    made["spec"] = {"adopt": adopted, "worker": {"replicas": 2}, **spec}
    return made


def adopted_group(replicas: int) -> Json:
    made = copy.deepcopy(group(replicas))
    made["spec"] = {"cluster": KEY.name, "adopt": WORKERS, "worker": {"replicas": replicas}}
    made["metadata"] |= {"ownerReferences": [{"uid": "cluster-uid"}], "annotations": {names.REPLICAS: "2"}}
    return made


def deployment(name: str = WORKERS, **facts: Any) -> Deployment:
    plain = Deployment(name, 1, None, "", None, adopted_by="c", replicas=2, labelled=True, settled=True)
    return replace(plain, **facts)


def release(*workers: Pod, size: int = 2, **facts: Any) -> model.Observed:
    """An adopted release at rest but for what is given."""
    deployments = {"c-scheduler": deployment("c-scheduler", replicas=1), WORKERS: deployment()}
    defaults = {"groups": (adopted_group(size),), "deployments": deployments, "deployment": None, "service": None}
    given: dict[str, Any] = {"cluster": adopting(), **defaults, "budget": None, **facts}
    return replace(observed(pods=workers), **given)


def creations(state: model.Observed) -> list[model.Create]:
    return [action for action in plan(state, NOW).actions if isinstance(action, model.Create)]


def test_nothing_is_made_but_the_group_and_nothing_is_owned() -> None:
    known = {"c-scheduler": deployment("c-scheduler", adopted_by=""), WORKERS: deployment(adopted_by="")}
    new = release(groups=(), deployments=known, memory=Memory())
    actions = plan(new, NOW).actions
    assert {type(action) for action in actions} <= {model.Adopt, model.ReadToken, model.AwaitScheduler}
    assert {action.deployment: action.group for action in actions if isinstance(action, model.Adopt)} == {
        "c-scheduler": None,
        WORKERS: "c-default",
    }
    (made,) = creations(replace(release(), groups=()))
    assert made.body["spec"] == {"cluster": "c", "adopt": WORKERS, "worker": {"replicas": 2}}


def test_at_rest_nothing_is_done() -> None:
    assert plan(release(pod(), pod()), NOW).actions == ()


def test_a_group_without_a_number_given_is_as_large_as_its_deployment() -> None:
    state = release(groups=(), deployments={WORKERS: deployment(replicas=7)})
    del state.cluster["spec"]["worker"]
    (made,) = creations(state)
    assert made.body["spec"]["worker"]["replicas"] == 7


def test_what_is_no_longer_adopted_is_given_back() -> None:
    gone = release(cluster=None, groups=())
    assert {action.deployment for action in plan(gone, NOW).actions} == {"c-scheduler", WORKERS}
    assert all(isinstance(action, model.Release) for action in plan(gone, NOW).actions)


def test_pods_without_our_labels_are_looked_for_and_none_is_ended_before() -> None:
    unlabelled = {"c-scheduler": deployment("c-scheduler"), WORKERS: deployment(labelled=False, replicas=3)}
    state = release(size=1, deployments=unlabelled)
    looks = [action for action in plan(state, NOW).actions if not isinstance(action, model.AwaitScheduler)]
    assert looks and all(action == model.FindPods(WORKERS, "c-default") for action in looks)


def test_status_tells_a_missing_deployment() -> None:
    refusal = model.Refusal("NotFound", "there is no Deployment 'c-worker' to adopt", NOW, 1, 1)
    memory = Memory(token_ensured=NOW, refusals={f"Deployment/{WORKERS}": refusal})
    (write, *_) = statuses(release(deployments={}, memory=memory), NOW)
    assert write.status["phase"] == "Error"
    (failure,) = (item for item in write.status["conditions"] if item["type"] == "ReplicaFailure")
    assert (failure["reason"], failure["message"]) == ("DeploymentNotFound", refusal.message)


@pytest.mark.parametrize(
    ("labels", "owner", "said"),
    [
        ({names.CLUSTER_LABEL: "other"}, None, "is of the cluster 'other'"),
        ({names.GROUP_LABEL: "c-big"}, None, "are of the worker group 'big'"),
        ({}, "DaskCluster", "is not Helm's but a DaskCluster's"),
        ({names.CLUSTER_LABEL: "c", names.GROUP_LABEL: "c-default"}, None, None),
        ({"app": "dask"}, None, None),
    ],
)
def test_only_what_is_free_and_this_clusters_is_adopted(labels: Json, owner: str | None, said: str | None) -> None:
    meta: Json = {"name": WORKERS, "ownerReferences": [{"kind": owner, "controller": True}] if owner else None}
    raw = {"metadata": meta, "spec": {"template": {"metadata": {"labels": labels}}}}
    objection = _objection(KEY, model.Adopt(WORKERS, "c-default"), raw)
    assert (said in (objection or "")) if said else objection is None


# --- scaling, carried out on a Deployment that behaves as Kubernetes' does -----------------------------------------


@dataclass
class Release:
    """An adopted Deployment with its pods, whose controller acts when told to."""

    want: int
    replicas: int
    pods: dict[str, Pod] = field(default_factory=dict)
    cost: set[str] = field(default_factory=set)
    retiring: frozenset[str] = frozenset()
    retired: frozenset[str] = frozenset()  # as the operator remembers it
    empty: frozenset[str] = frozenset()  # as it is
    now: float = NOW
    numbers: Iterator[int] = field(default_factory=itertools.count)
    ended_full: list[Pod] = field(default_factory=list)

    def controller(self) -> None:
        """What the ReplicaSet does: unready pods end first, then those of the lowest cost, then the newest."""
        alive = list(self.pods.values())
        for _ in range(self.replicas - len(alive)):
            began: Json = {"created": self.now, "ready": False, "phase": "Pending", "ip": None}
            new = pod(f"{WORKERS}-a-{next(self.numbers)}", **began)
            self.pods[new.name] = new
        alive.sort(key=lambda p: (p.phase != "Pending", p.ready, p.name not in self.cost, -p.created))
        for victim in alive[: max(0, len(alive) - self.replicas)]:
            self.end(victim)

    def end(self, victim: Pod) -> None:
        if victim.ready and victim.uid not in self.empty:
            self.ended_full.append(victim)
        del self.pods[victim.name]

    def hand_over(self) -> None:
        """The scheduler has moved what the retiring workers held."""
        self.empty |= self.retiring
        self.retired, self.retiring = self.retired | self.retiring, frozenset()

    def restart(self) -> None:
        """Another operator takes over, which remembers nothing."""
        self.retired = self.retiring = frozenset()

    def state(self) -> adopt.AdoptedState:
        settled = len(self.pods) == self.replicas
        return adopt.AdoptedState(
            name="c-default",
            want=self.want,
            deployment=deployment(replicas=self.replicas, settled=settled),
            pods=sort_pods(tuple(self.pods.values()), adopted_group(self.want)),
            retiring=self.retiring,
            retired=self.retired,
            looked=float("inf"),
        )

    def step(self) -> bool:
        actions, wake_at = adopt.plan_adopted(self.state(), self.now)
        for action in actions:
            match action:
                case model.Patch():
                    self.replicas = action.body["spec"]["replicas"]
                case model.MarkVictims():
                    for victim in action.candidates[: action.count]:
                        self.pods[victim.name] = replace(self.pods[victim.name], retire_since=self.now)
                        self.cost.add(victim.name)
                case model.Retire():
                    assert action.adopted and all(known.retire_since is not None for known in action.pods)
                    self.retiring |= {known.uid for known in action.pods}
                case model.DeletePod():
                    assert action.pod.retire_since is not None, "a pod was ended that was not to retire"
                    self.end(self.pods[action.pod.name])
                case _:
                    raise AssertionError(action)
        if not actions and wake_at is not None:
            self.now = wake_at
        return bool(actions) or wake_at is not None


SERVING: Json = {"ready": True, "phase": "Running", "ip": "10.0.0.9"}
EVENT = st.tuples(
    st.sampled_from(["scale", "controller", "step", "hand over", "restart", "ready", "unready"]), st.integers(0, 6)
)


@given(st.integers(0, 6), st.lists(EVENT, max_size=30))
def test_it_arrives_and_no_ready_pod_ends_full(start: int, events: list[tuple[str, int]]) -> None:
    world = Release(start, start)
    world.controller()
    world.pods = {name: replace(known, **SERVING) for name, known in world.pods.items()}
    for what, number in events:
        chosen = list(world.pods.values())[number : number + 1]
        match what:
            case "scale":
                world.want = number
            case "controller":
                world.controller()
            case "step":
                world.step()
            case "hand over":
                world.hand_over()
            case "restart":
                world.restart()
            case "ready" if chosen:
                world.pods[chosen[0].name] = replace(chosen[0], **SERVING)
            case "unready" if chosen and chosen[0].retire_since is None:
                world.pods[chosen[0].name] = replace(chosen[0], ready=False)
    for _ in range(60):
        acted = world.step()
        world.controller()
        world.hand_over()
        world.now += 0.5
        for known in list(world.pods.values()):
            if known.created < world.now - 2:
                world.pods[known.name] = replace(known, **SERVING)
        if not acted and len(world.pods) == world.want and all(p.retire_since is None for p in world.pods.values()):
            break
    assert (world.replicas, len(world.pods)) == (world.want, world.want)
    assert all(known.retire_since is None for known in world.pods.values())
    if all(what != "unready" for what, _ in events):
        assert world.ended_full == []


def test_those_that_are_not_ready_go_first_and_else_the_scheduler_says() -> None:
    slow, *others = pod(ready=False, created=NOW - 50), pod(), pod()
    three = {"c-scheduler": deployment("c-scheduler"), WORKERS: deployment(replicas=3)}
    (mark,) = plan(release(slow, *others, size=2, deployments=three), NOW).actions
    assert isinstance(mark, model.MarkVictims) and mark.candidates == (slow,)
    (mark,) = plan(release(*others, groups=(adopted_group(1),)), NOW).actions
    assert isinstance(mark, model.MarkVictims) and (mark.count, len(mark.candidates)) == (1, 2)
