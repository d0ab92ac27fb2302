"""Writing pods, so many at once as the API server answers before its deadline; the caches learn each answer."""

from __future__ import annotations

import asyncio
from typing import Any

from daskfleet_operator.kube.client import Api, ApiError
from daskfleet_operator.kube.kinds import POD, Json
from daskfleet_operator.store import Store

#: Pods being made, marked or deleted, over all clusters: what waits in our queue needs no deadline. Where each takes
#: 50 ms these are 320 a second, and each takes a connection, which costs both ends as much as a pod.
AT_ONCE = 16


class PodWriter:
    """Writes pods of any cluster.

    Attributes
    ----------
    slots
        To be held during a request that is not made here.
    """

    def __init__(self, api: Api, store: Store) -> None:
        self._api = api
        self._store = store
        self.slots = asyncio.Semaphore(AT_ONCE)

    async def patch(self, namespace: str, name: str, body: Json, **how: Any) -> bool:
        """Patch a pod (see `Api.patch`); False if it is gone or is another one by now."""
        try:
            async with self.slots:
                answer = await self._api.patch(POD, namespace, name, body, **how)
        except ApiError as error:
            if error.gone:
                return False
            raise
        self._store.changed(POD, answer)
        return True
