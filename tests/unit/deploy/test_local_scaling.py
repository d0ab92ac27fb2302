"""Workers of a `LocalCluster` that are on their way when it is scaled."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest
from daskfleet import LocalCluster, Worker

from tests.eventual import until

OPTIONS = {"threads_per_worker": 1, "dashboard_address": None}


class Slow(Worker):
    """A worker that joins and then takes for ever to start."""

    made: ClassVar[list[Slow]] = []

    async def start(self) -> Worker:
        self.made.append(self)
        await super().start()
        return await asyncio.Event().wait() or self


async def test_scaling_that_is_broken_off_leaves_no_worker_that_the_cluster_does_not_know() -> None:
    async with LocalCluster(0, processes=False, asynchronous=True, worker_class=Slow, **OPTIONS) as cluster:
        adaptive = cluster.adapt(minimum=1, maximum=1, interval="20 ms")
        await until(lambda: cluster.scheduler.state.workers)
        assert list(cluster.workers) == ["0"]
        adaptive.stop()
        await until(lambda: not cluster.scheduler.state.workers)
        assert not cluster.workers and [worker.status for worker in Slow.made] == ["closed"]


async def test_a_worker_that_cannot_start_is_not_in_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    options = {"processes": False, "local_directory": str(tmp_path / "file"), **OPTIONS}
    async with LocalCluster(0, asynchronous=True, **options) as cluster:
        with pytest.raises(OSError, match="file"):
            await cluster.scale(1)
        assert not cluster.workers


class Late(Worker):
    """A worker that has to be let in, but for the first."""

    let_in: ClassVar[asyncio.Event]

    async def start(self) -> Worker:
        if self.name != "0":
            await self.let_in.wait()
        return await super().start()


async def test_scaling_down_takes_those_first_that_have_not_come_yet() -> None:
    Late.let_in = asyncio.Event()
    async with LocalCluster(1, processes=False, asynchronous=True, worker_class=Late, **OPTIONS) as cluster:
        up = asyncio.ensure_future(cluster.scale(3))
        await until(lambda: len(cluster.workers) == 3)
        await cluster.scale(1)
        assert list(cluster.workers) == ["0"]
        Late.let_in.set()
        await up
        await until(lambda: [worker.name for worker in cluster.scheduler.state.workers.values()] == ["0"])
        assert list(cluster.workers) == ["0"]


async def test_processes_that_are_not_wanted_any_more_when_they_come_end() -> None:
    async with LocalCluster(0, asynchronous=True, **OPTIONS) as cluster:
        joined: list[object] = []
        cluster.scheduler.on_joined.append(joined.append)
        await cluster.scale(2)
        await cluster.scale(0)
        assert not cluster.workers
        await until(lambda: len(joined) == 2)
        await until(lambda: not cluster.scheduler.state.workers)
