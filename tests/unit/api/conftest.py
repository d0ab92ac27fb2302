"""A real cluster on the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from daskfleet import Client, LocalCluster


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
