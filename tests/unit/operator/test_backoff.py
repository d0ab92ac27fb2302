"""plan/backoff.py"""

from __future__ import annotations

from daskfleet_operator.plan import backoff
from daskfleet_operator.plan.backoff import Backoff


def test_delays_double_up_to_the_longest() -> None:
    delays = [backoff.delay(Backoff(failures)) for failures in range(12)]
    assert delays[:5] == [0, 1, 2, 4, 8]
    assert delays[-1] == backoff.LONGEST
    assert backoff.delay(Backoff(10_000)) == backoff.LONGEST


def test_failures_of_one_round_count_once() -> None:
    first = backoff.failed(Backoff(), 100.0, "one")
    assert backoff.failed(first, 100.5, "two") == first
    assert backoff.failed(first, 101.0, "three") == Backoff(2, 101.0, "three")


def test_what_holds_long_enough_is_forgiven() -> None:
    state = Backoff(3, 100.0)
    assert not backoff.forgiven(state, 100.0 + backoff.delay(state))
    assert backoff.forgiven(state, 100.0 + 2 * backoff.delay(state) + backoff.FORGIVEN_AFTER)
    assert not backoff.forgiven(Backoff(), 100.0)
