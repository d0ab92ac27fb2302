"""A headless Chromium, driven by its DevTools protocol: enough to open a page and look at it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


def executable() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


class Page:
    """One tab."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(90):
            while True:
                message = await self._socket.read_message()
                assert message is not None, "the browser is gone"
                answer = json.loads(message)
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    result: dict[str, Any] = answer["result"]
                    return result

    async def evaluate(self, expression: str) -> Any:
        answer = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    async def until(self, expression: str, timeout: float = 90) -> Any:
        """The expression's value as soon as that is true."""
        async with asyncio.timeout(timeout):
            while True:
                if value := await self.evaluate(expression):
                    return value
                await asyncio.sleep(0.1)

    async def screenshot(self, path: str) -> None:
        shot = await self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))


async def _port(file: Path) -> str:
    async with asyncio.timeout(90):
        while True:
            if file.exists() and "\n" in (text := file.read_text()):
                return text.split()[0]
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def open_page(url: str, *, width: int = 1400, height: int = 1300, dark: bool = False) -> AsyncIterator[Page]:
    binary = executable()
    assert binary is not None
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            binary,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile, "DevToolsActivePort"))
            answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json/list")
            target = next(one for one in json.loads(answer.body) if one["type"] == "page")
            page = Page(await websocket_connect(target["webSocketDebuggerUrl"], max_message_size=1 << 28))
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            await page.ask("Emulation.setEmulatedMedia", features=[scheme])
            await page.ask("Page.navigate", url=url)
            yield page
        finally:
            process.kill()
            await process.wait()
