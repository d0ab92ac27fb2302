"""Probes, JSON and pages of the scheduler."""

from __future__ import annotations

import json
import logging
import re

import pytest
from daskfleet.http.logs import ring

EVIL = "<script>alert(1)</script>"


async def test_health(site):
    response = await site.get("/health")
    assert (response.code, response.body) == (200, b"ok")


async def test_identity(site, scheduler, add_worker):
    worker = await add_worker("one", memory_limit="1 GB", resources={"GPU": 1})
    identity = await site.json("/json/identity.json")
    assert identity["type"] == "Scheduler"
    assert identity["address"] == scheduler.address
    assert identity["services"] == {"dashboard": site.port}
    assert (identity["n_workers"], identity["total_threads"], identity["total_memory"]) == (1, 1, 10**9)
    entry = identity["workers"][worker.address]
    assert (entry["name"], entry["nthreads"], entry["memory_limit"]) == ("one", 1, 10**9)
    assert entry["resources"] == {"GPU": 1}


async def test_counts(site, add_worker, client):
    await add_worker("one")
    futures = client.map(lambda x: 1 / x, [0, 1, 2])
    for future in futures:
        await future.exception()
    counts = await site.json("/json/counts.json")
    upstream = "bytes clients cores erred hosts idle memory processing released saturated tasks unrunnable waiting"
    assert {*upstream.split(), "waiting_data", "workers", "desired_workers"} <= counts.keys()
    assert (counts["memory"], counts["erred"], counts["tasks"]) == (2, 1, 3)
    assert (counts["clients"], counts["workers"], counts["cores"], counts["idle"], counts["hosts"]) == (1, 1, 1, 1, 1)
    assert counts["bytes"] > 0


async def test_all_that_the_sitemap_lists_is_there(site):
    paths = (await site.json("/sitemap.json"))["paths"]
    assert {"/status", "/health", "/metrics", "/individual-plots.json", "/info/main/workers.html"} <= set(paths)
    for path in paths:
        response = await site.get(path)
        expected = 405 if path == "/api/v1/retire_workers" else 200
        assert response.code == expected, path
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "Server" not in response.headers


async def test_individual_plots_are_pages_with_one_panel(site):
    plots = await site.json("/individual-plots.json")
    assert {"Individual Task Stream", "Individual Progress", "Individual Workers"} <= plots.keys()
    for path in plots.values():
        page = (await site.get(path)).body.decode()
        assert page.count("data-panel=") == 1


async def test_pages_work_behind_a_path_prefix(site):
    root = await site.get("/", follow_redirects=False)
    assert (root.code, root.headers["Location"]) == (302, "status")
    for path in ("/status", "/individual-progress", "/info/main/workers.html", "/info/main/logs.html"):
        page = (await site.get(path)).body.decode()
        links = re.findall(r'(?:href|src)="([^"]*)"', page)
        assert links
        assert not [link for link in links if link.startswith(("/", "http"))], path
    for path in ("/static/live.js", "/static/live.css"):
        response = await site.get(path)
        assert response.code == 200
        assert not re.findall(r"""(?:url\(|fetch\(|URL\()\s*["'`]/""", response.body.decode())


async def test_nothing_comes_from_elsewhere_and_no_script_is_inline(site):
    page = await site.get("/status")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert re.findall(r"<script(?![^>]* src=)", page.body.decode()) == []


async def test_names_keys_and_texts_are_escaped(site, add_worker, client):
    await add_worker(f"worker {EVIL}")

    def fail(text):
        raise ValueError(text)

    future = client.submit(fail, EVIL, key=f"key {EVIL}")
    assert EVIL in str(await future.exception())
    logging.getLogger("daskfleet.test").warning("log %s", EVIL)
    for path in ("workers", "exceptions", "logs"):
        page = (await site.get(f"/info/main/{path}.html")).body.decode()
        assert "alert(1)" in page, path
        assert "<script" not in page, path
    missing = await site.get("/%3Cscript%3E")
    assert (missing.code, missing.headers["Content-Type"]) == (404, "application/json; charset=UTF-8")


async def test_exceptions_are_listed_once_with_what_failed_by_them(site, add_worker, client):
    await add_worker("one")
    first = client.submit(lambda: 1 / 0, key="culprit")
    rest = [client.submit(lambda x, i: x, first, i) for i in range(3)]
    for future in rest:
        await future.exception()
    page = (await site.get("/info/main/exceptions.html")).body.decode()
    cells = re.findall(r"<td>([^<]*)</td>", page)
    assert cells == ["culprit", "ZeroDivisionError: division by zero", "4"]


async def test_logs_never_show_the_token(site, scheduler):
    logging.getLogger("daskfleet.test").warning("somebody logged %s", scheduler.security.token)
    page = (await site.get("/info/main/logs.html")).body.decode()
    assert "somebody logged [token]" in page
    assert scheduler.security.token not in page


def test_keeping_logs_leaves_logging_as_it_was(capsys):
    """Without any set-up Python prints warnings to stderr; that must not end because we keep them too."""
    handler, root = ring(), logging.getLogger()
    others, root.handlers = root.handlers, []
    try:
        logging.getLogger("daskfleet.test").warning("to be seen")
    finally:
        root.handlers = others
    assert capsys.readouterr().err == "to be seen\n"
    assert handler.lines[-1].endswith("to be seen")


@pytest.mark.parametrize("path", ["/nothing", "/static/../live.py", "/static/%2e%2e/live.py", "/api/v1/nothing"])
async def test_what_is_not_there_is_a_404(site, path):
    response = await site.get(path)
    assert response.code in (403, 404)
    assert path.startswith("/static") or "sitemap" in json.loads(response.body)["Error"]
