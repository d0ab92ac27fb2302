"""Clusters whose workers are all of one size: how many there are to be can be said in cores or memory, too."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from daskfleet.deploy.cluster import Cluster

if TYPE_CHECKING:
    from daskfleet.deploy.adaptive import Adaptive


class Sized(Cluster):
    """What such clusters have in common."""

    def _threads_per_worker(self) -> int:
        raise NotImplementedError

    def _memory_per_worker(self) -> int:
        """Bytes.

        Raises
        ------
        ValueError
            There is no limit.
        """
        raise NotImplementedError

    def scale(self, n: int | None = None, memory: str | int | None = None, cores: int | None = None) -> Any:
        """Ask for `n` workers, or for as many as have this `memory` or these `cores` together. Returns at once."""
        return self.sync(self._scale, self._how_many(n, memory, cores))

    def scale_up(self, n: int) -> Any:
        """Come up to `n` workers; never down."""
        return self.sync(self._scale, max(n, len(self.plan)))

    def scale_down(self, workers: Iterable[Any]) -> Any:
        """Close the workers of these names."""
        return self.sync(self._scale_down, [str(worker) for worker in workers])

    def adapt(
        self,
        minimum: int | None = None,
        maximum: int | float | None = None,
        *,
        minimum_cores: int | None = None,
        maximum_cores: int | None = None,
        minimum_memory: str | int | None = None,
        maximum_memory: str | int | None = None,
        Adaptive: type[Adaptive] | None = None,
        **options: Any,
    ) -> Any:
        """Let the load decide the number of workers, between bounds in workers, cores or memory.

        What is not given is configured as ``distributed.adaptive.*``; `options` are further ones of `Adaptive`, or of
        the class that is given in its place.

        Returns
        -------
        Adaptive
            What decides, with ``stop()``; calling `adapt` again replaces it.
        """
        low = [minimum] if minimum is not None else []
        low += [self._how_many(None, minimum_memory, minimum_cores)] if minimum_memory or minimum_cores else []
        high = [maximum] if maximum is not None else []
        high += [self._how_many(None, None, maximum_cores)] if maximum_cores else []
        high += [self._how_many(None, maximum_memory, None)] if maximum_memory else []
        return self._follow(Adaptive, minimum=max(low, default=None), maximum=min(high, default=None), **options)

    def _how_many(self, n: int | None, memory: str | int | None, cores: int | None) -> int:
        from dask.utils import parse_bytes

        counts = [n] if n is not None else []
        if memory is not None:
            counts.append(math.ceil(parse_bytes(memory) / self._memory_per_worker()))
        if cores is not None:
            counts.append(math.ceil(cores / self._threads_per_worker()))
        if not counts:
            raise ValueError("scale: say how many workers, or how much memory, or how many cores")
        return max(counts)
