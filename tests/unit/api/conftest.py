"""Real clusters: a scheduler here and two worker processes, or scheduler and workers on the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
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
        client.wait_for_workers(2, timeout=30)
        yield client


@pytest_asyncio.fixture
async def aclient() -> AsyncIterator[Client]:
    """An asynchronous client of a cluster in this process: two workers of one thread."""
    async with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, asynchronous=True
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        yield client
