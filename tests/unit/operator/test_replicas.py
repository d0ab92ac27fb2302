"""plan/replicas.py: examples for each rule, and what must hold over any history."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from daskfleet_operator.plan import model
from daskfleet_operator.plan.backoff import Backoff
from daskfleet_operator.plan.replicas import RETIREMENT, SURGE, plan_replicas
from hypothesis import given, settings
from operator_builders import NOW, World, pod


def steps(world: World) -> list[model.Action]:
    return plan_replicas(world.state(), world.template(), world.now)[0]


def settle(world: World) -> None:
    """Plan and apply until nothing is left to do, as a reconcile pass does."""
    for _ in range(50):
        actions = steps(world)
        if not actions:
            return
        for action in actions:
            world.apply(action)
    raise AssertionError("the plan never came to rest")


def kubelet(world: World) -> None:
    """What leaves is gone, what is pending runs."""
    world.pods = {p.name: replace(p, ready=True, phase="Running") for p in world.pods.values() if not p.deleting}


def with_pods(count: int, **facts: object) -> World:
    world = World(replicas=count)
    for _ in range(count):
        made = pod(**facts)
        world.pods[made.name] = made
    return world


def test_missing_pods_are_made_all_at_once() -> None:
    (action,) = steps(World(replicas=6))
    assert isinstance(action, model.CreateWorkers) and action.count == 6


def test_a_group_that_is_as_desired_gives_no_action() -> None:
    assert steps(with_pods(3)) == []


def test_a_pod_that_was_taken_away_comes_back() -> None:
    world = with_pods(3)
    name = next(iter(world.pods))
    world.pods[name] = replace(world.pods[name], deleting=True)
    (action,) = steps(world)
    assert isinstance(action, model.CreateWorkers) and action.count == 1


def test_scale_down_marks_before_anything_else() -> None:
    world = with_pods(6)
    world.replicas = 2
    (action,) = steps(world)
    assert isinstance(action, model.MarkVictims)
    assert (action.count, len(action.candidates)) == (4, 6)


def test_scale_down_takes_pods_that_never_served_first_and_asks_nobody() -> None:
    world = with_pods(3)
    starting = pod(ready=False, phase="Pending", created=NOW)
    world.pods[starting.name] = starting
    (action,) = steps(world)
    assert action == model.MarkVictims("c-default", 1, (starting,))


def test_a_group_that_goes_to_none_is_marked_by_one_record() -> None:
    world = with_pods(3)
    pods = tuple(world.state().pods.active)
    world.replicas = 0
    (action,) = steps(world)
    assert isinstance(action, model.RetireAll)
    assert (action.group, action.wave, set(action.pods)) == ("c-default", 1, set(pods))
    world.apply(action)
    (action,) = steps(world)
    assert isinstance(action, model.Retire) and len(action.pods) == 3
    assert {p.retire_since for p in action.pods} == {NOW}


def test_pods_made_after_the_record_stay_and_those_before_it_go() -> None:
    world = with_pods(3)
    before = set(world.pods)
    world.replicas = 0
    world.apply(steps(world)[0])
    world.replicas = 2  # before anything else was done
    settle(world)
    kubelet(world)
    assert len(world.pods) == len(world.active()) == 2 and not before & set(world.pods)
    world.replicas = 0
    settle(world)
    kubelet(world)
    assert not world.pods and world.retired is not None and world.retired["wave"] == 2


def test_a_lost_record_does_not_keep_later_pods_from_going() -> None:
    world = World(replicas=0)
    for wave in (0, 1, 7):  # an operator of before, and what a restored back-up has
        made = pod(wave=wave)
        world.pods[made.name] = made
    settle(world)
    kubelet(world)
    assert not world.pods


def test_marked_pods_are_retired_together_and_no_other_is() -> None:
    world = with_pods(2)
    marked = tuple(pod(retire_since=NOW) for _ in range(3))
    world.pods |= {p.name: p for p in marked}
    (action,) = steps(world)
    assert action == model.Retire(marked, NOW + RETIREMENT)


def test_a_pod_being_retired_is_left_to_its_task() -> None:
    world = with_pods(2)
    marked = pod(retire_since=NOW)
    world.pods[marked.name] = marked
    world.retiring = frozenset({marked.uid})
    assert steps(world) == []


def test_a_marked_pod_that_never_ran_has_nothing_to_hand_over() -> None:
    world = with_pods(2)
    marked = pod(retire_since=NOW, ready=False, phase="Pending")
    world.pods[marked.name] = marked
    assert steps(world) == [model.DeletePod(marked, "scaled down")]


def test_retirement_has_a_deadline() -> None:
    world = with_pods(2)
    marked = pod(retire_since=NOW - RETIREMENT)
    world.pods[marked.name] = marked
    assert steps(world) == [model.DeletePod(marked, "retirement timed out")]


def test_growing_again_does_not_unmark_but_makes_new_pods() -> None:
    world = with_pods(4)
    world.replicas = 2
    world.apply(steps(world)[0])
    world.replicas = 4
    made = [action for action in steps(world) if isinstance(action, model.CreateWorkers)]
    assert [action.count for action in made] == [2]


def test_failed_pods_are_removed_and_replaced_only_after_a_wait() -> None:
    world = with_pods(2)
    name = next(iter(world.pods))
    world.pods[name] = replace(world.pods[name], phase="Failed", ready=False, trouble=("PodFailed", "it failed"))
    actions = steps(world)
    assert [type(action) for action in actions] == [model.SetBackoff, model.DeletePod]
    settle(world)
    assert len(world.active()) == 1
    world.now += 1.0
    settle(world)
    assert len(world.active()) == 2


def test_an_image_that_always_fails_makes_no_storm() -> None:
    """A hundred pods that die at once for an hour: twice a hundred, then one at a time with growing waits."""
    world = World(replicas=100)
    for _ in range(3600):
        settle(world)
        world.pods = {
            p.name: replace(p, phase="Failed", ready=False, trouble=("PodFailed", "x"))
            for p in world.pods.values()
            if not p.deleting
        }
        world.now += 1.0
    assert 200 + 10 <= world.created <= 200 + 30


def test_after_failures_one_pod_goes_ahead_and_the_others_follow_when_it_is_ready() -> None:
    world = World(replicas=5, backoff=Backoff(3, NOW - 60, "x"))
    settle(world)
    assert len(world.active()) == 1
    kubelet(world)
    settle(world)
    assert len(world.active()) == 5


def test_a_quota_is_tried_by_one_pod_with_growing_waits_and_then_filled() -> None:
    world = World(replicas=50, refusing=True)
    attempts = 0
    for _ in range(120):
        for action in steps(world):
            if isinstance(action, model.CreateWorkers):
                attempts += 1
                assert action.count == (50 if attempts == 1 else 1)
            world.apply(action)
        world.now += 1.0
    assert 5 <= attempts <= 12
    world.refusing = False
    world.now += 60.0
    settle(world)
    assert len(world.active()) == 50


def test_an_edit_voids_the_wait_after_a_refusal() -> None:
    world = World(replicas=2, refusal=model.Refusal("Invalid", "bad", NOW, 9, 1))
    assert steps(world) == []
    world.generation = 2
    assert [type(action) for action in steps(world)] == [model.CreateWorkers]


def test_a_roll_keeps_the_ready_count_and_ends_with_new_pods_only() -> None:
    world = with_pods(8)
    world.image = "new"
    world.generation = 2
    for _ in range(40):
        settle(world)
        assert sum(p.ready for p in world.active()) >= 8
        assert len(world.active()) <= 8 + 8 * SURGE
        kubelet(world)
    assert {p.template for p in world.active()} == {world.state().template}
    assert len(world.active()) == 8


def test_a_roll_to_a_broken_template_stops_with_the_old_pods_serving() -> None:
    world = with_pods(4)
    world.image = "broken"
    for _ in range(20):
        settle(world)  # the kubelet never starts the new ones
    assert sum(p.ready for p in world.active()) == 4


def test_a_roll_to_a_template_that_crashes_goes_on_only_when_its_pods_have_held() -> None:
    world = with_pods(4)
    world.image = "crashes"
    settle(world)
    (new,) = [p for p in world.active() if not p.ready]
    crashed = {"trouble": ("CrashLoop", "it fell"), "trouble_until": world.now + 10}
    # Started again a moment ago, to the kubelet it is ready.
    world.pods[new.name] = replace(new, ready=True, phase="Running", **crashed)  # type: ignore[arg-type]

    def old() -> int:
        settle(world)
        return sum(p.template != new.template for p in world.active())

    assert old() == 4
    world.now += 10
    assert old() == 3


def test_mending_a_broken_template_replaces_what_never_ran_at_once() -> None:
    world = World(replicas=4, image="broken")
    settle(world)
    world.image = "mended"
    settle(world)
    kubelet(world)
    settle(world)
    kubelet(world)
    settle(world)
    assert {p.template for p in world.active()} == {world.state().template}
    assert len(world.active()) == 4


def test_backoff_is_forgotten_when_the_group_holds() -> None:
    world = with_pods(2)
    world.backoff = Backoff(3, NOW, "x")
    actions, wake_at = plan_replicas(world.state(), {}, NOW)
    assert actions == [] and wake_at is not None
    assert plan_replicas(world.state(), {}, wake_at)[0] == [model.SetBackoff("c-default", Backoff())]


# --- properties ----------------------------------------------------------------------------------------------------

EVENTS = st.sampled_from(
    ["scale", "edit", "kubelet", "start one", "lose one", "fail one", "crash", "wait", "refuse", "allow", "half"]
)


def happen(world: World, event: str, number: int) -> None:
    """One thing that happens to a cluster between two passes."""
    names = sorted(name for name, p in world.pods.items() if not p.deleting)
    one = names[number % len(names)] if names else None
    match event:
        case "scale":
            world.replicas = number
        case "edit":
            world.image, world.generation = f"image-{number}", world.generation + 1
        case "kubelet":
            kubelet(world)
        case "start one" if one:
            world.pods[one] = replace(world.pods[one], ready=True, phase="Running")
        case "lose one" if one:
            del world.pods[one]
        case "fail one" if one:
            world.pods[one] = replace(world.pods[one], ready=False, phase="Failed", trouble=("PodFailed", "x"))
        case "crash":  # the operator forgets all it may lose
            world.backoff, world.refusal, world.retiring = Backoff(), None, frozenset()
        case "wait":
            world.now += 10.0 * number
        case "refuse":
            world.refusing = True
        case "allow":
            world.refusing = False
        case "half":  # a pass that dies after some of its actions
            actions = steps(world)
            for action in actions[: number % (len(actions) + 1)]:
                world.apply(action)


@settings(max_examples=300)
@given(st.lists(st.tuples(EVENTS, st.integers(0, 12)), max_size=25))
def test_any_history_converges_and_deletes_only_what_was_marked(history: list[tuple[str, int]]) -> None:
    world = World()
    for event, number in history:
        happen(world, event, number)
        before = len(world.active())
        for action in steps(world):
            world.apply(action)
        surge = max(1, -(-world.replicas // 4))
        assert len(world.active()) <= max(before, world.replicas + surge)
    world.refusing = False
    for _ in range(60):  # left alone, with a working kubelet
        world.now += 400.0
        settle(world)
        kubelet(world)
    active = world.active()
    assert len(active) == len(world.pods) == world.replicas
    assert {p.template for p in active} <= {world.state().template}
    assert world.deleted_unmarked == []


@settings(max_examples=200)
@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 3))
def test_without_a_roll_a_group_never_exceeds_its_replicas(have: int, want: int, marked: int) -> None:
    world = with_pods(have)
    world.replicas = want
    for _ in range(marked):
        made = pod(retire_since=NOW)
        world.pods[made.name] = made
    settle(world)
    assert len(world.active()) == want


@pytest.mark.parametrize("want", [0, 2])
@pytest.mark.parametrize("kill_after", range(6))
def test_killed_after_any_action_the_next_operator_retires_nobody_else(kill_after: int, want: int) -> None:
    world = with_pods(6)
    world.replicas = want
    applied = 0
    chosen: set[str] = set()
    while applied < kill_after and (actions := steps(world)):
        world.apply(actions[0])
        applied += 1
        chosen |= {p.name for p in world.state().pods.marked}
    world.backoff, world.retiring = Backoff(), frozenset()  # a new process
    settle(world)
    gone = {p.name for p in world.pods.values() if p.deleting}
    assert len(gone) == 6 - want and chosen <= gone
