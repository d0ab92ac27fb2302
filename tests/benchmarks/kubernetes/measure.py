"""One round with one of the two libraries, in a process of its own as a user's script is; prints one line of JSON.

Nothing but the imports differs between the sides: the same calls, the same clock, the same way to see pods.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from pods import PodWatch

DEADLINE = 120.0
"""Seconds for each thing that is waited for."""
REST = 2.0
"""Seconds between phases: a kubelet looks at containers once a second, and what it just saw delays what comes next."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=["dask_kubernetes", "daskfleet"])
    parser.add_argument("--name", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--kubectl", required=True)
    parser.add_argument("--options", type=json.loads, default={}, help="more arguments for KubeCluster, as JSON")
    arguments = parser.parse_args()
    started = time.monotonic()
    if arguments.library == "daskfleet":
        from daskfleet import Client, KubeCluster
    else:
        from dask_kubernetes.operator import KubeCluster
        from distributed import Client
    seconds = {"import": time.monotonic() - started}

    def make() -> Any:
        named = {"name": arguments.name, "namespace": arguments.namespace, "image": arguments.image}
        return KubeCluster(**named, n_workers=2, quiet=True, **arguments.options)

    with PodWatch([arguments.kubectl], arguments.namespace) as pods:
        time.sleep(1)  # until it watches
        seconds |= life(make, Client, pods)
    print(json.dumps(seconds))


def life(make: Callable[[], Any], client_class: Callable[[Any], Any], pods: PodWatch) -> dict[str, float]:
    """Start, scale up, scale down, close; the seconds of each, and of what happens on the way."""
    seconds = {}
    started = time.monotonic()

    def lap(name: str, at: float | None = None) -> None:
        seconds[name] = (at or time.monotonic()) - started

    cluster = make()
    lap("start: KubeCluster() returned")
    client = client_class(cluster)
    lap("start: Client() returned")
    client.wait_for_workers(2, timeout=DEADLINE)
    lap("start")
    pods.wait(lambda: all(pod.ready for pod in pods.of()) and len(pods.of("worker")) == 2, DEADLINE)
    [scheduler], workers = pods.of("scheduler"), pods.of("worker")
    lap("start: scheduler pod made", scheduler.made)
    lap("start: last worker pod made", max(pod.made for pod in workers))
    for state in ("running", "ready"):
        lap(f"start: scheduler seen {state}", getattr(scheduler, state))
        lap(f"start: last worker seen {state}", max(getattr(pod, state) for pod in workers))

    time.sleep(REST)
    started = time.monotonic()
    cluster.scale(6)
    lap("up: scale() returned")
    client.wait_for_workers(6, timeout=DEADLINE)
    lap("up")
    pods.wait(lambda: sum(pod.ready is not None for pod in pods.present("worker")) == 6, DEADLINE)
    new = pods.of("worker")[2:]
    lap("up: last worker pod made", max(pod.made for pod in new))
    for state in ("running", "ready"):
        lap(f"up: last worker seen {state}", max(getattr(pod, state) for pod in new))

    time.sleep(REST)
    started = time.monotonic()
    cluster.scale(2)
    lap("down: scale() returned")
    while len(client.nthreads()) > 2:
        if time.monotonic() > started + DEADLINE:
            raise TimeoutError("workers stay although scale(2) was called")
        time.sleep(0.02)
    lap("down")
    pods.wait(lambda: len(pods.present("worker")) == 2, DEADLINE)
    lap("down: pods gone", max(pod.gone or 0 for pod in pods.of("worker")))

    client.close()
    time.sleep(REST)
    started = time.monotonic()
    cluster.close()
    lap("close")
    pods.wait(lambda: not pods.present(), DEADLINE)
    lap("close: pods gone", max(pod.gone or 0 for pod in pods.of()))
    return seconds


if __name__ == "__main__":
    main()
