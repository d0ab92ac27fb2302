"""Kubernetes Events on custom resources: what a user can act on, once, after the status says so."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from daskfleet_operator.kube.client import FIELD_MANAGER, Api, ApiError
from daskfleet_operator.kube.kinds import EVENT, Json, Kind
from daskfleet_operator.plan.conditions import timestamp
from daskfleet_operator.plan.model import Event

logger = logging.getLogger(__name__)

REPEATED_AFTER = 300.0  # seconds in which the same news is not told again


class Events:
    """Posts events; a failure to post one is logged and otherwise without consequence."""

    def __init__(self, api: Api, now: Callable[[], float]) -> None:
        self._api = api
        self._now = now
        self._told: dict[tuple[str, str], float] = {}

    async def post(self, kind: Kind, resource: Json, event: Event) -> None:
        """Post `event` on a custom resource, unless it was told a short while ago."""
        now = self._now()
        self._told = {what: at for what, at in self._told.items() if now - at < REPEATED_AFTER}
        meta = resource["metadata"]
        what = meta["uid"], event.reason
        if what in self._told:
            return
        self._told[what] = now
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{secrets.token_hex(8)}", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": kind.api_version,
                "kind": kind.name,
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
                "resourceVersion": meta["resourceVersion"],
            },
            "type": "Warning" if event.warning else "Normal",
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": FIELD_MANAGER},
            "firstTimestamp": timestamp(now),
            "lastTimestamp": timestamp(now),
            "count": 1,
        }
        try:
            await self._api.create(EVENT, meta["namespace"], body)
        except ApiError as error:
            if "being terminated" in error.message:  # the namespace goes, and nobody is left to read it
                return
            logger.warning("event %s on %s %s could not be posted: %s", event.reason, kind.name, meta["name"], error)
