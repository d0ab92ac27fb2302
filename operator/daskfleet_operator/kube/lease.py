"""Leader election on a Lease: of several replicas one works, the others stand by with warm caches.

The holder renews every third of the lease's duration. Another takes over when it has itself seen no renewal for the
whole duration, by its own clock: clocks of different nodes are never compared. Whoever cannot renew in time stops
working before the others may begin (two thirds of the duration), and the process ends: a fresh start is the simplest
state to be in. A holder that ends in order gives the lease back, so that an upgrade costs no waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from daskfleet_operator.kube.client import Api, ApiError
from daskfleet_operator.kube.kinds import LEASE, Json

logger = logging.getLogger(__name__)


class LeadershipLost(Exception):
    """The lease could not be renewed in time."""


class Lease:
    """One replica's part in the election.

    Parameters
    ----------
    identity
        Unique among replicas: the pod's name.
    seconds
        How long a holder may be silent before another takes over.
    clock
        Monotonic seconds.
    """

    def __init__(
        self, api: Api, namespace: str, name: str, identity: str, seconds: float, clock: Callable[[], float]
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seconds = seconds
        self._clock = clock
        self._seen: tuple[str, str] | None = None  # holder and renewal last seen
        self._seen_at = 0.0
        self._renewed_at = 0.0
        self._lease: Json | None = None

    async def acquire(self) -> None:
        """Wait until this replica holds the lease."""
        while True:
            if await self._try():
                break
            await asyncio.sleep(min(1.0, self._seconds / 5))
        logger.info("%s leads: it holds the lease %s/%s", self._identity, self._namespace, self._name)

    async def keep(self) -> None:
        """Renew for ever.

        Raises
        ------
        LeadershipLost
            If that failed for two thirds of the lease's duration, or another holds it.
        """
        while True:
            await asyncio.sleep(self._seconds / 6 if self._late() else self._seconds / 3)
            try:
                async with asyncio.timeout(self._seconds / 3):
                    held = await self._try()
            except TimeoutError:
                held = False
            if not held and (self._clock() - self._renewed_at > 2 * self._seconds / 3 or self._held_by_other()):
                raise LeadershipLost(f"the lease {self._namespace}/{self._name} is no longer {self._identity}'s")

    async def release(self) -> None:
        """Give the lease back, so that the next replica need not wait for it to run out."""
        if self._lease is None or self._held_by_other():
            return
        self._lease["spec"]["holderIdentity"] = ""
        try:
            async with asyncio.timeout(2):
                await self._api.replace(LEASE, self._namespace, self._name, self._lease)
        except (ApiError, TimeoutError) as error:
            logger.info("the lease could not be given back: %s", error)

    def _late(self) -> bool:
        return self._clock() - self._renewed_at > self._seconds / 3 + 1

    def _held_by_other(self) -> bool:
        return self._lease is not None and self._lease["spec"].get("holderIdentity") not in (self._identity, "")

    async def _try(self) -> bool:
        """Take or renew the lease if that is allowed now."""
        try:
            lease = await self._read()
            holder = lease["spec"].get("holderIdentity") or ""
            renewal = holder, lease["spec"].get("renewTime") or ""
            if renewal != self._seen:
                self._seen, self._seen_at = renewal, self._clock()
            expired = self._clock() - self._seen_at > float(lease["spec"].get("leaseDurationSeconds") or 0)
            if holder not in ("", self._identity) and not expired:
                self._lease = lease
                return False
            started = self._clock()
            self._lease = await self._api.replace(LEASE, self._namespace, self._name, self._claim(lease, holder))
            self._renewed_at = started
            return True
        except ApiError as error:
            if error.reason not in ("Conflict", "AlreadyExists"):  # those mean that another was quicker
                logger.warning("lease %s/%s: %s", self._namespace, self._name, error)
            return False

    async def _read(self) -> Json:
        try:
            return await self._api.get(LEASE, self._namespace, self._name)
        except ApiError as error:
            if error.status != 404:
                raise
        head = {"name": self._name, "namespace": self._namespace}
        body = {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": head, "spec": {}}
        return await self._api.create(LEASE, self._namespace, body)

    def _claim(self, lease: Json, holder: str) -> Json:
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict(lease["spec"]) | {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._seconds)),
            "renewTime": moment,
        }
        if holder != self._identity:
            spec["acquireTime"] = moment
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        return {**lease, "spec": spec}
