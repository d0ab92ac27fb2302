"""Spans, stories, hardware, and calls by `rpc`."""

from __future__ import annotations

from pathlib import Path

import dask
import dask.array as da
import pytest
from daskfleet import Client, performance_report, rpc, span, wait


def double(x: int) -> int:
    return 2 * x


def fail() -> None:
    raise ValueError("on purpose")


def spans(dask_scheduler=None) -> dict:
    return {
        "/".join(span.name): (span.tasks, span.failed) for span in dask_scheduler.extensions["spans"].spans.values()
    }


def test_span(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with performance_report(str(path)):
        with span("outer") as outer:
            futures = client.map(double, range(5), pure=False)
            failed = client.submit(fail, pure=False)
            with span("inner") as inner:
                computed = da.ones((4, 4), chunks=2).sum().compute()
        assert outer != inner
        with span("with", "retries"), dask.annotate(retries=1):
            annotated = da.zeros(4, chunks=2).persist()
        untold = client.submit(double, 7, pure=False)
        wait([*futures, failed, untold, annotated])
    assert computed == 16
    found = client.run_on_scheduler(spans)
    assert found["outer"] == (5, 1)
    assert found["outer/inner"][0] > 0 and found["with/retries"][0] > 0
    assert set(found) == {"outer", "outer/inner", "with/retries"}
    assert "outer / inner" in path.read_text()


@pytest.mark.asyncio
async def test_asynchronous_span(aclient: Client) -> None:
    with span():
        assert await aclient.submit(double, 4) == 8
    assert await aclient.run_on_scheduler(spans) == {"default": (1, 0)}


def test_story(client: Client) -> None:
    client.story()  # recording begins
    future = client.submit(double, 21, key="told")
    other = client.submit(double, 22, key="not told")
    assert future.result(timeout=60) + other.result(timeout=60) == 86
    records = client.story("told")
    assert records[0][1] == "released" and records[-1][2] == "memory"
    assert {key for key, *_ in records} == {"told"}
    times = [record[3] for record in records]
    assert times == sorted(times)
    assert client.story(future) == records
    assert {key for key, *_ in client.story()} == {"told", "not told"}


@pytest.mark.asyncio
async def test_asynchronous_story(aclient: Client) -> None:
    assert await aclient.story("x") == []
    await aclient.submit(double, 1, key="x")
    assert (await aclient.story("x"))[-1][0] == "x"


def test_benchmark_hardware(client: Client) -> None:
    found = client.benchmark_hardware(seconds=0.1)
    assert set(found) == {"disk", "memory", "network"}
    assert all(rate > 0 for rates in found.values() for rate in rates.values())
    assert all({"1 MiB", "10 MiB"} <= set(rates) for rates in found.values())


@pytest.mark.asyncio
async def test_rpc_and_asynchronous_benchmark_hardware(aclient: Client) -> None:
    assert (await aclient.benchmark_hardware(seconds=0.05))["memory"]["1 MiB"] > 0
    async with rpc(aclient.scheduler_address, security=aclient.security) as scheduler:
        assert (await scheduler.identity())["address"] == aclient.scheduler_address
        with pytest.raises(ValueError, match="register first"):
            await scheduler.spans(0.0)
