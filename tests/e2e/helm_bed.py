"""What the tests of the charts share: Helm on the test cluster, a port-forward, and a client of Jupyter's HTTP API."""

from __future__ import annotations

import contextlib
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.cluster import Cluster, tools

CHARTS = Path(__file__).parents[2] / "charts"


class Refused(Exception):
    """What Helm says when it ends with an error."""


class Helm:
    """Helm in one namespace of a cluster."""

    def __init__(self, program: str, cluster: Cluster, namespace: str) -> None:
        self.command = [program, f"--kubeconfig={cluster.kubeconfig}", f"--namespace={namespace}"]

    def __call__(self, *words: str, values: dict[str, Any] | None = None, timeout: float = 600) -> str:
        command = [*self.command, *words, *(["--values=-"] if values is not None else [])]
        given = yaml.safe_dump(values) if values is not None else None
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout


def left_in(cluster: Cluster, namespace: str) -> set[str]:
    """All objects in a namespace, but for events and what every namespace has."""
    kinds = cluster.kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    wanted = ",".join(kind for kind in kinds if not kind.startswith("events") and "metrics.k8s.io" not in kind)
    found = cluster.kubectl("-n", namespace, "get", wanted, "-o", "name", "--ignore-not-found").split()
    return set(found) - {"configmap/kube-root-ca.crt", "serviceaccount/default"}


@contextlib.contextmanager
def port_forward(cluster: Cluster, namespace: str, target: str, port: int) -> Iterator[str]:
    """The URL at which a port of ``service/NAME`` is served here."""
    command = [tools.kubectl(), f"--kubeconfig={cluster.kubeconfig}", "-n", namespace, "port-forward", target]
    process = subprocess.Popen([*command, f":{port}"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()  # Forwarding from 127.0.0.1:41234 -> 8888
        yield f"http://{said.split()[2]}"
    finally:
        process.terminate()
        process.wait(10)


class Jupyter:
    """A client of a Jupyter server, as its own pages are: contents, sessions, and a kernel's websocket."""

    def __init__(self, session: aiohttp.ClientSession, token: str) -> None:
        self._session = session
        self._headers = {"Authorization": f"token {token}"}

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, url: str, token: str) -> AsyncIterator[Jupyter]:
        async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=240)) as session:
            yield cls(session, token)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        async with self._session.request(method, path, json=body, headers=self._headers) as answer:
            text = await answer.text()
            assert answer.status < 300, f"{method} {path}: {answer.status} {text[:300]}"
            return json.loads(text) if "json" in answer.headers.get("Content-Type", "") else text

    async def run_notebook(self, name: str, cells: list[str], shown: list[dict[str, str]] | None = None) -> list[str]:
        """Save a notebook, open it with a kernel and run its cells; what each of them printed.

        What they display, and what that is changed into, is added to `shown`.
        """
        content = {
            "cells": [
                {
                    "cell_type": "code",
                    "source": cell,
                    "metadata": {},
                    "outputs": [],
                    "execution_count": None,
                    "id": f"c{i}",
                }
                for i, cell in enumerate(cells)
            ],
            "metadata": {},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        await self.ask("PUT", f"/api/contents/{name}", {"type": "notebook", "content": content})
        saved = await self.ask("GET", f"/api/contents/{name}")
        kernel = {"path": name, "name": name, "type": "notebook", "kernel": {"name": "python3"}}
        session = await self.ask("POST", "/api/sessions", kernel)
        path = f"/api/kernels/{session['kernel']['id']}/channels"
        async with self._session.ws_connect(path, headers=self._headers, max_msg_size=0) as channel:
            printed = [
                await self._run(channel, cell["source"], shown if shown is not None else [])
                for cell in saved["content"]["cells"]
            ]
        await self.ask("DELETE", f"/api/sessions/{session['id']}")
        return printed

    async def _run(self, channel: aiohttp.ClientWebSocketResponse, code: str, shown: list[dict[str, str]]) -> str:
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": "execute_request",
            "username": "",
            "session": "s",
            "version": "5.3",
        }
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        await channel.send_json(
            {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        )
        printed = ""
        while True:
            message = await channel.receive_json(timeout=240)
            if message["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            match message["msg_type"]:
                case "stream":
                    printed += message["content"]["text"]
                case "display_data" | "update_display_data":
                    shown.append(message["content"]["data"])
                case "error":
                    raise AssertionError("\n".join(message["content"]["traceback"]))
                case "status" if message["content"]["execution_state"] == "idle":
                    return printed
