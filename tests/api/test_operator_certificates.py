"""Secrets with certificates that are deleted: they come back as they were, or it is said why they do not."""

from __future__ import annotations

import asyncio
from typing import Any

from daskfleet_operator.certificates import Certificates
from daskfleet_operator.kube.client import Api
from daskfleet_operator.kube.config import load_connection
from daskfleet_operator.kube.kinds import CLUSTER, SECRET, Json
from daskfleet_operator.plan import tls
from daskfleet_operator.plan.model import EnsureTls, Key
from daskfleet_operator.store import Store
from operator_bed import cluster_manifest

NAME = "lab-tls"


class Process:
    """What of an operator sees to certificates; all that it knows goes with it."""

    def __init__(self, api: Api, key: Key, cluster: Json) -> None:
        self._api, self._key = api, key
        self._store = Store(lambda key: None, "cluster.local")
        self._store.changed(CLUSTER, cluster)
        self._certificates = Certificates(api, self._store, lambda key, seconds: None, lambda: 1.0)
        self._body = tls.secret_body(key, cluster, NAME)

    async def ensure(self, used: bool) -> str:
        """See to the Secret; the sentence about what went wrong."""
        await self._certificates.ensure(self._key, EnsureTls(NAME, self._body, "", used))
        refusal = self._store.observed(self._key).memory.refusals.get(f"Secret/{NAME}")
        return "" if refusal is None else refusal.message


async def test_what_was_deleted_comes_back_as_it_was_as_long_as_anybody_knows_it(
    kubernetes_api: Any, namespace: str
) -> None:
    key = Key(namespace, "lab")
    async with Api(await load_connection(str(kubernetes_api.kubeconfig))) as api:
        cluster = await api.create(CLUSTER, namespace, cluster_manifest("lab"))

        async def content() -> dict[str, str] | None:
            found = await api.find(SECRET, namespace, NAME)
            return None if found is None else found["data"]

        async def lose() -> None:
            await api.delete(SECRET, namespace, NAME)
            async with asyncio.timeout(10):
                while await content() is not None:
                    await asyncio.sleep(0.05)

        first = Process(api, key, cluster)
        assert await first.ensure(used=False) == ""
        made = await content()
        assert made is not None
        second = Process(api, key, cluster)
        assert await second.ensure(used=True) == ""
        for process in (first, second):  # who made it, and who found it
            await lose()
            assert await process.ensure(used=True) == ""
            assert await content() == made
        await lose()
        third = Process(api, key, cluster)  # pods have it, and nobody else
        assert "'lab-tls' was deleted while no operator knew" in await third.ensure(used=True)
        assert await content() is None
        assert await third.ensure(used=False) == ""
        anew = await content()
        assert anew is not None and anew != made
