"""A real scheduler with its HTTP server, workers and a client, all on 127.0.0.1."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from daskfleet import Client
from daskfleet.scheduler.server import Scheduler
from daskfleet.security import Security
from daskfleet.worker.server import Worker
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

TOKEN = "a-token-that-nobody-guesses"


@dataclass
class Site:
    """An HTTP server to ask."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def get(self, path: str, **options: Any) -> HTTPResponse:
        return await AsyncHTTPClient().fetch(self.url + path, raise_error=False, **options)

    async def json(self, path: str) -> Any:
        return json.loads((await self.get(path)).body)

    async def post(self, path: str, body: Any, **headers: str) -> HTTPResponse:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        text = body if isinstance(body, str) else json.dumps(body)
        return await self.get(path, method="POST", body=text, headers=headers)


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    security = Security(token=TOKEN)
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0", security=security) as scheduler:
        yield scheduler


@pytest.fixture
def site(scheduler: Scheduler) -> Site:
    return Site(scheduler.http.port)


async def until(condition: Callable[[], Any], timeout: float = 20) -> None:
    """Wait for `condition`, which may be a coroutine function."""
    async with asyncio.timeout(timeout):
        while True:
            value = condition()
            if await value if inspect.isawaitable(value) else value:
                return
            await asyncio.sleep(0.01)


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
