"""What the live page is sent, and when anything is computed at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any

import pytest
from asking import Site
from browser import executable, open_page
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.eventual import until

EVIL = "<script>document.title='taken over'</script><img src=x onerror=\"document.title='taken over'\">"


async def nonce(site: Site) -> str:
    found = re.search(r'<meta name="page" content="([^"]+)"', (await site.get("/status")).body.decode())
    assert found
    return found[1]


async def watch(site: Site) -> WebSocketClientConnection:
    return await websocket_connect(f"ws://127.0.0.1:{site.port}/events?page={await nonce(site)}")


async def read(viewer: WebSocketClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(60):
        message = await viewer.read_message()
    assert message is not None, "closed"
    frame: dict[str, Any] = json.loads(message)
    frame["workers"] = [dict(zip(frame["columns"], row, strict=True)) for row in frame["workers"]]
    return frame


async def test_a_frame_says_what_there_is(site, scheduler, add_worker, client):
    worker = await add_worker(f"w {EVIL}", memory_limit="1 GB")
    viewer = await watch(site)
    await read(viewer)

    def slow(x):
        import time

        time.sleep(0.15)
        return x

    def fail(x):
        raise ValueError(x)

    def quick(x):
        return x

    await client.gather(kept := [*client.map(slow, range(2)), *client.map(quick, range(50))])
    failed = client.submit(fail, 1)
    await failed.exception()
    bars, sums = [], {}
    for _ in range(100):
        frame = await read(viewer)
        bars += frame["stream"]["bars"]
        for name, prefix, runs, _seconds in frame["stream"]["sums"]:
            assert name == worker.name
            sums[prefix] = sums.get(prefix, 0) + runs
        if frame["tasks"]["erred"] and len(bars) == 2 and sums.get("quick") == 50:
            break
    assert [(name, prefix) for name, prefix, _, _ in bars] == [(worker.name, "slow")] * 2
    assert all(end - start >= 0.15 for _, _, start, end in bars)
    assert sums == {"quick": 50}
    assert frame["address"] == scheduler.address
    assert frame["computed"] == 52 and frame["erred"] == 1
    assert frame["tasks"]["memory"] == 52 and frame["tasks"]["erred"] == 1
    prefixes = {name: rest for name, *rest in frame["prefixes"]}
    assert prefixes["slow"][:3] == [{"memory": 2}, 2, 0] and prefixes["slow"][3] >= 0.15
    assert prefixes["fail"] == [{"erred": 1}, 0, 1, None]
    (row,) = frame["workers"]
    assert (row["name"], row["address"], row["status"], row["nthreads"]) == (worker.name, worker.address, "running", 1)
    assert row["memory"] > 1e6 and row["memory_limit"] == 1e9 and row["keys"] == 52
    viewer.close()
    del kept


async def test_all_viewers_get_the_same_frame(site, add_worker):
    viewers = [await watch(site) for _ in range(5)]
    seen: list[set[float]] = [set() for _ in viewers]
    while not set.intersection(*seen):  # the first frames differ: each viewer is given one as it comes
        for viewer, times in zip(viewers, seen, strict=True):
            times.add((await read(viewer))["time"])
    for viewer in viewers:
        viewer.close()


async def test_nothing_is_computed_while_nobody_watches(site, scheduler):
    before = asyncio.all_tasks()
    assert not scheduler.on_ended
    viewers = [await watch(site), await watch(site)]
    await read(viewers[0])
    assert scheduler.on_ended
    assert [task for task in asyncio.all_tasks() - before if "Feed._run" in repr(task)]
    for viewer in viewers:
        viewer.close()
    await until(lambda: not scheduler.on_ended)
    await until(lambda: not [task for task in asyncio.all_tasks() if "Feed._run" in repr(task)])
    viewer = await watch(site)  # and it starts again
    await read(viewer)
    viewer.close()


async def test_a_viewer_that_does_not_read_costs_no_memory(site, scheduler, add_worker):
    """Its frames are dropped, others' are not."""
    for i in range(3):
        await add_worker(f"w{i}" + "x" * 60_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(
        f"GET /events?page={await nonce(site)} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()
    viewer = await watch(site)
    feed = scheduler.http._on_stop[0].__self__
    (slow,) = [one for one in feed._viewers if one.request.host == "x"]
    for _ in range(3):
        await read(viewer)
    # Fill what the sockets take, then nothing more may be queued.
    stream = slow.ws_connection.stream
    async with asyncio.timeout(90):
        while not stream.writing():
            feed._send(slow, feed._last)
            await asyncio.sleep(0)
    queued = len(stream._write_buffer)
    for _ in range(50):
        feed._send(slow, feed._last)
    assert len(stream._write_buffer) == queued
    assert await read(viewer)
    viewer.close()
    writer.close()


@pytest.mark.parametrize("query", ["", "?page=", "?page=guessed"])
async def test_pages_of_other_sites_get_no_frames(site, query):
    """They may open websockets here, but cannot read the word that is in our page."""
    for origin in ("http://evil.example", f"http://127.0.0.1:{site.port}"):
        request = HTTPRequest(f"ws://127.0.0.1:{site.port}/events{query}", headers={"Origin": origin})
        with pytest.raises(HTTPClientError) as refusal:
            await websocket_connect(request)
        assert refusal.value.code == 403


async def test_a_proxy_that_changes_host_and_origin_does_not_matter(site):
    url = f"ws://127.0.0.1:{site.port}/events?page={await nonce(site)}"
    headers = {"Origin": "https://jupyter.example", "Sec-Fetch-Site": "cross-site"}
    viewer = await websocket_connect(HTTPRequest(url, headers=headers))
    assert await read(viewer)
    viewer.close()


async def test_viewers_are_told_when_the_scheduler_closes(site, scheduler):
    viewer = await watch(site)
    await read(viewer)
    await scheduler.close()
    async with asyncio.timeout(10):
        while await viewer.read_message() is not None:
            pass
    assert viewer.close_code == 1001


@pytest.mark.skipif(executable() is None, reason="no Chromium here: apt-get install chromium")
async def test_in_a_browser(site, scheduler, add_worker, client):
    await add_worker(f"w {EVIL}")
    await client.gather(kept := [client.submit(int, key=f"{letter}{EVIL}-1") for letter in "abc"])
    async with open_page(f"{site.url}/status") as page:
        await page.until("document.querySelector('#connection')?.className === 'live'")
        text = await page.until("document.querySelector('tbody tr td')?.textContent")
        assert text == f"w {EVIL}"
        names = await page.evaluate("[...document.querySelectorAll('.rows .name')].map((one) => one.textContent)")
        assert names == [f"{letter}{EVIL}" for letter in "abc"]
        assert await page.evaluate("document.querySelectorAll('main script, main img').length") == 0
        assert await page.evaluate("document.title") == "Status · daskfleet"
        await scheduler.close()
        await page.until("document.querySelector('#connection').textContent.includes('reconnecting')")
        assert await page.evaluate("document.body.classList.contains('stale')")
    del kept


PREFIX = "/user/me/proxy/8787"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
    writer.close()


async def proxy(site: Site) -> asyncio.Server:
    """A proxy that serves `site` below `PREFIX` and nothing elsewhere, and calls itself by another name."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", site.port)
        back = asyncio.ensure_future(_pump(behind_reader, writer))
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if not head.startswith(f"GET {PREFIX}/"):
                    break
                head = re.sub("(?im)^Host: .*$", "Host: behind.example\r", head.replace(PREFIX, "", 1))
                behind_writer.write(head.encode())
                if "Upgrade: websocket" in head:
                    await _pump(reader, behind_writer)
                    break
        behind_writer.close()
        back.cancel()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@pytest.mark.skipif(executable() is None, reason="no Chromium here: apt-get install chromium")
async def test_in_a_browser_behind_a_path_prefix(site, add_worker):
    await add_worker("one")
    async with await proxy(site) as server:
        port = server.sockets[0].getsockname()[1]
        async with open_page(f"http://127.0.0.1:{port}{PREFIX}/") as page:
            assert await page.until("document.querySelector('tbody tr td')?.textContent") == "one"
            assert await page.evaluate("location.pathname") == f"{PREFIX}/status"
            colour = "getComputedStyle(document.querySelector('section')).borderTopLeftRadius"
            assert await page.evaluate(colour) == "8px"  # the style sheet is there
