"""``/api/v1``: what the operator and adaptive scaling ask, and who may change something."""

from __future__ import annotations

import json

import dask
import pytest
from asking import Site
from daskfleet import Client, Scheduler, Worker, get_client

from tests.eventual import until


async def test_get_workers(site, add_worker):
    assert await site.json("/api/v1/get_workers") == {"num_workers": 0, "workers": []}
    one, two = await add_worker("one"), await add_worker("two")
    answer = await site.json("/api/v1/get_workers")
    assert answer["num_workers"] == 2
    expected = [{"name": "one", "address": one.address}, {"name": "two", "address": two.address}]
    assert sorted(answer["workers"], key=lambda worker: worker["name"]) == expected


async def test_check_idle_says_busy_as_soon_as_there_is_work(site, add_worker, client, scheduler):
    await add_worker("one")
    assert isinstance((await site.json("/api/v1/check_idle"))["idle_since"], float)

    async def hold():
        import asyncio

        await asyncio.sleep(60)

    future = client.submit(hold)
    await until(lambda: scheduler.state.counts["processing"])
    assert (await site.json("/api/v1/check_idle"))["idle_since"] is None
    del future


async def test_where_clients_count_it_is_idle_when_the_last_is_gone():
    with dask.config.set({"distributed.scheduler.idle-with-clients": False}):
        scheduler = Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0")
    async with scheduler, Worker(scheduler.address, nthreads=1):
        site = Site(scheduler.http.port)

        async def idle():
            return (await site.json("/api/v1/check_idle"))["idle_since"] is not None

        assert await idle()
        async with Client(scheduler.address, asynchronous=True) as client:
            await client.submit(lambda: get_client().id)  # the worker's client stays, and is nobody
            await until(lambda: scheduler.idle_since is None)
            assert not await idle()
        await until(lambda: scheduler.idle_since is not None)
        assert await idle()
        assert any(client.worker for client in scheduler.clients.values())


async def test_adaptive_target_counts_only_the_workers_named(site, add_worker):
    for name in ("a-1", "a-2", "b-1"):
        await add_worker(name)
    # Idle workers without data could all go: the target is what remains of those that were asked about.
    assert await site.json("/api/v1/adaptive_target") == {"workers": 0}
    assert await site.json("/api/v1/adaptive_target?target_duration=5s&workers=a-1,a-2") == {"workers": 0}
    assert await site.json("/api/v1/adaptive_target?workers=") == {"workers": 0}


async def test_adaptive_target_follows_the_load(site, scheduler, client):
    futures = client.map(lambda x: x, range(40))
    await until(lambda: len(scheduler.state.tasks) == 40)
    # 40 tasks of an unknown kind count half a second each.
    assert await site.json("/api/v1/adaptive_target?target_duration=5s") == {"workers": 4}
    assert await site.json("/api/v1/adaptive_target?target_duration=10s&workers=") == {"workers": 2}
    del futures


async def test_workers_to_close_prefers_idle_ones_and_stays_within_those_named(site, add_worker, client):
    workers = [await add_worker(name) for name in ("one", "two", "three")]
    kept = await client.scatter({"data": bytes(1000)}, workers=[workers[0].address])
    answer = await site.json("/api/v1/workers_to_close?n=2")
    assert {worker["name"] for worker in answer["workers"]} == {"two", "three"}
    answer = await site.json("/api/v1/workers_to_close?n=2&workers=one,gone")
    assert answer["workers"] == [{"name": "one", "address": workers[0].address}]
    assert (await site.json("/api/v1/workers_to_close?n=2&workers="))["workers"] == []
    del kept


@pytest.mark.parametrize("by", ["workers", "names", "n"])
async def test_retire_moves_the_data_first(site, add_worker, client, scheduler, by):
    one = await add_worker("one")
    future = (await client.scatter([b"precious" * 1000]))[0]
    two = await add_worker("two")
    if by == "n":  # the cheapest is the one without the data
        response = await site.post("/api/v1/retire_workers", {"n": 1})
        retired, kept = two, one
    else:
        response = await site.post("/api/v1/retire_workers", {by: [one.address if by == "workers" else "one"]})
        retired, kept = one, two
    assert response.code == 200, response.body
    answer = json.loads(response.body)
    assert list(answer) == [retired.address]
    assert answer[retired.address]["name"] == retired.name
    assert scheduler.state.workers[retired.address].status == "closing"
    assert len(kept.machine.data) == 1
    await retired.close()
    assert await future == b"precious" * 1000


