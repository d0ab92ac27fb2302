"""Seconds until ten seconds of outstanding work have brought the first worker to a cluster that had none.

Run as a script; prints one line of JSON: for each try the seconds, and when the first worker's pod was made and seen to
run. Between two tries all workers go.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable

from measure import DEADLINE, REST
from pods import PodWatch

TASKS, SECONDS = 20, 0.5
AT_ONCE = {"scaleDownDelaySeconds": 0, "cooldownSeconds": 0, "scaleDownPercent": 100}
"""How the autoscaler takes workers away: the next try need not wait for its hysteresis."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--kubectl", required=True)
    parser.add_argument("--tries", type=int, required=True)
    arguments = parser.parse_args()
    from daskfleet import Client, KubeCluster

    found: list[dict[str, float]] = []
    with (
        KubeCluster(
            name=arguments.name, namespace=arguments.namespace, image=arguments.image, n_workers=0, quiet=True
        ) as cluster,
        Client(cluster) as client,
        PodWatch([arguments.kubectl], arguments.namespace) as pods,
    ):
        cluster.adapt(0, 2)
        patch = ["patch", "daskautoscaler", arguments.name, "--type=merge", "-p", json.dumps({"spec": AT_ONCE})]
        subprocess.run([arguments.kubectl, "-n", arguments.namespace, *patch], check=True, stdout=subprocess.DEVNULL)
        for _ in range(arguments.tries):
            time.sleep(REST)
            started = time.monotonic()
            known = len(pods.of("worker"))
            work = client.map(time.sleep, [SECONDS] * TASKS, pure=False)
            until(lambda: bool(client.nthreads()), "a worker comes")
            seconds = {"first worker": time.monotonic() - started}
            first = pods.of("worker")[known]
            pods.wait(lambda pod=first: pod.running is not None, DEADLINE)
            found.append(seconds | {"made": first.made - started, "seen running": (first.running or 0) - started})
            client.cancel(work)
            del work
            until(lambda: not client.nthreads(), "the workers go")
            pods.wait(lambda: not pods.present("worker"), DEADLINE)
    print(json.dumps(found))


def until(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"it did not happen within {DEADLINE:.0f} s that {what}")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
