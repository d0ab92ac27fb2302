"""What the tests of the deployers share: a place of their own for what clusters note about themselves."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import eventual


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's clusters are recorded; nothing is left in it when all were closed."""
    home = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    yield home


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait until something is true; the time is a deadline for a hang, not a measurement."""
    return eventual.eventually


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on, on any address."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
