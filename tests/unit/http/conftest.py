"""A real scheduler with its HTTP server, workers and a client, all on 127.0.0.1."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from asking import TOKEN, Site
from daskfleet import Client
from daskfleet.scheduler.server import Scheduler
from daskfleet.security import Security
from daskfleet.worker.server import Worker


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    security = Security(token=TOKEN)
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0", security=security) as scheduler:
        yield scheduler


@pytest.fixture
def site(scheduler: Scheduler) -> Site:
    return Site(scheduler.http.port)


AddWorker = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def add_worker(scheduler: Scheduler) -> AsyncIterator[AddWorker]:
    workers: list[Worker] = []

    async def add(name: str, **options: Any) -> Worker:
        workers.append(await Worker(scheduler.address, name=name, nthreads=1, security=scheduler.security, **options))
        return workers[-1]

    yield add
    for worker in workers:
        await worker.close()


@pytest.fixture
async def client(scheduler: Scheduler) -> AsyncIterator[Client]:
    async with Client(scheduler.address, asynchronous=True, security=scheduler.security) as client:
        yield client
