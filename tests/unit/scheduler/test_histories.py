"""Ten thousand random histories of a whole cluster (`simulation`), its books checked after every step.

A failure names its seed, which is the whole history: ``simulation.run(random.Random(5755), STEPS)`` runs it again.
"""

from __future__ import annotations

import random

import pytest
import simulation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STEPS = 60
HISTORIES = 10_000
BLOCKS = 20


@pytest.mark.parametrize("block", range(BLOCKS))
def test_histories(block: int) -> None:
    for seed in range(block * HISTORIES // BLOCKS, (block + 1) * HISTORIES // BLOCKS):
        try:
            simulation.run(random.Random(seed), STEPS)
        except Exception as error:
            raise AssertionError(f"history {seed}: {type(error).__name__}: {error}") from error


def test_long_histories() -> None:
    for seed in range(100):
        try:
            simulation.run(random.Random(-1 - seed), 600)
        except Exception as error:
            raise AssertionError(f"long history {-1 - seed}: {type(error).__name__}: {error}") from error


@settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(0, 40))
def test_shrunk(rng: random.Random, steps: int) -> None:
    """The same with hypothesis, which makes what it finds short."""
    simulation.run(rng, steps)
