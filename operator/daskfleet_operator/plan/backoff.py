"""How long to wait before the next attempt at something that keeps failing.

The first failure is retried after a second, each further one after twice the time, to at most five minutes. Failures
that come while a wait is on belong to the round that caused it and do not lengthen it: six workers that die together
are one failure, not six. What has held for twice its wait (and ten seconds) is forgiven.
"""

from __future__ import annotations

from daskfleet_operator.plan.model import Backoff

FIRST = 1.0
LONGEST = 300.0
FORGIVEN_AFTER = 10.0


def delay(backoff: Backoff, longest: float = LONGEST) -> float:
    """Seconds to wait after the last failure."""
    if backoff.failures == 0:
        return 0.0
    return min(longest, FIRST * 2.0 ** min(backoff.failures - 1, 32))


def until(backoff: Backoff, longest: float = LONGEST) -> float:
    """When the next attempt may be made."""
    return backoff.last + delay(backoff, longest)


def failed(backoff: Backoff, now: float, message: str = "") -> Backoff:
    """After one more failure."""
    if backoff.failures and now < until(backoff):
        return backoff
    return Backoff(backoff.failures + 1, now, message)


def forgiven(backoff: Backoff, now: float) -> bool:
    """Whether it has held long enough to start from nothing again."""
    return backoff.failures > 0 and now >= backoff.last + 2 * delay(backoff) + FORGIVEN_AFTER
