"""Adaptive scaling from the session, for cluster managers without an operator of their own: `Adaptive`.

The scheduler knows the load and says how many workers it could use (``/api/v1/adaptive_target``); this asks it every
`interval`, and follows at once upwards, but downwards only after `wait_count` answers in a row, as work often comes in
waves and a worker costs more to start than to keep for a moment. The names and the order of decisions are those of
``distributed.deploy.Adaptive``, so that subclasses which override one of them move over.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING, Any

from daskfleet import config
from daskfleet import loop as loops
from daskfleet.client.times import seconds

if TYPE_CHECKING:
    from daskfleet.deploy.cluster import Cluster

logger = logging.getLogger(__name__)


def clamp(target: int, minimum: int, maximum: float) -> int:
    """`target` within its bounds."""
    return int(min(max(target, minimum), maximum))


class Adaptive:
    """Scales a cluster with its load.

    In difference from distributed, all but `cluster` is given by keyword.

    Parameters
    ----------
    cluster
        Held weakly: an `Adaptive` keeps no cluster alive.
    interval
        Seconds between looks, or a text such as ``"500 ms"``. What is not given, of this and the following, is
        configured as ``distributed.adaptive.*``.
    minimum, maximum
        Bounds of the number of workers.
    wait_count
        How often in a row fewer workers must be suggested before any is closed.
    target_duration
        Seconds within which the scheduler's work should be done, with which it reckons the target.
    worker_key
        Taken for compatibility: workers of one group (a job's, say) are closed together in any case, others alone.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        interval: float | str | None = None,
        minimum: int | None = None,
        maximum: float | None = None,
        wait_count: int | None = None,
        target_duration: float | str | None = None,
        worker_key: Any = None,
        **others: Any,
    ) -> None:
        if others:
            raise TypeError(
                f"{type(self).__name__}() takes no {', '.join(f'{name}=' for name in others)}: it takes interval=, "
                "minimum=, maximum=, wait_count=, target_duration= and worker_key="
            )
        interval = seconds(config.get("distributed.adaptive.interval") if interval is None else interval) or 0.0
        if target_duration is None:
            target_duration = config.get("distributed.adaptive.target-duration")
        minimum = config.get("distributed.adaptive.minimum") if minimum is None else minimum
        maximum = config.get("distributed.adaptive.maximum") if maximum is None else maximum
        wait_count = config.get("distributed.adaptive.wait-count") if wait_count is None else wait_count
        if not 0 <= minimum <= maximum:
            raise ValueError(f"adapt(minimum={minimum}, maximum={maximum}): 0 <= minimum <= maximum is needed")
        if interval <= 0:
            raise ValueError(f"interval={interval}: a positive number of seconds is needed")
        self._cluster = weakref.ref(cluster)
        self._loop = cluster.loop
        self.interval = interval
        self.minimum = minimum
        self.maximum = maximum
        self.wait_count = wait_count
        self.target_duration = seconds(target_duration) or 0.0
        self._suggested = 0
        self._task: Any = None

    @property
    def cluster(self) -> Cluster:
        cluster = self._cluster()
        if cluster is None:
            raise ReferenceError("the cluster is gone")
        return cluster

    def start(self) -> None:
        """Begin to look and follow."""
        if self._task is None:
            self._task = loops.start_soon(self._loop, self._run())

    def stop(self, reason: str = "") -> None:
        """Leave the workers as they are from now on; the `reason` is logged."""
        if self._task is not None:
            logger.info("adapting no longer%s", f": {reason}" if reason else "")
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        told = ""
        while self._cluster() is not None:
            try:
                await self.adapt()
                told = ""
            except OSError as error:  # a scheduler that restarts
                logger.info("the scheduler cannot be asked for its target: %s", error)
            except ReferenceError:
                return
            except Exception as error:
                if repr(error) != told:  # what does not pass is told once
                    logger.exception("adapting failed, and is tried again in %g s", self.interval)
                told = repr(error)
            await asyncio.sleep(self.interval)

    async def adapt(self) -> None:
        """Look once, and follow."""
        have = len(self.cluster.plan)
        match await self.recommendations(await self.safe_target()):
            case {"status": "up", "n": n}:
                logger.info("scaling up from %d to %d workers", have, n)
                await self.scale_up(n)
            case {"status": "down", "workers": names}:
                logger.info("scaling down from %d workers by %d", have, len(names))
                await asyncio.shield(self.scale_down(names))  # `stop` in the middle leaves no worker half ended

    async def recommendations(self, target: int) -> dict[str, Any]:
        """What to do about `target`.

        Returns
        -------
        dict
            ``{"status": "up", "n": number of workers}``, ``{"status": "down", "workers": names}``, or
            ``{"status": "same"}``, also while fewer workers have not been suggested often enough.
        """
        have = len(self.cluster.plan)
        self._suggested = self._suggested + 1 if target < have else 0
        if target > have:
            return {"status": "up", "n": target}
        if target < have and self._suggested >= self.wait_count:
            self._suggested = 0
            return {"status": "down", "workers": await self.workers_to_close(target)}
        return {"status": "same"}

    async def target(self) -> int:
        """How many workers the scheduler could use."""
        return await self.cluster._adaptive_target(self.target_duration)

    async def safe_target(self) -> int:
        """`target` within the bounds."""
        return clamp(await self.target(), self.minimum, self.maximum)

    async def workers_to_close(self, target: int) -> list[str]:
        """Names of the workers that are cheapest to close to come down to `target`."""
        return await self.cluster._workers_to_close(max(0, len(self.cluster.plan) - target))

    async def scale_up(self, n: int) -> None:
        """Come up to `n` workers."""
        await self.cluster._scale(n)

    async def scale_down(self, workers: list[str]) -> None:
        """Close the workers of these names."""
        if workers:
            await self.cluster._scale_down(workers)
