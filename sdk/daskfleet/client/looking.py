"""Looking at the cluster: who is there, who has what, who does what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from daskfleet.client.collections import keys_of
from daskfleet.client.core import Core
from daskfleet.client.options import worker_names


class Looking(Core):
    """Questions to the scheduler."""

    def retire_workers(
        self, workers: Iterable[str] | None = None, n: int | None = None, close_workers: bool = True
    ) -> Any:
        """End workers without losing what they hold: those named, the `n` cheapest to end, or all that have nothing to
        do.

        Returns
        -------
        dict
            What is known of each, by address.
        """
        return self._sync(
            self._call, "retire_workers", None if workers is None else worker_names(workers), n, close_workers
        )

    def scheduler_info(self, n_workers: int = -1) -> Any:
        """The scheduler's identity and its workers, as ``/json/identity.json`` has them."""
        return self._sync(self._call, "identity")

    def nthreads(self, workers: Iterable[str] | None = None) -> Any:
        """Threads of each worker, by address."""
        return self._sync(self._nthreads, worker_names(workers))

    ncores = nthreads

    async def _nthreads(self, names: list[str]) -> dict[str, int]:
        workers = (await self._call("identity"))["workers"].values()
        chosen = [worker for worker in workers if not names or worker["address"] in names or worker["name"] in names]
        return {worker["address"]: worker["nthreads"] for worker in chosen}

    def who_has(self, futures: Any = None) -> Any:
        """The addresses of the workers that hold each key."""
        return self._sync(self._dict, "who_has", None if futures is None else keys_of(futures))

    def has_what(self, workers: Iterable[str] | None = None) -> Any:
        """The keys that each worker holds, by its address."""
        return self._sync(self._dict, "has_what", worker_names(workers))

    def processing(self, workers: Iterable[str] | None = None) -> Any:
        """The keys that each worker was sent and has not finished, by its address."""
        return self._sync(self._dict, "processing", worker_names(workers))

    async def _dict(self, method: str, argument: Any) -> dict[Any, tuple[Any, ...]]:
        return {name: tuple(items) for name, items in await self._call(method, argument)}
