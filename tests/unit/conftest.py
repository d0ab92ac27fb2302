"""A real cluster: the scheduler here, two worker processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from daskfleet import Client, LocalCluster


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Workers may take longer to start than users would wait; what passes is not to depend on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("daskfleet.deploy.local.TIMEOUT", 240.0)
        yield


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
