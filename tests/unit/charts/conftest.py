"""The tests here render charts, so all of them want helm."""

import pytest


@pytest.fixture(autouse=True)
def _helm(helm: str) -> None:
    pass
