"""An HTTP server as tests ask it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPResponse

TOKEN = "a-token-that-nobody-guesses"


@dataclass
class Site:
    """An HTTP server to ask."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def get(self, path: str, **options: Any) -> HTTPResponse:
        return await AsyncHTTPClient().fetch(self.url + path, raise_error=False, **options)

    async def json(self, path: str) -> Any:
        return json.loads((await self.get(path)).body)

    async def post(self, path: str, body: Any, **headers: str) -> HTTPResponse:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        text = body if isinstance(body, str) else json.dumps(body)
        return await self.get(path, method="POST", body=text, headers=headers)
