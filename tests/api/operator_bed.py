"""What the operator's tests share: an operator process, and waiting for what the API server says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster.reader import path_of, reader
from tests.eventual import rest

Json = dict[str, Any]
T = TypeVar("T")
MANIFESTS = Path(__file__).parent / "manifests"


def eventually(look: Callable[[], T], what: str, seconds: float = 180) -> T:
    """What `look` returns once it is true; a failure that says what was waited for and what was seen last."""
    begun = time.monotonic()
    while True:
        try:
            seen: Any = look()
        except (AssertionError, LookupError) as error:
            seen = None
            last: object = repr(error)
        else:
            last = seen
        if seen:
            return seen
        passed = time.monotonic() - begun
        if passed > seconds:
            raise AssertionError(f"not within {seconds:.0f} s: {what}; seen last: {last}")
        rest(passed, least=0.05)


class Namespace:
    """kubectl in one namespace, and what it would get as JSON."""

    def __init__(self, cluster: Any, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def kubectl(self, *args: str, input: str | None = None) -> str:
        return str(self.cluster.kubectl("-n", self.name, *args, input=input))

    def apply(self, manifest: Json | Path) -> None:
        if isinstance(manifest, Path):  # a user's
            self.kubectl("apply", "-f", str(manifest))
        else:
            reader(self.cluster.kubeconfig).apply(self.name, manifest)

    def get(self, kind: str, name: str) -> Json:
        status, found = reader(self.cluster.kubeconfig).get(f"{path_of(self.name, kind)}/{name}")
        # A kind that does not exist is not found either, but by no name.
        assert status == 200 or (status == 404 and found["details"].get("name") == name), found
        return found if status == 200 else {}

    def items(self, kinds: str, selector: str = "", fields: str = "") -> list[Json]:
        query = urllib.parse.urlencode({"labelSelector": selector, "fieldSelector": fields})
        listed: list[Json] = []
        for kind in kinds.split(","):
            status, found = reader(self.cluster.kubeconfig).get(f"{path_of(self.name, kind)}?{query}")
            assert status == 200, found
            listed += found["items"]
        return listed

    def workers(self, group: str) -> list[Json]:
        """The group's pods that are not on their way out."""
        pods = self.items("pods", f"dask.org/workergroup-name={group}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def condition(self, kind: str, name: str, type: str) -> Json:
        conditions = self.get(kind, name).get("status", {}).get("conditions", [])
        found: Json = next((item for item in conditions if item["type"] == type), {})
        return found

    def events(self, name: str) -> list[str]:
        """Reasons of the events on the custom resource of this name."""
        listed = self.items("events", fields=f"involvedObject.name={name}")
        return [item["reason"] for item in listed if item["source"].get("component") == "daskfleet-operator"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class OperatorProcess:
    """`python -m daskfleet_operator` with these options; its log is kept for failures."""

    def __init__(self, kubeconfig: Path | str, *options: str) -> None:
        self.port = free_port()
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process object
        command = [sys.executable, "-m", "daskfleet_operator", "--listen", f"127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(
            [*command, "--kubeconfig", str(kubeconfig), *options],
            stderr=self.log,
            env={**os.environ, "HOSTNAME": f"operator-{self.port}"},
        )

    def http(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_for(self, word: str, seconds: float = 180) -> None:
        """Until /readyz says `word`: "leading" or "standing by"."""

        def ready() -> bool:
            assert self.process.poll() is None, self.output()
            return word in self.http("/readyz")[1]

        eventually(ready, f"an operator that is {word}", seconds)

    def requests(self, method: str, resource: str) -> int:
        """How many such API requests it has made."""
        total = 0
        code, text = self.http("/metrics")
        assert code == 200, text
        for line in text.splitlines():
            wanted = f'method="{method}",resource="{resource}"'
            if line.startswith("daskfleet_operator_api_requests_total{") and wanted in line:
                total += int(float(line.rsplit(" ", 1)[1]))
        return total

    def output(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def kill(self) -> None:
        """As a node that loses power would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """In order; the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=180)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@contextmanager
def operator(kubeconfig: Path | str, *options: str, ready: str = "leading") -> Iterator[OperatorProcess]:
    """A running operator; stopped afterwards, and its log printed for pytest to show."""
    process = OperatorProcess(kubeconfig, *options)
    try:
        process.wait_for(ready)
        yield process
    finally:
        if process.process.poll() is None:
            process.stop()
        sys.stderr.write(process.output())


def unplaced(cluster: Json) -> Json:
    """The DaskCluster, with pods that no scheduler places: nothing happens to them, and they go as they are deleted."""
    for half in ("scheduler", "worker"):
        cluster["spec"][half]["spec"]["schedulerName"] = "nobody"
    return cluster


def cluster_manifest(name: str = "lab", replicas: int = 2, image: str = "example.invalid/nothing:1") -> Json:
    """A DaskCluster whose pods need not run."""
    selector = {"dask.org/cluster-name": name, "dask.org/component": "scheduler"}
    ports = [{"name": "tcp-comm", "port": 8786}, {"name": "http-dashboard", "port": 8787}]
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": {"name": name},
        "spec": {
            "worker": {"replicas": replicas, "spec": {"containers": [{"name": "worker", "image": image}]}},
            "scheduler": {
                "spec": {"containers": [{"name": "scheduler", "image": image}]},
                "service": {"selector": selector, "ports": ports},
            },
        },
    }
