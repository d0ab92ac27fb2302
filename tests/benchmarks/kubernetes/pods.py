"""What happens to the pods of one namespace, and when: seen by one ``kubectl get --watch``, never by polling.

Standard library only: it also runs in the peer's environment.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass
class Pod:
    """When a pod was first seen to exist, to run, to be ready and to be gone, as `time.monotonic` says."""

    component: str
    made: float
    running: float | None = None
    ready: float | None = None
    gone: float | None = None


@dataclass
class PodWatch:
    """The pods of a namespace by name, also those that have gone; a context manager.

    Parameters
    ----------
    kubectl
        The command with its kubeconfig.
    namespace
        Which pods.
    """

    kubectl: list[str]
    namespace: str
    pods: dict[str, Pod] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._changed = threading.Condition()
        words = ["-n", self.namespace, "get", "pods", "--watch", "--output-watch-events", "-o", "json"]
        self._process = subprocess.Popen([*self.kubectl, *words], stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._thread.join(10)

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            now = time.monotonic()
            event = json.loads(line)
            name, labels = event["object"]["metadata"]["name"], event["object"]["metadata"].get("labels", {})
            containers = event["object"]["status"].get("containerStatuses", [])
            with self._changed:
                pod = self.pods.setdefault(name, Pod(labels.get("dask.org/component", ""), now))
                if event["type"] == "DELETED":
                    pod.gone = pod.gone or now
                if any("running" in container["state"] for container in containers):
                    pod.running = pod.running or now
                if any(container["ready"] for container in containers):
                    pod.ready = pod.ready or now
                self._changed.notify_all()

    def of(self, component: str = "") -> list[Pod]:
        """The pods of a component, or all; oldest first."""
        return [pod for pod in self.pods.values() if component in ("", pod.component)]

    def present(self, component: str = "") -> list[Pod]:
        """Those that have not gone."""
        return [pod for pod in self.of(component) if pod.gone is None]

    def wait(self, condition: Callable[[], bool], timeout: float) -> None:
        """Return as soon as an event makes `condition` true.

        Raises
        ------
        TimeoutError
            After `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise TimeoutError(f"pods after {timeout:.0f} s: {self.pods}")
