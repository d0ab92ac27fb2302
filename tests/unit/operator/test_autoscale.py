"""plan/autoscale.py and plan/idle.py"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
from daskfleet_operator.plan import autoscale, idle, model
from daskfleet_operator.plan.model import Memory, Target
from hypothesis import given
from operator_builders import NOW, Json, cluster, group, observed


def autoscaler(minimum: int = 0, maximum: int = 10, name: str = "a", **spec: Any) -> Json:
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskAutoscaler",
        "metadata": {"name": name, "namespace": "lab", "uid": name, "creationTimestamp": f"2026-01-01T00:00:0{name}Z"},
        "spec": {"cluster": "c", "minimum": minimum, "maximum": maximum, **spec},
    }


def size(current: int, targets: list[int], *, others: int = 0, last_down: float = 0.0, **spec: Any) -> int:
    """Desired size after these answers, one a second, the last one now."""
    first = NOW - len(targets) + 1
    answers = tuple(Target(workers, first + n) for n, workers in enumerate(targets))
    return autoscale.desired_size(autoscaler(**spec)["spec"], current, others, answers, last_down, NOW)


def test_up_at_once_to_the_target() -> None:
    assert size(1, [1, 6]) == 6


def test_up_to_the_maximum_and_down_to_the_minimum() -> None:
    assert size(1, [50]) == 10
    assert size(3, [0] * 60, minimum=3) == 3


def test_a_size_outside_the_bounds_is_brought_inside_without_waiting() -> None:
    assert size(20, [20]) == 10
    assert size(0, [0], minimum=2) == 2


def test_a_lull_costs_no_workers() -> None:
    assert size(8, [8] + [0] * 10) == 8


def test_down_by_a_quarter_when_the_target_has_been_low_for_long() -> None:
    assert size(8, [0] * 20) == 6
    assert size(8, [0] * 20, scaleDownPercent=100) == 0


def test_down_only_to_the_highest_recent_target() -> None:
    assert size(8, [7] + [0] * 14, scaleDownPercent=100) == 8  # not yet the whole delay
    assert size(8, [0] * 5 + [7] + [0] * 14, scaleDownPercent=100) == 7


def test_without_a_delay_the_last_answer_holds_until_the_next() -> None:
    answers = (Target(3, NOW - 0.9), Target(1, NOW - 0.4))
    spec = autoscaler(scaleDownDelaySeconds=0, scaleDownPercent=100)["spec"]
    assert autoscale.desired_size(spec, 3, 0, answers, 0.0, NOW) == 1


def test_steps_down_have_a_cooldown_and_steps_up_none() -> None:
    assert size(8, [0] * 20, last_down=NOW - 5) == 8
    assert size(4, [9] * 20, last_down=NOW - 1) == 9


def test_to_zero_and_back() -> None:
    assert size(1, [0] * 20) == 0
    assert size(0, [0, 3]) == 3


def test_what_other_groups_have_is_taken_off() -> None:
    assert size(2, [6], others=3) == 3


def test_pods_that_are_still_starting_count_as_size() -> None:
    assert size(6, [6]) == 6  # asked again before they have registered


@given(st.integers(0, 20), st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(0, 5), st.integers(5, 15))
def test_always_within_the_bounds(current: int, targets: list[int], minimum: int, maximum: int) -> None:
    assert minimum <= size(current, targets, minimum=minimum, maximum=maximum) <= maximum


def test_only_recent_answers_are_kept() -> None:
    kept: tuple[Target, ...] = ()
    for second in range(100):
        kept = autoscale.remembered(kept, Target(1, float(second)), delay=15)
    assert len(kept) == 17 and kept[-1].at == 99.0


def test_plan_asks_then_patches_the_group() -> None:
    state = observed(autoscalers=(autoscaler(),))
    (ask,), wake_at = autoscale.plan_autoscalers(state, cluster(), NOW)
    assert isinstance(ask, model.AskTarget) and wake_at == NOW + autoscale.PERIOD
    known = replace(state.memory, targets={"a": (Target(5, NOW),)})
    (resize,), _ = autoscale.plan_autoscalers(replace(state, memory=known), cluster(), NOW)
    assert resize == model.Resize("c-default", "a", 2, 5)


def test_a_step_down_is_remembered_so_that_the_next_one_waits() -> None:
    state = observed(cluster(8), groups=(group(8),), autoscalers=(autoscaler(),))
    low = tuple(Target(0, NOW - 20 + second) for second in range(21))
    known = replace(state.memory, targets={"a": low})
    (resize,), _ = autoscale.plan_autoscalers(replace(state, memory=known), cluster(8), NOW)
    assert resize == model.Resize("c-default", "a", 8, 6)
    resting = replace(known, scaled_down={"a": NOW - 1})
    assert autoscale.plan_autoscalers(replace(state, memory=resting), cluster(8), NOW)[0] == []


def test_a_scheduler_that_tells_no_target_is_reported_with_what_to_do() -> None:
    state = observed(autoscalers=(autoscaler(),))
    silent = replace(state.memory, silent={"a": "adaptive_target was answered with 404"})
    write = autoscale.autoscaler_status(replace(state, memory=silent), state.autoscalers[0], NOW)
    (said,) = write.status["conditions"]
    assert said["reason"] == "SchedulerUnreachable" and "distributed.scheduler.http.routes" in said["message"]


def test_each_group_can_have_its_own() -> None:
    big = group(1, name="c-big")
    for wanted in ("big", "c-big"):
        state = observed(groups=(group(), big), autoscalers=(autoscaler(workerGroup=wanted),))
        assert autoscale.group_of(state, state.autoscalers[0]) is big


def test_of_two_for_one_group_the_older_works_and_the_other_says_so() -> None:
    first, second = autoscaler(name="1"), autoscaler(name="2")
    state = observed(autoscalers=(second, first))
    actions, _ = autoscale.plan_autoscalers(state, cluster(), NOW)
    assert actions == [model.AskTarget("1", "5s")]
    told = autoscale.autoscaler_status(state, second, NOW)
    (state_of_second,) = told.status["conditions"]
    assert state_of_second["reason"] == "ConflictingAutoscaler" and "'1'" in state_of_second["message"]
    assert [event.reason for event in told.events] == ["ConflictingAutoscaler"]
    again = replace(state, autoscalers=(second | {"status": told.status}, first))
    assert autoscale.autoscaler_status(again, again.autoscalers[0], NOW).events == ()
    assert autoscale.autoscaler_status(state, first, NOW).events == ()


def test_a_missing_group_is_named() -> None:
    state = observed(autoscalers=(autoscaler(workerGroup="gpu"),))
    (said,) = autoscale.autoscaler_status(state, state.autoscalers[0], NOW).status["conditions"]
    assert said["message"] == "the cluster has no DaskWorkerGroup named 'gpu'"


# --- idleTimeout ---------------------------------------------------------------------------------------------------


def idling(timeout: int, since: float | None, asked: float | None) -> tuple[list[model.Action], float | None]:
    c = cluster(idleTimeout=timeout)
    memory = Memory(token_ensured=NOW, scheduler_answers="c-scheduler-x-uid", idle_since=since, idle_asked=asked)
    return idle.plan_idle(observed(c, memory=memory), c, NOW)


def test_no_timeout_no_question() -> None:
    assert idling(0, None, None) == ([], None)


def test_an_idle_cluster_is_ended_on_a_fresh_answer_only() -> None:
    (action,), _ = idling(60, NOW - 61, NOW)
    assert isinstance(action, model.Delete) and action.kind.name == "DaskCluster"
    (action,), _ = idling(60, NOW - 61, NOW - 5)
    assert isinstance(action, model.AskIdle)


def test_a_busy_cluster_lives() -> None:
    assert idling(60, None, NOW)[0] == []


def test_the_cluster_of_a_job_ends_with_it() -> None:
    job = {"metadata": {"name": "c", "uid": "job-uid"}, "spec": {}}
    c = cluster(idleTimeout=60)
    memory = Memory(token_ensured=NOW, scheduler_answers="c-scheduler-x-uid", idle_since=NOW - 61, idle_asked=NOW)
    seen = replace(observed(c, memory=memory), job=job)
    assert len(idle.plan_idle(seen, c, NOW)[0]) == 1
    c["metadata"]["ownerReferences"] = [{"uid": "job-uid"}]
    assert idle.plan_idle(seen, c, NOW) == ([], None)


def silent(timeout: int, since: float, asked: float = NOW) -> tuple[list[model.Action], float | None]:
    c = cluster(idleTimeout=timeout)
    memory = Memory(token_ensured=NOW, idle_asked=asked, silent_since=since)
    nothing = observed(c, memory=memory)
    return idle.plan_idle(replace(nothing, pods=()), c, NOW)


def test_a_cluster_whose_scheduler_never_came_is_ended_after_its_timeout_but_not_while_images_may_be_pulled() -> None:
    assert silent(60, NOW - idle.STARTING + 1)[0] == []
    (action,), _ = silent(60, NOW - idle.STARTING)
    assert isinstance(action, model.Delete) and action.kind.name == "DaskCluster"
    assert silent(3600, NOW - idle.STARTING)[0] == []
    (action,), _ = silent(3600, NOW - 3600)
    assert isinstance(action, model.Delete)
    (action,), _ = silent(60, NOW - idle.STARTING, asked=NOW - 5 * idle.REGULAR)
    assert isinstance(action, model.AskIdle)


def test_silence_is_counted_anew_after_a_pause_in_the_questions() -> None:
    assert idle.silent_since(Memory(), NOW) == NOW
    assert idle.silent_since(Memory(idle_asked=NOW - idle.REGULAR, silent_since=NOW - 99), NOW) == NOW - 99
    assert idle.silent_since(Memory(idle_asked=NOW - 3 * idle.REGULAR, silent_since=NOW - 99), NOW) == NOW


def test_it_is_asked_again_when_the_time_would_be_up() -> None:
    actions, wake_at = idling(60, NOW - 50, NOW - 1)
    assert actions == [] and wake_at == NOW + 10
