"""The idle timeout: when a scheduler counts as idle, by a clock that the test sets."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from daskfleet import Client, Scheduler, Worker


async def looks(scheduler: Scheduler, n: int) -> None:
    """Wait until the scheduler has looked `n` times more."""
    recent = scheduler.state.totals.recent
    for _ in range(n):
        last = recent[-1] if recent else None
        while not recent or recent[-1] is last:
            await asyncio.sleep(0.01)


async def test_a_client_that_goes_on_submitting_keeps_it_open_however_short_its_tasks(monkeypatch) -> None:
    clock = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + ahead)
    ahead = 0.0
    monkeypatch.setattr("daskfleet.scheduler.server.time", clock)
    async with (
        Scheduler(port=0, host="127.0.0.1", dashboard_address=None, idle_timeout=60) as scheduler,
        Worker(scheduler.address, nthreads=1) as worker,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        for n in range(4):
            assert await client.submit(int, n, pure=False) == n
            if n % 2:
                await client.scatter(n)
            await looks(scheduler, 2)  # at which there is nothing to do
            ahead += 40
        assert scheduler.status == "running"
        ahead += 100
        await asyncio.wait_for(scheduler.finished(), 180)
        await asyncio.wait_for(worker.finished(), 180)


@pytest.mark.parametrize("with_clients", [True, False])
async def test_a_client_that_only_looks_counts_where_that_is_wanted(monkeypatch, with_clients: bool) -> None:
    import dask

    with dask.config.set({"distributed.scheduler.idle-with-clients": with_clients}):
        scheduler = Scheduler(port=0, host="127.0.0.1", dashboard_address=None)
    async with scheduler, Client(scheduler.address, asynchronous=True) as client:
        await client.wait_for_workers(0)
        await looks(scheduler, 3)
        assert (scheduler.idle_since is not None) is with_clients
