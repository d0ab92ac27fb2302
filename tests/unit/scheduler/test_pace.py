"""How often workers say how they are."""

import asyncio
import math

from daskfleet import Scheduler, Worker
from daskfleet.protocol.messages import RESTING
from daskfleet.scheduler.extensions import pace
from daskfleet.scheduler.extensions.pace import BEATS, factor


def test_few_beat_as_usual_and_many_no_more_often_together():
    assert factor(1, math.inf) == factor(int(BEATS * RESTING), math.inf) == 1
    for workers in (401, 1000, 5000, 40_000):
        found = factor(workers, math.inf)
        assert BEATS / 2 < workers / (RESTING * found) <= BEATS


def test_a_short_ttl_is_heeded():
    assert factor(40_000, 10.0) == 1
    assert factor(40_000, 100.0) * RESTING * 3 <= 100


def test_workers_are_told(monkeypatch):
    monkeypatch.setattr(pace, "BEATS", 1)

    async def settled(workers, expected):
        async with asyncio.timeout(90):
            while [worker.pace for worker in workers] != expected:
                await asyncio.sleep(0.01)

    async def run():
        async with Scheduler(host="127.0.0.1", port=0, dashboard_address=None) as scheduler:
            workers = []
            for n, expected in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 4), (6, 4)):
                workers.append(await Worker(scheduler.address, nthreads=1))
                await settled(workers, [expected] * n)
            for n, expected in ((5, 4), (4, 4), (3, 4), (2, 1), (1, 1)):
                await workers.pop().close()
                await settled(workers, [expected] * n)
            await workers.pop().close()

    asyncio.run(run())
