"""One scenario, in a process of its own beside the API server; prints one line of JSON.

What is asked for and what is seen are the same for all: a namespace, so many workers on simulated nodes, one watch. The
bed's limit posts and deletes the very pods that daskfleet's operator makes, and does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import aiohttp
from daskfleet_operator.kube.client import Api
from daskfleet_operator.kube.config import load_connection
from daskfleet_operator.kube.kinds import CLUSTER, POD, WORKERGROUP
from daskfleet_operator.plan import groups
from daskfleet_operator.plan.model import Key

from .pods import PodWatch

Json = dict[str, Any]
AT_ONCE = 32  # requests of the bed's script under way
DEADLINE = 240.0  # seconds for each thing that is waited for
SIMULATED = {
    "nodeSelector": {"type": "kwok"},
    "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
}


def manifest(name: str, namespace: str, image: str, workers: int, simulated_scheduler: bool) -> Json:
    """A DaskCluster as either operator takes it; its workers fit on simulated nodes only."""
    selector = {"dask.org/cluster-name": name, "dask.org/component": "scheduler"}
    ports = [("tcp-comm", 8786), ("http-dashboard", 8787)]
    scheduler: Json = {
        "name": "scheduler",
        "image": image,
        "args": ["dask-scheduler", "--host", "0.0.0.0"],
        "ports": [{"name": port, "containerPort": number} for port, number in ports],
    }
    worker = {"name": "worker", "image": image, "args": ["dask-worker", "--name", "$(DASK_WORKER_NAME)"]}
    service = {
        "selector": selector,
        "ports": [{"name": port, "port": number, "targetPort": port, "protocol": "TCP"} for port, number in ports],
    }
    return {
        "apiVersion": CLUSTER.api_version,
        "kind": CLUSTER.name,
        "metadata": {"name": name, "namespace": namespace, "uid": "not-yet"},
        "spec": {
            "worker": {"replicas": workers, "spec": {**SIMULATED, "containers": [worker]}},
            "scheduler": {
                "spec": {**(SIMULATED if simulated_scheduler else {}), "containers": [scheduler]},
                "service": {"type": "ClusterIP", **service},
            },
        },
    }


async def bare(api: Api, namespace: str, image: str, deadline: float, workers: int) -> Json:
    """The bed's limit."""
    cluster = manifest("bed", namespace, image, workers, False)
    key = Key(namespace, "bed")
    group = groups.default_group(key, cluster)
    group["metadata"]["uid"] = "not-yet"
    pod = groups.worker_pod(key, cluster, group, "cluster.local")
    del pod["metadata"]["ownerReferences"]
    names = [f"bed-default-worker-{number:010x}" for number in range(workers)]
    connection = api.connection
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {connection.bearer()}"}
    connector = aiohttp.TCPConnector(ssl=connection.ssl_context() or True, limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask(method: str, path: str, body: Json | None = None) -> None:
            data = json.dumps(body).encode() if body else None
            async with session.request(method, connection.server + path, data=data) as answer:
                if answer.status >= 300:
                    raise RuntimeError(f"{method} {path}: {answer.status} {await answer.text()}")
                await answer.read()

        async def create() -> None:
            await asyncio.gather(*(ask("POST", POD.path(namespace), groups.named(pod, name)) for name in names))

        async def delete() -> None:
            await asyncio.gather(*(ask("DELETE", POD.path(namespace, name)) for name in names))

        return await life(PodWatch(api, namespace, deadline), workers, create, delete)


async def operated(api: Api, namespace: str, image: str, deadline: float, workers: int, scaled_down: bool) -> Json:
    """One DaskCluster whose scheduler, a real one, runs: scaled from none to all its workers, and to none again.

    dask-kubernetes asks the scheduler whom to take away, which knows none of the simulated workers, and takes nobody
    then: its cluster is deleted instead.
    """
    made = manifest("bench", namespace, image, 0, False)
    del made["metadata"]["uid"]
    await api.create(CLUSTER, namespace, made)
    ends = time.monotonic() + deadline
    while not await _runs(api, namespace):
        if time.monotonic() > ends:
            raise TimeoutError("the cluster's scheduler does not run")
        await asyncio.sleep(0.2)
    await asyncio.sleep(3)

    async def scale(replicas: int) -> None:
        await api.patch(WORKERGROUP, namespace, "bench-default", {"spec": {"worker": {"replicas": replicas}}})

    async def down() -> None:
        await (scale(0) if scaled_down else api.delete(CLUSTER, namespace, "bench"))

    return await life(PodWatch(api, namespace, deadline), workers, lambda: scale(workers), down)


async def _runs(api: Api, namespace: str) -> bool:
    """Whether the scheduler's pod is ready, and the group is there: either operator's phases mean something else."""
    params = {"labelSelector": "dask.org/component=scheduler"}
    pods = (await api.request("GET", POD.path(namespace), params=params))["items"]
    found = (await api.request("GET", WORKERGROUP.path(namespace)))["items"]
    conditions = [each for pod in pods for each in pod["status"].get("conditions") or ()]
    return bool(found) and any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


async def life(
    pods: PodWatch, workers: int, create: Callable[[], Awaitable[None]], delete: Callable[[], Awaitable[None]]
) -> Json:
    """Seconds until all workers are made, Running, and gone again. The first phase ends when all is prepared."""
    seconds: Json = {}
    async with pods as watch:
        say(seconds, "ready")
        started = time.monotonic()
        await create()
        await watch.wait(lambda: len(watch.present()) == workers)
        seconds["made"] = max(seen.made for seen in watch.present()) - started
        await watch.wait(lambda: sum(seen.runs is not None for seen in watch.present()) == workers)
        seconds["running"] = max(seen.runs or 0 for seen in watch.present()) - started
        say(seconds, "up")
        await asyncio.sleep(3)  # what follows the last pod's being Running, such as status
        started = time.monotonic()
        await delete()
        await watch.wait(lambda: not watch.present())
        seconds["gone"] = max(seen.gone or 0 for seen in watch.pods.values()) - started
        say(seconds, "down")
    return seconds


async def many(api: Api, namespace: str, image: str, deadline: float, clusters: Iterable[str], workers: int) -> Json:
    """Clusters of so many workers each, all at once, with simulated schedulers; and their deletion."""
    clusters = list(clusters)
    seconds: Json = {}
    async with PodWatch(api, namespace, deadline) as watch:
        say(seconds, "ready")
        started = time.monotonic()

        async def create(name: str) -> None:
            made = manifest(name, namespace, image, workers, True)
            del made["metadata"]["uid"]
            await api.create(CLUSTER, namespace, made)

        await asyncio.gather(*map(create, clusters))
        total = workers * len(clusters)
        await watch.wait(lambda: len(watch.present()) == total)
        seconds["made"] = time.monotonic() - started
        await watch.wait(lambda: sum(seen.runs is not None for seen in watch.present()) == total)
        seconds["running"] = time.monotonic() - started
        say(seconds, "up")
        started = time.monotonic()
        await asyncio.gather(*(api.delete(CLUSTER, namespace, name) for name in clusters))
        await watch.wait(lambda: not watch.present())
        seconds["gone"] = time.monotonic() - started
        say(seconds, "down")
    return seconds


def say(seconds: Json, phase: str) -> None:
    """Tell the parent, which counts the requests made so far and answers when it has."""
    print(json.dumps({**seconds, "phase": phase}), flush=True)
    sys.stdin.readline()


async def run(arguments: argparse.Namespace) -> None:
    connection = await load_connection(arguments.kubeconfig, None)
    async with Api(connection, timeout=60) as api:
        common = api, arguments.namespace, arguments.image, arguments.deadline
        if arguments.what == "bare":
            await bare(*common, arguments.workers)
        elif arguments.what in ("cluster", "deleted"):
            await operated(*common, arguments.workers, arguments.what == "cluster")
        else:
            names = (f"bench-{arguments.first + number}" for number in range(arguments.clusters))
            await many(*common, names, arguments.workers)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["bare", "cluster", "deleted", "many"])
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--clusters", type=int, default=1)
    parser.add_argument("--deadline", type=float, default=DEADLINE)
    parser.add_argument("--first", type=int, default=0, help="number of the first cluster, for its name")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
