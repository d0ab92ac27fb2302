"""``/api/v1``: what operators, adaptive scaling and scripts ask. Routes and answers are those of distributed's
``distributed.http.scheduler.api``; `WorkersToClose`, the ``names`` of `RetireWorkers` and the choice of workers in
`AdaptiveTarget` are ours.

A list of names in a query is separated by commas, and an empty one means none of them: an operator asks about the
workers of one group, which may have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from daskfleet import config
from daskfleet.http.server import Refused
from daskfleet.scheduler.http.handler import SchedulerHandler
from daskfleet.scheduler.state import WorkerState


class ApiHandler(SchedulerHandler):
    def names(self) -> list[str] | None:
        """The query's ``workers``, names or addresses; None without one."""
        text = self.get_query_argument("workers", None)
        return None if text is None else [name for name in text.split(",") if name]


class GetWorkers(ApiHandler):
    """``{"num_workers": 2, "workers": [{"name", "address"}]}``"""

    def get(self) -> None:
        workers = self.scheduler.state.workers.values()
        self.write_json({"num_workers": len(workers), "workers": _listed(workers)})


class AdaptiveTarget(ApiHandler):
    """``{"workers": N}`` for ``?target_duration=5s&workers=name1,name2``, both optional."""

    def get(self) -> None:
        duration = _seconds(self.get_query_argument("target_duration", "5s"))
        self.write_json({"workers": self.scheduler.adaptive_target(duration, self.names())})


class CheckIdle(ApiHandler):
    """``{"idle_since": seconds since the epoch}``, null while it is busy."""

    def get(self) -> None:
        self.write_json({"idle_since": None if self.scheduler.busy else self.scheduler.idle_since})


class WorkersToClose(ApiHandler):
    """``{"workers": [{"name", "address"}]}``: those ``n`` of ``workers`` (default all) that are cheapest to end."""

    def get(self) -> None:
        n = _count(self.get_query_argument("n", "1"))
        self.write_json({"workers": _listed(self.scheduler.workers_to_close(n, self.names()))})


class RetireWorkers(ApiHandler):
    """``{address: identity}`` of the workers retired, when what only they held has moved.

    The body has one of ``n`` (the cheapest to end), ``workers`` (addresses) and ``names``; ``close_workers`` is false
    unless given: whoever asks ends the processes. Workers that are unknown are gone already.
    """

    async def post(self) -> None:
        self.require_token()
        body = self.json_body()
        unknown = sorted(body.keys() - {"n", "workers", "names", "close_workers"})
        if unknown:
            raise Refused(400, f"unknown: {', '.join(unknown)}; expected n, workers or names, and close_workers")
        close = body.pop("close_workers", False)
        if not isinstance(close, bool):
            raise Refused(400, f"close_workers is {close!r}; expected true or false")
        if len(body) != 1:
            raise Refused(400, 'expected {"n": 1}, {"workers": ["tcp://10.0.0.1:4000"]} or {"names": ["worker-1"]}')
        retired = await self.scheduler.retire_workers(self._chosen(body), close_workers=close)
        self.write_json(retired)

    def _chosen(self, body: dict[str, Any]) -> list[WorkerState]:
        if "n" in body:
            return self.scheduler.workers_to_close(_count(body["n"]))
        ((field, given),) = body.items()
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            raise Refused(400, f"{field} is {given!r:.100}; expected a list of texts")
        return self.scheduler.select(given)


def _listed(workers: Iterable[WorkerState]) -> list[dict[str, str]]:
    return [{"name": worker.name, "address": worker.address} for worker in workers]


def _count(given: Any) -> int:
    try:
        if isinstance(given, (bool, float)):
            raise ValueError
        n = int(given)
    except (TypeError, ValueError):
        raise Refused(400, f"n is {given!r:.100}; expected a whole number") from None
    if n < 0:
        raise Refused(400, f"n is {n}; it cannot be negative")
    return n


def _seconds(text: str) -> float:
    try:
        seconds = config.parse_seconds(text)
    except (TypeError, ValueError, KeyError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise Refused(400, f"target_duration is {text!r:.100}; expected a time above 0 such as 5s or 500ms")
    return seconds
