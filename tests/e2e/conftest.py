"""What all tests with real pods have in common."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))  # for operator_bed


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """Clusters may take longer to start than users would wait; what passes is not to depend on the machine."""
    with pytest.MonkeyPatch.context() as patch, dask.config.set({"kubernetes.resource-timeout": 240}):
        patch.setenv("DASK_KUBERNETES__RESOURCE_TIMEOUT", "240")
        yield
