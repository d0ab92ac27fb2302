"""Waiting for the event loop's thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest
from daskfleet import loop


class JustTooLate(Future[int]):
    """Done as soon as somebody has given up waiting for it."""

    def result(self, timeout: float | None = None) -> int:
        self._give_up(timeout)
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._give_up(timeout)
        return super().exception()

    def _give_up(self, timeout: float | None) -> None:
        if timeout is not None and not self.done():
            self.set_result(7)
            raise TimeoutError


def test_what_is_done_just_after_a_slice_of_waiting_is_no_timeout() -> None:
    assert loop.wait(JustTooLate()) == 7
    assert loop.done_within(JustTooLate(), 0.02)


def test_a_coroutines_own_timeout_is_told() -> None:
    async def too_slow() -> Any:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        loop.sync(loop.shared_loop(), too_slow)