async def test_retiring_nobody_and_unknown_workers_retires_nobody(site, add_worker, scheduler):
    await add_worker("one")
    for body in ({"workers": []}, {"names": []}, {"n": 0}, {"workers": ["tcp://127.0.0.1:1"]}):
        response = await site.post("/api/v1/retire_workers", body)
        assert (response.code, json.loads(response.body)) == (200, {})
    assert [worker.status for worker in scheduler.state.workers.values()] == ["running"]


@pytest.mark.parametrize(
    "authorization", ["", "Bearer ", "Bearer wrong", "Basic a-token-that-nobody-guesses", "a-token-that-nobody-guesses"]
)
async def test_retire_needs_the_token(site, add_worker, scheduler, authorization):
    await add_worker("one")
    response = await site.post("/api/v1/retire_workers", {"n": 1}, Authorization=authorization)
    assert response.code == 401
    assert "token" in json.loads(response.body)["Error"]
    assert [worker.status for worker in scheduler.state.workers.values()] == ["running"]


@pytest.mark.parametrize(("shown", "code"), [("a-token-that-nobody-guesses", 200), ("wrong", 401), ("", 401)])
async def test_the_token_may_come_in_a_header_that_proxies_keep(site, add_worker, shown, code):
    await add_worker("one")
    headers = {"Authorization": "Bearer of-the-proxys-own", "X_Daskfleet_Token": shown}
    assert (await site.post("/api/v1/retire_workers", {"n": 0}, **headers)).code == code


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_what_another_sites_page_could_post_is_refused(site, add_worker, scheduler, kind):
    await add_worker("one")
    scheduler.security.token = None  # without one, the content type is the only guard
    response = await site.post("/api/v1/retire_workers", {"n": 1}, Content_Type=kind)
    assert response.code == (400 if kind.startswith("multipart") else 415)  # tornado itself wants parts in a multipart
    preflight = await site.get("/api/v1/retire_workers", method="OPTIONS", headers={"Origin": "http://evil.example"})
    assert preflight.code == 405
    for answer in (
        response,
        preflight,
        await site.get("/json/identity.json", headers={"Origin": "http://evil.example"}),
    ):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert [worker.status for worker in scheduler.state.workers.values()] == ["running"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "not JSON"),
        ([], "expected an object"),
        ({}, "expected"),
        ({"n": 1, "workers": []}, "expected"),
        ({"n": -1}, "negative"),
        ({"n": True}, "whole number"),
        ({"n": "many"}, "whole number"),
        ({"workers": "tcp://127.0.0.1:1"}, "list"),
        ({"names": [1]}, "list"),
        ({"number": 1}, "unknown: number"),
        ({"n": 1, "close_workers": "yes"}, "true or false"),
    ],
)
async def test_bad_bodies_are_answered_with_a_sentence(site, body, says):
    response = await site.post("/api/v1/retire_workers", body)
    assert response.code == 400
    assert says in json.loads(response.body)["Error"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/adaptive_target?target_duration=soon",
        "/api/v1/adaptive_target?target_duration=-1s",
        "/api/v1/adaptive_target?target_duration=0",
        "/api/v1/adaptive_target?target_duration=nan",
        "/api/v1/workers_to_close?n=x",
        "/api/v1/workers_to_close?n=-1",
    ],
)
async def test_bad_queries_are_answered_with_a_sentence(site, path):
    response = await site.get(path)
    assert response.code == 400
    assert "expected" in json.loads(response.body)["Error"] or "negative" in json.loads(response.body)["Error"]


async def test_a_failure_of_ours_is_a_500_with_what_it_was(site, scheduler, caplog):
    del scheduler.state.counts["waiting"]  # something that cannot be
    response = await site.get("/api/v1/check_idle")
    assert response.code == 500
    assert json.loads(response.body) == {"Error": "KeyError: 'waiting'"}
    assert "/api/v1/check_idle failed" in caplog.text
    scheduler.state.counts["waiting"] = 0
