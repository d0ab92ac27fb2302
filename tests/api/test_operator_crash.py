"""Operators that die after each of their writes: the last one ends where one that lived would have.

The operator's parts run here without kopf and without watches: passes, caches filled by lists, and a real API server.
Who dies has had its last request carried out and never learns of it, which is the worst that a crash can do, and
whatever it had in memory is lost. Each successor makes one write more (or two, or three …) and dies in turn.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from daskfleet_operator.app import WATCHED
from daskfleet_operator.kube.client import Api
from daskfleet_operator.kube.config import Connection, load_connection
from daskfleet_operator.kube.kinds import CLUSTER, CUSTOM_KINDS, DEPLOYMENT, JOB, POD, SECRET, WORKERGROUP, Json, Kind
from daskfleet_operator.metrics import Metrics
from daskfleet_operator.plan.model import Key
from daskfleet_operator.reconcile import Reconciler
from daskfleet_operator.schedulers import Schedulers
from daskfleet_operator.store import Store
from operator_bed import cluster_manifest, unplaced

LABEL = "dask.org/cluster-name="
CHANCE = random.Random(7)
STRIDES = (1, 2, 3)  # writes that each operator lives to make


class Crash(BaseException):
    """The process is gone: nothing may handle this."""


class MortalApi(Api):
    """Dies when so many of its writes have been carried out, one at a time: none is under way beside the last one."""

    def __init__(self, connection: Connection, writes: float) -> None:
        super().__init__(connection)
        self.written = 0
        self._writes = writes
        self._turn = asyncio.Lock()

    async def request(self, method: str, path: str, **options: Any) -> Json:
        if method == "GET" or "dryRun" in (options.get("params") or {}):
            self._live()
            return await super().request(method, path, **options)
        for _ in range(CHANCE.randrange(4)):  # who among those that start together comes first
            await asyncio.sleep(0)
        async with self._turn:
            self._live()
            answer = await super().request(method, path, **options)
            self.written += 1
            self._live()
            return answer

    def _live(self) -> None:
        if self.written >= self._writes:
            raise Crash


class Process:
    """One operator's life, for one cluster."""

    def __init__(self, api: MortalApi, schedulers: Schedulers, key: Key) -> None:
        self.api, self.key = api, key
        self.now = 1_800_000_000.0
        self.woken = False
        self.store = Store(lambda key: None, "cluster.local")
        self.reconciler = Reconciler(
            api,
            self.store,
            schedulers,
            Metrics(),
            wake=self._wake,
            wake_in=self._wake,
            now=lambda: self.now,
        )

    def _wake(self, key: Key, seconds: float = 0) -> None:
        self.woken = True

    async def settle(self) -> None:
        """Work until passes find nothing to write, though time passes, and Kubernetes has done its part."""
        quiet = 0
        while quiet < 2:
            found = await listed(self.api, self.key)
            for kind, items in found.items():
                self.store.replaced(kind, self.key.namespace, items)
            before, self.woken = self.api.written, False
            await self.reconciler.pass_over(self.key)
            quiet = quiet + 1 if self.api.written == before and not self.woken else 0
            if quiet and not (_collected(found) and all(map(_rolled_out, found[DEPLOYMENT]))):
                quiet = 0
                await asyncio.sleep(0.05)
            else:
                self.now += 5


def _rolled_out(deployment: Json) -> bool:
    """Whether its pods are what it says: their making is the work of a controller, which may be slow."""
    wanted, status = deployment["spec"]["replicas"], deployment.get("status", {})
    return status.get("observedGeneration") == deployment["metadata"]["generation"] and all(
        status.get(count, 0) == wanted for count in ("replicas", "updatedReplicas")
    )


def _collected(found: dict[Kind, list[Json]]) -> bool:
    """Whether what was deleted is gone, and all that it owned: that is a controller's work as well."""
    everything = [item["metadata"] for items in found.values() for item in items]
    there = {meta["uid"] for meta in everything}
    return not any(
        "deletionTimestamp" in meta or not all(_there(owner, there, found) for owner in meta.get("ownerReferences", ()))
        for meta in everything
    )


def _there(owner: Json, there: set[str], found: dict[Kind, list[Json]]) -> bool:
    # ReplicaSets are not watched: they go with their Deployment, and a cluster has one.
    return bool(found[DEPLOYMENT]) if owner["kind"] == "ReplicaSet" else owner["uid"] in there


async def listed(api: Api, key: Key) -> dict[Kind, list[Json]]:
    """All that belongs to the cluster, as watches would tell."""

    async def one(kind: Kind) -> list[Json]:
        named = kind in (CLUSTER, JOB)
        selector = {"fieldSelector": f"metadata.name={key.name}"} if named else {"labelSelector": LABEL + key.name}
        answer = await api.request("GET", kind.path(key.namespace), params=selector)
        return [item | {"kind": kind.name, "apiVersion": kind.api_version} for item in answer["items"]]

    kinds = (*CUSTOM_KINDS, *WATCHED)
    return dict(zip(kinds, await asyncio.gather(*map(one, kinds)), strict=True))


