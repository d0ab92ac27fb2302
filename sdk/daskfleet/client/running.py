"""Functions outside of the task system: on every worker, or in the scheduler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from daskfleet.client import hardware
from daskfleet.client.core import Core
from daskfleet.client.options import worker_names
from daskfleet.protocol.serialize import Serialized, dumps, loads


class SchedulerCalls:
    """The scheduler's calls as methods, over a client's own connection: ``await client.scheduler.identity()``."""

    def __init__(self, client: Core) -> None:
        self._client = client

    @property
    def address(self) -> str:
        return self._client.scheduler_address

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._client._call, name)

    def __repr__(self) -> str:
        return f"<calls of the scheduler at {self.address}>"


class Running(Core):
    """Calls that bypass the scheduler's queue."""

    @property
    def scheduler(self) -> SchedulerCalls:
        """The scheduler, for its ``address`` and for calls that have no method here."""
        return SchedulerCalls(self)

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: str | Iterable[str] | None = None,
        wait: bool = True,
        nanny: bool = False,
        on_error: str = "raise",
        **kwargs: Any,
    ) -> Any:
        """Call a function on every worker, or those named, at once and outside of the task system.

        A parameter named ``dask_worker`` is given the worker, or with `nanny` the nanny.

        Parameters
        ----------
        nanny
            Call it in the workers' nannies instead; results are by the worker's address all the same, and workers
            without a nanny are left out. Nannies of one machine may share a process.
        on_error
            ``"raise"`` the first error, ``"return"`` errors in place of results, or ``"ignore"`` those workers.

        Returns
        -------
        dict
            Results by the worker's address.
        """
        if on_error not in ("raise", "return", "ignore"):
            raise ValueError(f'on_error={on_error!r}: expected "raise", "return" or "ignore"')
        return self._sync(self._run, dumps((function, args, kwargs)), worker_names(workers), wait, on_error, nanny)

    async def _run(
        self, call: Serialized, workers: list[str] | None, wait: bool, on_error: str, nanny: bool = False
    ) -> dict[str, Any] | None:
        rows = await self._call("run", call, workers, wait, nanny)
        if not wait:
            return None
        results = {}
        for address, outcome in rows:
            succeeded, value = loads(outcome)
            if not succeeded and on_error == "raise":
                raise value
            if succeeded or on_error == "return":
                results[address] = value
        return results

    def benchmark_hardware(self, seconds: float = 1.0) -> Any:
        """Measure the workers' disks, memories and network, for about so many seconds each.

        Returns
        -------
        dict
            ``{"disk": {"1 MiB": bytes a second, …}, "memory": …, "network": …}``: means over the workers; the network
            is that between them and is empty when there is only one.
        """
        return self._sync(self._benchmark_hardware, seconds)

    async def _benchmark_hardware(self, seconds: float) -> dict[str, dict[str, float]]:
        addresses = [worker["address"] for worker in (await self._call("identity"))["workers"].values()]
        found = {
            "disk": await self._on_workers(hardware.disk, seconds),
            "memory": await self._on_workers(hardware.memory, seconds),
            "network": {},
        }
        for number, address in enumerate(addresses if len(addresses) > 1 else ()):  # alone, or they share the network
            peers = addresses[:number] + addresses[number + 1 :]
            found["network"] |= await self._on_workers(
                hardware.network, peers, seconds / len(addresses), workers=[address]
            )
        return {
            what: {
                size: sum(rates[size] for rates in by_worker.values()) / len(by_worker)
                for size in next(iter(by_worker.values()), {})
            }
            for what, by_worker in found.items()
        }

    async def _on_workers(self, function: Any, *args: Any, workers: list[str] | None = None) -> dict[str, Any]:
        found = await self._run(dumps((function, args, {})), workers, True, "raise")
        assert found is not None  # it has waited
        return found

    def run_on_scheduler(self, function: Callable[..., Any], *args: Any, wait: bool = True, **kwargs: Any) -> Any:
        """Call a function in the scheduler's process; a parameter named ``dask_scheduler`` is given the scheduler."""
        return self._sync(self._run_on_scheduler, dumps((function, args, kwargs)), wait)

    async def _run_on_scheduler(self, call: Serialized, wait: bool) -> Any:
        outcome = await self._call("run_on_scheduler", call, wait)
        if not wait:
            return None
        succeeded, value = loads(outcome)
        if not succeeded:
            raise value
        return value
