"""Where the server listens."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest
from asking import Site
from daskfleet.http import server
from daskfleet.http.server import parse_http_address
from daskfleet.scheduler import http
from daskfleet.scheduler.server import Scheduler


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":8787", ("", 8787)),
        ("8787", ("", 8787)),
        (":0", ("", 0)),
        ("127.0.0.1:8787", ("127.0.0.1", 8787)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_addresses(text, expected):
    assert parse_http_address(text) == expected


@pytest.mark.parametrize("text", ["", ":", "localhost", "127.0.0.1:http", ":65536", ":-1"])
def test_bad_addresses_say_what_was_expected(text):
    with pytest.raises(ValueError, match=r"expected something like :8787"):
        parse_http_address(text)


async def test_one_port_for_both_families():
    async with Scheduler(port=0, dashboard_address=":0") as scheduler:
        hosts = ["127.0.0.1", "::1"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]
        for host in hosts:
            reader, writer = await asyncio.open_connection(host, scheduler.http.port)
            writer.write(b"GET /health HTTP/1.0\r\n\r\n")
            assert (await reader.read()).endswith(b"ok"), host
            writer.close()


async def test_the_usual_port_is_a_habit(monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(http, "DEFAULT_PORT", port)
        address = f"127.0.0.1:{port}"
        with caplog.at_level(logging.WARNING):
            async with Scheduler(host="127.0.0.1", port=0, dashboard_address=address) as scheduler:
                assert scheduler.http.port != port
                assert f"port {port} is taken" in caplog.text
                assert str(scheduler.http.port) in caplog.text
                assert (await Site(scheduler.http.port).get("/health")).body == b"ok"


async def test_another_port_is_a_demand():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot serve the dashboard on 127\.0\.0\.1:{port}.*--dashboard-address"):
            await Scheduler(host="127.0.0.1", port=0, dashboard_address=f"127.0.0.1:{port}")


async def test_after_the_scheduler_has_closed_the_port_is_free():
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler:
        port = scheduler.http.port
        assert (await Site(port).get("/health")).code == 200
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_a_request_without_end_is_refused(site):
    response = await site.post("/api/v1/retire_workers", "x" * (server.MAX_REQUEST + 1))
    assert response.code in (400, 413, 599)
    assert (await site.get("/health")).code == 200


async def test_the_names_of_many_workers_fit_in_a_query(site):
    names = ",".join(f"a-cluster-with-a-long-name-default-worker-{i:06d}" for i in range(5000))
    response = await site.get(f"/api/v1/workers_to_close?n=1&workers={names}")
    assert (response.code, response.body) == (200, b'{"workers": []}')
