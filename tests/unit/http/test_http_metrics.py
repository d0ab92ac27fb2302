"""``/metrics`` of scheduler and worker."""

from __future__ import annotations

import re

from asking import Site
from daskfleet.http.prometheus import Exposition
from daskfleet.scheduler.http.metrics import PREFIXES

from tests.eventual import until

LINE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')


def parse(text: str) -> dict[tuple[str, str], float]:
    """Values by name and labels. Fails on what the format forbids: two series of one name, a name with two types."""
    values: dict[tuple[str, str], float] = {}
    types: dict[str, str] = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types
            types[name] = kind
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            name, labels, value = match.groups()
            assert name in types and (types[name] == "counter") == name.endswith("_total")
            assert (name, labels or "") not in values, line
            values[name, labels or ""] = float(value)
    return values


async def scrape(site: Site) -> dict[tuple[str, str], float]:
    response = await site.get("/metrics")
    assert response.code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return parse(response.body.decode())


def test_labels_are_escaped():
    out = Exposition("x")
    out.counters("n_total", "Help.", [({"name": 'a"b\\c\nd'}, 1)])
    assert str(out).splitlines()[-1] == r'x_n_total{name="a\"b\\c\nd"} 1'


async def test_scheduler(scheduler, site, add_worker, client):
    await add_worker("one")

    def half(x):
        return 1 / x

    futures = client.map(half, [0, 1, 2])
    for future in futures:
        await future.exception()
    gone = client.submit(half, 7)
    await gone
    del gone, future
    await until(lambda: scheduler.state.forgotten)
    values = await scrape(site)
    assert values["dask_scheduler_tasks_forgotten_total", ""] == 1
    assert values["dask_scheduler_clients", ""] == 1
    assert values["dask_scheduler_workers", 'state="connected"'] == 1
    assert values["dask_scheduler_tasks", 'state="memory"'] == 2
    assert values["dask_scheduler_tasks", 'state="erred"'] == 1
    name = "dask_scheduler_prefix_state_totals_total"
    assert values[name, 'task_prefix_name="half",state="memory"'] == 3
    assert values[name, 'task_prefix_name="half",state="erred"'] == 1
    assert values["dask_scheduler_tasks_compute_seconds_total", 'task_prefix_name="half"'] > 0
    assert values["dask_scheduler_desired_workers", ""] >= 0
    assert values["process_resident_memory_bytes", ""] > 1e6
    assert values["process_cpu_seconds_total", ""] > 0


async def test_the_number_of_series_is_bounded(site, add_worker, client):
    await add_worker("one")
    futures = [
        client.submit(int, 0, key=f"name{'x' * (i % 7)}{chr(97 + i % 26)}{chr(97 + i // 26)}-0") for i in range(300)
    ]
    futures.append(client.submit(int, 0, key="other-1"))
    await client.gather(futures)
    values = await scrape(site)
    series = [key for key in values if key[0] == "dask_scheduler_tasks_compute_seconds_total"]
    assert len(series) == PREFIXES + 1
    name = "dask_scheduler_prefix_state_totals_total"
    assert sum(value for key, value in values.items() if key[0] == name and "memory" in key[1]) == 301


async def test_worker(scheduler, add_worker, client):
    worker = await add_worker("one", dashboard_address="127.0.0.1:0", memory_limit="1 GB")
    site = Site(worker._http.port)
    data = await client.scatter(bytes(100_000))
    values = await scrape(site)
    assert values["dask_worker_threads", ""] == 1
    assert values["dask_worker_tasks", 'state="memory"'] == 1
    assert values["dask_worker_tasks", 'state="executing"'] == 0
    assert values["dask_worker_memory_bytes", 'type="managed"'] >= 100_000
    assert values["dask_worker_memory_limit_bytes", ""] == 1e9
    assert 0 < values["dask_worker_latency_seconds", ""] < 1
    assert (await site.get("/health")).body == b"ok"
    assert (await site.json("/json/identity.json"))["name"] == "one"
    for path in (await site.json("/sitemap.json"))["paths"]:
        assert (await site.get(path)).code == 200
    assert (await site.get("/")).effective_url.endswith("/info/main/logs.html")
    del data


async def test_what_a_worker_without_memory_does_is_told(scheduler, site, add_worker, client, monkeypatch):
    """It spills to its target, then pauses, and goes on when there is room again."""
    used = 0
    monkeypatch.setattr("daskfleet.worker.health.resident_memory", lambda: used)
    monkeypatch.setattr("daskfleet.worker.health.own_memory", lambda: used)
    worker = await add_worker("one", dashboard_address="127.0.0.1:0", memory_limit="100 MB")
    own = Site(worker._http.port)
    data = await client.scatter([bytes(20_000_000) for _ in range(4)], hash=False)
    await worker.spilling.settled()
    values = await scrape(own)
    assert values["dask_worker_memory_bytes", 'type="managed"'] < 60_000_200
    assert 20_000_000 <= values["dask_worker_memory_bytes", 'type="spilled"'] < 21_000_000

    used = 75_000_000
    await until(lambda: worker.stored.disk_bytes > 40_000_000)
    assert (await scrape(own))["dask_worker_memory_bytes", 'type="spilled"'] > 40_000_000
    assert (await scrape(site))["dask_scheduler_workers", 'state="paused"'] == 0

    used = 85_000_000
    await until(lambda: worker.machine.paused)
    future = client.submit(len, data[0])
    await until(lambda: scheduler.state.counts["queued"])
    assert (await scrape(site))["dask_scheduler_workers", 'state="paused"'] == 1
    assert (await scrape(own))["dask_worker_tasks", 'state="executing"'] == 0

    used = 10_000_000
    assert await future == 20_000_000
    assert (await scrape(site))["dask_scheduler_workers", 'state="paused"'] == 0


async def test_a_worker_without_its_scheduler_still_answers(scheduler, add_worker):
    worker = await add_worker("one", dashboard_address="127.0.0.1:0")
    await scheduler.close()
    await until(lambda: worker._scheduler is None)
    values = await scrape(Site(worker._http.port))
    assert values["dask_worker_connected", ""] == 0
    assert ("dask_worker_latency_seconds", "") not in values
