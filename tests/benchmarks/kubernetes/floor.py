"""The least that pods cost here: bare ones, of the same image, that run a shell and nothing else."""

from __future__ import annotations

import json
import subprocess
import time

from .pods import PodWatch

DEADLINE = 60.0


def measure(kubectl: list[str], namespace: str, image: str, rounds: int) -> list[dict[str, float]]:
    """Seconds from `kubectl apply` to Ready, and from `kubectl delete` to gone, of one pod and of four at once."""
    found: list[dict[str, float]] = [{} for _ in range(rounds)]
    for number, seconds in enumerate(found):
        for count in (1, 4):
            names = [f"floor-{number}-{count}-{index}" for index in range(count)]
            pods = {"apiVersion": "v1", "kind": "List", "items": [_pod(name, image) for name in names]}
            with PodWatch(kubectl, namespace) as watch:
                time.sleep(1)
                started = time.monotonic()
                subprocess.run(
                    [*kubectl, "-n", namespace, "apply", "-f", "-"],
                    input=json.dumps(pods),
                    text=True,
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                watch.wait(lambda: sum(pod.ready is not None for pod in watch.of()) == count, DEADLINE)  # noqa: B023
                seconds[f"ready {count}"] = time.monotonic() - started
                started = time.monotonic()
                command = [*kubectl, "-n", namespace, "delete", "--wait=false", "pods", *names]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                watch.wait(lambda: not watch.present(), DEADLINE)
                seconds[f"gone {count}"] = time.monotonic() - started
    return found


def _pod(name: str, image: str) -> dict[str, object]:
    script = 'trap "exit 0" TERM; while :; do sleep 1 & wait $!; done'
    container = {"name": "bare", "image": image, "command": ["sh", "-c", script]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container]}}
