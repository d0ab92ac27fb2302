"""retirement.py where the API server is not the one it was written for."""

from __future__ import annotations

import asyncio
from typing import Any

from daskfleet_operator import names
from daskfleet_operator.adoption import Adoption
from daskfleet_operator.kube.client import Api
from daskfleet_operator.kube.config import Connection
from daskfleet_operator.plan import model
from daskfleet_operator.pods import PodWriter
from daskfleet_operator.retirement import Retirement
from daskfleet_operator.schedulers import Schedulers
from daskfleet_operator.store import Store
from operator_builders import KEY, NOW, Json, group, pod


class EarlierDefinitions(Api):
    """An API server whose DaskWorkerGroups have no ``status.retired``: what is written there is dropped."""

    def __init__(self) -> None:
        super().__init__(Connection("http://nowhere", KEY.namespace))
        self.marked: list[str] = []

    async def request(self, method: str, path: str, **options: Any) -> Json:
        if "daskworkergroups" in path:
            made = group()
            made["metadata"]["resourceVersion"] = "2"
            return made
        name, body = path.split("/")[-2], options["body"]
        self.marked += [name for item in body["status"]["conditions"] if item["type"] == names.RETIRING]
        head = {"name": name, "namespace": KEY.namespace, "resourceVersion": "2", **body["metadata"]}
        return {"metadata": head, "spec": {"containers": []}, "status": body["status"]}


async def test_where_a_groups_record_is_dropped_each_pod_is_marked() -> None:
    api = EarlierDefinitions()
    store, schedulers = Store(lambda key: None, "cluster.local"), Schedulers(api)
    writer = PodWriter(api, store)
    adoption = Adoption(api, store, schedulers, writer, lambda: NOW)
    retirement = Retirement(
        api,
        store,
        schedulers,
        writer,
        adoption,
        beside=lambda name, work: work.close(),
        wake_in=lambda key, seconds: None,
        now=lambda: NOW,
    )
    pods = (pod(), pod())
    action = model.RetireAll("c-default", "c-default-uid", 1, pods)
    assert await asyncio.wait_for(retirement.mark_all(KEY, action), 5)
    assert sorted(api.marked) == sorted(made.name for made in pods)
