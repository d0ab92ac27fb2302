"""plan/held_up.py and what the caches make of its answers."""

from __future__ import annotations

from dataclasses import replace

from daskfleet_operator.plan import held_up, model
from operator_builders import NOW, observed, pod


def asked(state: model.Observed, now: float = NOW) -> list[str]:
    return [action.pod.name for action in held_up.plan_held_up(state, now)[0] if isinstance(action, model.AskEvents)]


def test_one_pod_of_each_group_after_a_while_and_then_now_and_then() -> None:
    waiting = [pod(f"w-{n}", held_up_since=NOW, ready=False) for n in range(3)]
    other = pod("big-1", group="c-big", held_up_since=NOW, ready=False)
    state = observed(pods=(*waiting, other, pod("w-ready")))
    assert held_up.plan_held_up(state, NOW) == ([], NOW + held_up.PATIENCE)
    later = NOW + held_up.PATIENCE
    assert sorted(asked(state, later)) == ["big-1", "w-0"]
    known = {item.uid: model.HeldUp(later, None) for item in (waiting[0], other)}
    state = replace(state, memory=replace(state.memory, held_up=known))
    assert held_up.plan_held_up(state, later + 1) == ([], later + held_up.PERIOD)
    assert sorted(asked(state, later + held_up.PERIOD)) == ["big-1", "w-0"]


def test_nobody_waits_nobody_is_asked() -> None:
    assert held_up.plan_held_up(observed(pods=(pod(),)), NOW) == ([], None)