@asynccontextmanager
async def process(connection: Connection, key: Key, writes: float = float("inf")) -> AsyncIterator[Process]:
    async with MortalApi(connection, writes) as api, Schedulers(api) as schedulers:
        made = Process(api, schedulers, key)
        try:
            yield made
        finally:
            await made.reconciler.close()


async def state(api: Api, key: Key) -> Json:
    """Everything of the cluster, without what differs from one making to the next."""
    found: Json = {
        kind.name: sorted((_plain(kind, item, key) for item in items), key=repr)
        for kind, items in (await listed(api, key)).items()
    }
    secrets = await api.request("GET", SECRET.path(key.namespace), params={"labelSelector": LABEL + key.name})
    return found | {"tokens": len(secrets["items"])}


def _plain(kind: Kind, item: Json, key: Key) -> Json:
    meta, status = item["metadata"], item.get("status", {})
    spec = copy.deepcopy(item["spec"])
    if kind.name == "Service":
        spec = spec["ports"]
    owners = [owner["kind"] for owner in meta.get("ownerReferences", ())]
    conditions = [
        (one["type"], one["status"], one["reason"]) for one in status.get("conditions", ()) if kind in CUSTOM_KINDS
    ]
    counts = [status.get(field) for field in ("phase", "jobStatus", "replicas") if kind in CUSTOM_KINDS]
    template = (meta.get("annotations") or {}).get("kubernetes.dask.org/template-hash")
    if kind is POD:
        images = [container["image"] for container in spec["containers"]]
        retiring = [one for one in status.get("conditions", ()) if one["type"].endswith("Retiring")]
        return {"images": images, "owners": owners, "leaves": "deletionTimestamp" in meta, "marked": retiring}
    text = {"spec": spec, "owners": owners, "conditions": conditions, "counts": counts, "template": bool(template)}
    plain: Json = _renamed(text, key.name)
    return plain


def _renamed(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {inner: _renamed(item, name) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(item, name) for item in value]
    return value.replace(name, "NAME") if isinstance(value, str) else value


def cluster(name: str) -> tuple[Kind, Json]:
    return CLUSTER, unplaced(cluster_manifest(name, 2, image="example.invalid/old:1"))


def job(name: str) -> tuple[Kind, Json]:
    runner = {"schedulerName": "nobody", "containers": [{"name": "job", "image": "example.invalid/old:1"}]}
    spec = {"job": {"spec": runner}, "cluster": {"spec": unplaced(cluster_manifest(name, 1))["spec"]}}
    return JOB, {"apiVersion": JOB.api_version, "kind": JOB.name, "metadata": {"name": name}, "spec": spec}


def patched(kind: Kind, suffix: str, **spec: Any) -> Callable[[Api, Key], Any]:
    async def act(api: Api, key: Key) -> None:
        await api.patch(kind, key.namespace, key.name + suffix, {"spec": spec})

    return act


def edited(api: Api, key: Key) -> Any:
    spec = unplaced(cluster_manifest(key.name, 2, image="example.invalid/new:1"))["spec"]
    spec["scheduler"]["service"]["ports"].append({"name": "more", "port": 9000})
    return api.patch(CLUSTER, key.namespace, key.name, {"spec": spec})


LIVES: dict[str, tuple[Callable[[str], tuple[Kind, Json]], Sequence[Callable[[Api, Key], Any]]]] = {
    "cluster": (
        cluster,
        [
            patched(WORKERGROUP, "-default", worker={"replicas": 4}),
            patched(CLUSTER, "", worker={"replicas": 1}),
            edited,
            patched(CLUSTER, "", suspend=True),
            patched(CLUSTER, "", suspend=False),
        ],
    ),
    "job": (job, [patched(JOB, "", suspend=True), patched(JOB, "", suspend=False)]),
}


async def live(connection: Connection, key: Key, life: str, stride: float) -> tuple[list[Json], int]:
    """States after each act, and how many operators have died for them."""
    make, acts = LIVES[life]
    states: list[Json] = []
    deaths = 0
    async with Api(connection) as user:
        kind, manifest = make(key.name)
        await user.create(kind, key.namespace, manifest)
        for act in (None, *acts):
            if act is not None:
                await act(user, key)
            for _ in range(100):
                try:
                    async with process(connection, key, stride) as operator:
                        await operator.settle()
                    break
                except Crash:
                    deaths += 1
            else:
                raise AssertionError(f"not settled after a hundred deaths: {await state(user, key)}")
            states.append(await state(user, key))
    return states, deaths


@pytest.mark.parametrize("life", LIVES)
async def test_operators_that_die_after_each_write_end_where_one_that_lives_does(
    kubernetes_api: Any, namespace: str, life: str
) -> None:
    connection = await load_connection(str(kubernetes_api.kubeconfig))
    wanted, _ = await live(connection, Key(namespace, "peace"), life, float("inf"))
    runs = (live(connection, Key(namespace, f"dies-{stride}"), life, stride) for stride in STRIDES)
    for stride, (states, deaths) in zip(STRIDES, await asyncio.gather(*runs), strict=True):
        assert deaths > 12 / stride
        assert states == wanted, f"dying after every {stride} writes"
