"""distributed's formula for the adaptive target, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from daskfleet.scheduler.adaptive import Load, adaptive_target

#: Two workers of two threads with nothing to do and nothing to hold, which could both go.
IDLE = Load(
    occupancy=0,
    waiting=0,
    n_processing=0,
    n_ready=0,
    n_workers=2,
    n_threads=4,
    nbytes=0,
    memory_limit=1000,
    n_to_close=2,
)


@pytest.mark.parametrize(
    ("load", "target"),
    [
        ({}, 0),
        ({"n_to_close": 1}, 1),
        ({"occupancy": 20, "n_processing": 100, "n_to_close": 0}, 2),
        ({"occupancy": 20, "waiting": 60, "n_processing": 50, "n_ready": 50, "n_to_close": 0}, 8),
        ({"occupancy": 20, "waiting": 60, "n_processing": 4, "n_ready": 6, "n_to_close": 0}, 5),  # a thread for each
        ({"nbytes": 600, "n_to_close": 0}, 2),
        ({"nbytes": 601, "n_to_close": 0}, 4),
        ({"n_workers": 0, "n_threads": 0, "memory_limit": 0, "n_ready": 1, "waiting": 0.5, "n_to_close": 0}, 1),
        ({"n_workers": 0, "n_threads": 0, "memory_limit": 0, "n_to_close": 0}, 0),
    ],
)
def test_target(load: dict[str, float], target: int) -> None:
    assert adaptive_target(replace(IDLE, **load), target_duration=5.0) == target
