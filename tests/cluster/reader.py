"""Asking the API without a process for each question.

Tests look again and again until something has come about, and each has a namespace made, and clusters in it. A kubectl
costs a tenth of a second of one core, and asks the API server what there is before it asks for anything. One ``kubectl
proxy`` has the credentials instead, whatever kind they are of, and listens on a Unix socket that is ours alone.
"""

from __future__ import annotations

import atexit
import http.client
import json
import shutil
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from . import tools
from .progress import ClusterError

SHORT = {"dsk": "daskclusters", "djb": "daskjobs", "hpa": "horizontalpodautoscalers"}
GROUPS = {
    "dask": "apis/kubernetes.dask.org/v1",
    "deployments": "apis/apps/v1",
    "horizontalpodautoscalers": "apis/autoscaling/v2",
    "poddisruptionbudgets": "apis/policy/v1",
}
"""Where kinds whose plural begins so are found, others being in the core."""


class Reader:
    """The API as JSON, with the credentials of a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self._folder = tempfile.mkdtemp(prefix="daskfleet-reader-")
        self._socket = f"{self._folder}/socket"
        command = [tools.kubectl(), "proxy", f"--kubeconfig={kubeconfig}", f"--unix-socket={self._socket}"]
        # It must not outlive a test run that is killed.
        self._process = subprocess.Popen(["setpriv", "--pdeathsig=TERM", *command], stdout=subprocess.DEVNULL)
        atexit.register(self._close)
        end = time.monotonic() + 120
        while not Path(self._socket).exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise ClusterError(f"no kubectl proxy: exit status {self._process.poll()}")
            time.sleep(0.02)

    def get(self, path: str) -> tuple[int, Any]:
        """The status, and the object, list or Status that is answered."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: Any = None, content: str = "application/json") -> tuple[int, Any]:
        """The same for any method."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(120)
            connection.sock.connect(self._socket)
            given = None if body is None else json.dumps(body)
            connection.request(method, path, given, {"Content-Type": content} if given else {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def apply(self, namespace: str, manifest: Any) -> None:
        """What ``kubectl apply --server-side --force-conflicts`` does, for what is in namespaces, or a List."""
        for item in manifest["items"] if manifest["kind"] == "List" else [manifest]:
            path = f"{path_of(namespace, item['kind'])}/{item['metadata']['name']}"
            options = "fieldManager=tests&force=true&fieldValidation=Strict"
            # JSON is YAML, which is the one name for what is applied.
            status, said = self.ask("PATCH", f"{path}?{options}", item, "application/apply-patch+yaml")
            if status not in (200, 201):
                raise ClusterError(f"{path}: {said['message']}")

    def _close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)
        shutil.rmtree(self._folder, ignore_errors=True)


@cache
def reader(kubeconfig: Path) -> Reader:
    """This process's one."""
    return Reader(kubeconfig)


def path_of(namespace: str, kind: str) -> str:
    """Where objects of a kind are, by its name as kubectl takes it.

    >>> path_of("here", "dsk"), path_of("here", "deployment")
    ('/apis/kubernetes.dask.org/v1/namespaces/here/daskclusters', '/apis/apps/v1/namespaces/here/deployments')
    """
    plural = SHORT.get(kind, kind.lower().removesuffix("s") + "s")
    group = next((group for start, group in GROUPS.items() if plural.startswith(start)), "api/v1")
    return f"/{group}/namespaces/{namespace}/{plural}"
