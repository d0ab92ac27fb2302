"""Functions outside of the task system: on every worker, or in the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from daskfleet.client.core import Core
from daskfleet.client.options import worker_names
from daskfleet.protocol.serialize import Serialized, dumps, loads


class Running(Core):
    """Calls that bypass the scheduler's queue."""

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: str | Iterable[str] | None = None,
        wait: bool = True,
        on_error: str = "raise",
        **kwargs: Any,
    ) -> Any:
        """Call a function on every worker, or those named, at once and outside of the task system.

        A parameter named ``dask_worker`` is given the worker.

        Parameters
        ----------
        on_error
            ``"raise"`` the first error, ``"return"`` errors in place of results, or ``"ignore"`` those workers.

        Returns
        -------
        dict
            Results by the worker's address.
        """
        if on_error not in ("raise", "return", "ignore"):
            raise ValueError(f'on_error={on_error!r}: expected "raise", "return" or "ignore"')
        return self._sync(self._run, dumps((function, args, kwargs)), worker_names(workers), wait, on_error)

    async def _run(self, call: Serialized, workers: list[str], wait: bool, on_error: str) -> dict[str, Any] | None:
        rows = await self._call("run", call, workers, wait)
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
