"""Looking at what the threads of tasks do."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest
from daskfleet.worker import observing


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Data:
    pass


def test_two_who_look_at_once_keep_nobodys_variables_alive(no_collector: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the workers of one process do."""
    look, together = sys._current_frames, threading.Barrier(2)
    kept: list[weakref.ref[Data]] = []

    def look_together() -> object:
        together.wait(30)
        frames = look()
        together.wait(30)
        return frames

    def sample() -> None:
        data = Data()
        kept.append(weakref.ref(data))
        task = threading.main_thread().ident
        assert task is not None and list(observing._stacks([task])) == [task]

    monkeypatch.setattr(sys, "_current_frames", look_together)
    threads = [threading.Thread(target=sample) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [data() for data in kept] == [None, None]
