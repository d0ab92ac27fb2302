"""A real cluster: the scheduler here, two worker processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from daskfleet import Client, LocalCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two worker processes of one thread each."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A blocking client."""
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=90)
        yield client
