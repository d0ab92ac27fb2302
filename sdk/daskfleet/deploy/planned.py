"""How many workers a `SpecCluster` is to have: `PlannedCluster`, all that changes `worker_spec`.

Its other half, `daskfleet.deploy.spec`, makes the processes follow. What users ask for is counted in workers, in memory
or in cores; processes are started and ended whole, and one of them may be several workers, a group.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import weakref
from typing import Any

from daskfleet import system
from daskfleet.deploy import registry
from daskfleet.deploy.adaptive import Adaptive
from daskfleet.deploy.scheduler_link import LocalLink, SchedulerLink
from daskfleet.deploy.sized import Sized
from daskfleet.scheduler.server import Scheduler
from daskfleet.scheduler.state import CLOSING, WorkerState


class PlannedCluster(Sized):
    """A cluster with a plan of its processes, which scaling changes.

    Attributes
    ----------
    worker_spec
        ``{name: spec}`` of the processes that there are to be.
    workers
        ``{name: object}`` of those that there are.
    new_spec
        The spec of those that are added, None if none can be.
    """

    worker_spec: dict[Any, dict[str, Any]]
    workers: dict[Any, Any]
    new_spec: dict[str, Any] | None
    _entry: registry.Entry | None
    _scheduler_link: SchedulerLink | None
    _names: itertools.count[int]

    def _spawn_correction(self) -> None:
        """Let `workers` follow `worker_spec`, in the background."""
        raise NotImplementedError

    def _start_afresh(self) -> None:
        """Forget what failed before: whoever asks again has mended something, so there is nothing to wait for."""

    def _members(self, name: Any) -> list[str]:
        """Names of the workers that the process `name` is or will be."""
        group = self.worker_spec.get(name, self.new_spec or {}).get("group")
        return [f"{name}{suffix}" for suffix in group] if group else [str(name)]

    @property
    def _group_size(self) -> int:
        return len((self.new_spec or {}).get("group") or [""])

    @property
    def plan(self) -> set[str]:
        return {member for name in list(self.worker_spec) for member in self._members(name)}

    @property
    def requested(self) -> set[str]:
        return {member for name in list(self.workers) for member in self._members(name)}

    def _new_worker_name(self, number: int) -> Any:
        """What the process with this number is called."""
        return number

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        """``{name: spec}`` of one more process."""
        if self.new_spec is None:
            if self._entry is not None:
                where = f"process {self._entry.pid} on {self._entry.host}"
                raise ValueError(f"cluster {self.name!r} can be scaled only by the program that made it, {where}")
            raise ValueError(f"{type(self).__name__} was made without worker=…, so it cannot be scaled up")
        name = self._new_worker_name(next(self._names))
        while name in self.worker_spec or name in self.workers:
            name = self._new_worker_name(next(self._names))
        return {name: copy.copy(self.new_spec)}

    def scale(self, n: int | None = None, memory: str | int | None = None, cores: int | None = None) -> Any:
        self._start_afresh()
        return super().scale(n, memory, cores)

    @property
    def _new_worker_options(self) -> dict[str, Any]:
        """Those of the worker itself: processes that only start one have them apart, by the same name."""
        options: dict[str, Any] = (self.new_spec or {}).get("options", {})
        return dict(options.get("options", options))

    def _threads_per_worker(self) -> int:
        return int(self._new_worker_options.get("nthreads") or system.cpu_count())

    def _memory_per_worker(self) -> int:
        asked = self._new_worker_options.get("memory_limit", "auto")
        limit = system.parse_memory_limit(asked, self._threads_per_worker())
        if not limit:
            raise ValueError("the workers have no memory limit, so memory cannot say how many to have")
        return limit

    async def _scale(self, n: int) -> None:
        if n < 0:
            raise ValueError(f"scale({n}): a cluster cannot have fewer than 0 workers")
        wanted = math.ceil(n / self._group_size)
        if len(self.worker_spec) > wanted:
            for name in (await self._cheapest())[: len(self.worker_spec) - wanted]:
                del self.worker_spec[name]
        while len(self.worker_spec) < wanted:
            self.worker_spec.update(self.new_worker_spec())
        self._spawn_correction()

    async def _scale_down(self, names: list[str]) -> None:
        chosen = {str(name) for name in names}
        for name in list(self.worker_spec):
            if chosen.issuperset(self._members(name)):
                del self.worker_spec[name]
        self._spawn_correction()

    def _hear_of_the_retired(self, scheduler: Scheduler) -> None:
        """Whom a client tells to end for good counts no more, though its process may take a while to end."""
        ref = weakref.ref(self)  # the scheduler is not to keep a cluster that was dropped

        def retired(worker: WorkerState) -> None:
            if (cluster := ref()) is not None:
                cluster._on_retired(worker.name, scheduler)

        scheduler.on_retired.append(retired)

    def _on_retired(self, worker: str, scheduler: Scheduler) -> None:
        for name in self.workers:
            if worker in (members := self._members(name)):
                leaving = (each.name for each in scheduler.select(members) if each.status == CLOSING)
                if set(members) <= {worker, *leaving}:
                    self.worker_spec.pop(name, None)
                return

    async def _registered(self) -> set[str]:
        await self._refresh()
        return self.observed

    async def _cheapest(self) -> list[Any]:
        """Names of the processes, the cheapest to end first: those without a worker yet, the newest before others."""
        registered = await self._registered()
        link, order = self._scheduler_link, list(self.worker_spec)
        pending = [name for name in order if registered.isdisjoint(self._members(name))][::-1]
        ranks: dict[str, int] = {}
        if link is not None and len(pending) < len(order):
            members = [member for name in order for member in self._members(name) if member in registered]
            with contextlib.suppress(OSError):  # no dashboard to ask: the newest first
                ranks = {name: rank for rank, name in enumerate(await link.by_cost(members))}
        rest = [name for name in reversed(order) if name not in pending]
        return pending + sorted(rest, key=lambda name: max(ranks.get(member, 0) for member in self._members(name)))

    def _follow(self, adaptive: type[Adaptive] | None, **options: Any) -> Adaptive:
        if not self.http_address and not isinstance(self._scheduler_link, LocalLink):
            raise ValueError("adaptive scaling asks the scheduler over HTTP: run it with a dashboard")
        return super()._follow(adaptive, **options)

    async def _adaptive_target(self, target_duration: float) -> int:
        assert self._scheduler_link is not None
        return await self._scheduler_link.adaptive_target(target_duration)

    async def _workers_to_close(self, n: int) -> list[str]:
        names = (await self._cheapest())[: n // self._group_size]
        return [member for name in names for member in self._members(name)]
