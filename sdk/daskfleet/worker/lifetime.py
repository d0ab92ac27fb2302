"""How long a worker lives before it hands its data over and leaves, or starts anew (``lifetime``)."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from daskfleet import config

if TYPE_CHECKING:
    from daskfleet.worker.server import Worker

logger = logging.getLogger(__name__)


class Lifetime:
    """A worker's time.

    Parameters
    ----------
    lifetime, stagger
        Seconds, or texts such as ``"1 hour"``: how long, and how much sooner or later at most, by chance. What is not
        given is configured as ``distributed.worker.lifetime.*``; no lifetime, or 0, is one without end.
    restart
        Whether another worker follows.
    """

    def __init__(self, lifetime: float | str | None, stagger: float | str | None, restart: bool | None) -> None:
        duration = config.seconds("distributed.worker.lifetime.duration", lifetime)
        most = config.seconds("distributed.worker.lifetime.stagger", stagger) or 0.0
        self.seconds = max(0.0, duration + random.uniform(-most, most)) if duration else None
        self.restart = bool(config.get("distributed.worker.lifetime.restart") if restart is None else restart)

    async def watch(self, worker: Worker) -> None:
        """Wait until the time is over, and end `worker` then."""
        if self.seconds is None:
            return
        await asyncio.sleep(self.seconds)
        if worker.status != "running":
            return
        logger.info("the lifetime of %s is over", worker.name)
        if self.restart and worker.nanny is not None:
            await worker.replace()
        else:
            worker.renew = self.restart
            await worker.close_gracefully(reason="its lifetime is over")
