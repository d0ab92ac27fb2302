"""What the tests of KubeCluster share: a relay that can be cut, kubeconfigs of their own, a pod that serves TCP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from daskfleet.deploy.kubernetes.errors import USER_RULES
from daskfleet.deploy.kubernetes.spec import DEFAULT_IMAGE

# echo: what comes goes back. sink: reads to the end, `report` tells how much and its hash. source: "N\n" -> N bytes.
SERVER = """
import asyncio, hashlib, json, sys, time
seen = {"bytes": 0, "sha256": "", "ends": 0}
async def echo(reader, writer):
    while data := await reader.read(1 << 18):
        writer.write(data)
        await writer.drain()
    writer.close()
async def sink(reader, writer):
    total, digest = 0, hashlib.sha256()
    while data := await reader.read(1 << 18):
        total += len(data)
        digest.update(data)
    seen.update(bytes=total, sha256=digest.hexdigest(), ends=seen["ends"] + 1)
    writer.close()
async def source(reader, writer):
    left, block = int(await reader.readline()), bytes(range(256)) * 1024
    while left:
        writer.write(block[:left])
        left -= len(block[:left])
        await writer.drain()
    writer.close()
async def report(reader, writer):
    writer.write(json.dumps(seen).encode())
    writer.close()
async def main():
    await asyncio.sleep(float(sys.argv[1]))
    for port, serve in {9000: echo, 9001: sink, 9002: source, 9003: report}.items():
        await asyncio.start_server(serve, "0.0.0.0", port)
    await asyncio.Event().wait()
asyncio.run(main())
"""
ECHO, SINK, SOURCE, REPORT = 9000, 9001, 9002, 9003


def server_pod(name: str, silent_seconds: float = 0) -> str:
    """Manifest of a pod that serves the ports above, after `silent_seconds` of running without listening."""
    container = {
        "name": "server",
        "image": DEFAULT_IMAGE,
        "command": ["python3", "-c", SERVER, str(silent_seconds)],
    }
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
        }
    )


# What a user of KubeCluster needs, and no more; the README shows the same.
ROLE = [{"apiGroups": [group], "resources": names, "verbs": verbs} for group, names, verbs in USER_RULES]


def run_in_pod(kubectl, namespace: str, command: list[str]) -> None:
    """Start the pod ``notebook`` with this command and the rights of a user of KubeCluster."""
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "user"}, "rules": ROLE}
    kubectl("-n", namespace, "create", "serviceaccount", "user")
    kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(role))
    kubectl("-n", namespace, "create", "rolebinding", "user", "--role=user", f"--serviceaccount={namespace}:user")
    container = {"name": "notebook", "image": DEFAULT_IMAGE, "command": command}
    spec = {"serviceAccountName": "user", "restartPolicy": "Never", "containers": [container]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "notebook"}, "spec": spec}
    kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(pod))


class Relay:
    """A TCP relay to the API server, which can be cut as a restart or a proxy's time-out cuts it."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more, and reset what is open."""
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Reset all connections; new ones are taken."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        both = {writer, there_writer}
        self._writers |= both

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))
        self._writers -= both


def api_address(kubeconfig: Path) -> tuple[str, int]:
    """Host and port of the API server that a kubeconfig names."""
    cluster = yaml.safe_load(Path(kubeconfig).read_text())["clusters"][0]["cluster"]
    parts = urlsplit(cluster["server"])
    return str(parts.hostname), int(parts.port or 443)


def kubeconfig_with(original: Path, path: Path, *, server: str | None = None, user: dict | None = None) -> Path:
    """Write a copy of a kubeconfig at `path` with another server address or user."""
    config = yaml.safe_load(Path(original).read_text())
    cluster = config["clusters"][0]["cluster"]
    if server:
        cluster["tls-server-name"] = urlsplit(cluster["server"]).hostname
        cluster["server"] = server
    if user is not None:
        config["users"][0]["user"] = user
    path.write_text(yaml.safe_dump(config))
    return path


# Of clusters that no operator made: how daskfleet's chart and dask's own chart label what they install.
LABELS = {
    "daskfleet": lambda release, component: {"dask.org/cluster-name": release, "dask.org/component": component},
    "dask": lambda release, component: {"app": "dask", "release": release, "component": component},
}


def deployment(name, labels, args, env, replicas=1, image=DEFAULT_IMAGE):
    """A Deployment of one container that runs `args`."""
    ports = [{"name": "http", "containerPort": 8787}]
    container = {"name": "main", "image": image, "args": args, "env": env, "ports": ports}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def service(name, labels):
    """The scheduler's Service."""
    spec = {"selector": labels, "ports": [{"name": "tcp-comm", "port": 8786}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": spec}


def address(namespace):
    """What workers of the release ``rel`` have in their environment."""
    return [{"name": "DASK_SCHEDULER_ADDRESS", "value": f"tcp://rel-scheduler.{namespace}.svc:8786"}]
