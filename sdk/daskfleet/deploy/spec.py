"""`SpecCluster`: a cluster made of a scheduler and workers that are each described by a class and its options.

SSH, batch queues and whatever users write stand on it. A manager says what its processes are (`ProcessInterface`:
start, close, finished); all else is here, once. It works by levels, as an operator does: `worker_spec` is what there is
to be, `workers` what there is, and `_correct_state` makes the second follow the first. A process that ends by itself is
started again, since the spec still has it, unless it ended on purpose; one that keeps dying is started ever more
rarely, and `wait_for_workers` then says why instead of waiting on.

`LocalCluster` is not one of these: its workers are forked off one warm helper process for all of them, which is why two
are up in a quarter of a second, and a class for each process would take that away.

The token: every cluster gets one unless `security` says otherwise, and every process whose class takes a `security`
gets it from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import itertools
import logging
import uuid
import weakref
from typing import Any, Self, cast

from daskfleet import loop as loops
from daskfleet.deploy import registry
from daskfleet.deploy.cluster import Log, Logs
from daskfleet.deploy.planned import PlannedCluster
from daskfleet.deploy.process import ProcessInterface, failure_of, load_class, takes
from daskfleet.deploy.scheduler_link import LocalLink, RemoteLink, SchedulerLink
from daskfleet.deploy.status import Status
from daskfleet.exceptions import DaskfleetError
from daskfleet.options import refuse
from daskfleet.scheduler.server import Scheduler
from daskfleet.security import Security

logger = logging.getLogger(__name__)

#: A process that lived for so many seconds was no false start.
LIVED = 30.0
#: False starts in a row after which waiting for workers is given up.
HOPELESS = 3
#: Seconds before the next attempt after a false start, doubled with each in a row, up to the last.
BACKOFF = (0.5, 300.0)

_adopting: contextvars.ContextVar[registry.Entry | None] = contextvars.ContextVar("adopting", default=None)


class SpecCluster(PlannedCluster):
    """A cluster whose scheduler and workers are described by classes and options.

    Parameters
    ----------
    workers
        ``{name: {"cls": class, "options": {…}}}``; the class is called with the scheduler's address and the options. A
        key ``"group"`` with a list of suffixes says that the process is several workers, named ``name + suffix``.
    scheduler
        ``{"cls": class, "options": {…}}``; by default a `daskfleet.Scheduler` in this process, on a free port.
    worker
        The same, for the workers that `scale` adds.
    asynchronous, loop
        As `Cluster` has them.
    security
        Token and certificates; by default a fresh token.
    silence_logs
        A logging level for daskfleet's loggers in this process, False to leave them.
    name
        By default the class's name and some random characters. `from_name` finds the cluster by it.
    shutdown_on_close
        Whether `close` ends the processes. Otherwise they go on (those that do not live in this process), and
        `from_name` finds them.
    shutdown_scheduler
        True, as in distributed.
    **others
        Parameters of distributed's: without effect, or refused with what to do instead (`daskfleet.options`).

    Examples
    --------
    >>> from daskfleet import Scheduler, Nanny  # doctest: +SKIP
    >>> cluster = SpecCluster(  # doctest: +SKIP
    ...     scheduler={"cls": Scheduler, "options": {"port": 0}},
    ...     workers={
    ...         "small": {"cls": Nanny, "options": {"nthreads": 1}},
    ...         "big": {"cls": Nanny, "options": {"nthreads": 4}},
    ...     },
    ... )
    """

    #: Whether `from_name` can start and end workers, so that they do not end with the process that calls it.
    reattaches = False

    def __init__(
        self,
        workers: dict[Any, dict[str, Any]] | None = None,
        scheduler: dict[str, Any] | None = None,
        worker: dict[str, Any] | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        security: Security | dict[str, Any] | bool | None = None,
        silence_logs: Any = False,
        name: str | None = None,
        shutdown_on_close: bool = True,
        shutdown_scheduler: bool = True,
        **others: Any,
    ) -> None:
        refuse(type(self).__name__, others)
        if not shutdown_scheduler:
            raise TypeError("a scheduler does not outlive its workers here; shutdown_on_close=False leaves them all")
        entry = _adopting.get()
        if entry is not None:
            name, security = entry.name, security or entry.security
        super().__init__(
            name=name or f"{type(self).__name__}-{uuid.uuid4().hex[:8]}",
            asynchronous=asynchronous,
            loop=loop,
            security=Security.of(security) or Security.with_token(),
        )
        if silence_logs:
            logging.getLogger("daskfleet").setLevel(silence_logs)
        self.worker_spec: dict[Any, dict[str, Any]] = copy.copy(workers or {})
        self.scheduler_spec = scheduler
        self.new_spec = worker
        self.shutdown_on_close = shutdown_on_close
        self.scheduler: Any = None
        self.workers: dict[Any, Any] = {}
        self._entry = entry
        self._scheduler_link: SchedulerLink | None = None
        self._names = itertools.count()
        self._correcting = asyncio.Lock()
        self._again = False
        self._false_starts: list[str] = []
        self._not_before = 0.0
        self._watches: set[asyncio.Task[None]] = set()
        if not self.asynchronous:
            self.sync(self._ensure_started)

    @classmethod
    def from_name(cls, name: str, **options: Any) -> Self:
        """The cluster of this name, made by this user in this or another process.

        `options` replace some of those with which it was made. It is not ended when this object closes. Where processes
        end with the program that has started them (`reattaches` is false), only that program can start and end any;
        here is a plain `SpecCluster` to connect to and look into it.

        Raises
        ------
        ValueError
            There is none; the message says which there are.
        """
        if cls is not SpecCluster and not cls.reattaches:
            return cast(Self, SpecCluster.from_name(name, **options))
        entry = registry.find(name)
        mine = f"{cls.__module__}:{cls.__qualname__}"
        given = entry.options if entry.manager == mine else {}
        token = _adopting.set(entry)
        try:
            return cls(**{**given, "shutdown_on_close": False, **options})
        finally:
            _adopting.reset(token)

    def _options(self) -> dict[str, Any]:
        """With which keyword arguments `from_name` makes this object again."""
        return {}

    # -------------------------------------------------------------------------------------------------------- life

    async def _start(self) -> None:
        if self._entry is not None:
            try:
                await self._connect(self._entry.address)
            except OSError as error:
                where = f"on {self._entry.host}, process {self._entry.pid}"
                raise DaskfleetError(f"cluster {self.name!r}, made {where}, does not answer: {error}") from None
            await self._find_workers()
        else:
            await self._start_scheduler()
            registry.record(self.name, self._info, self.security, type(self), self._options())
        self.status = Status.running  # processes are started for a running cluster only
        await self._correct_state(raising=True)
        await self._refresh()

    async def _start_scheduler(self) -> None:
        spec = self.scheduler_spec or {"cls": Scheduler, "options": {"port": 0}}
        cls, options = load_class(spec["cls"]), dict(spec.get("options", {}))
        if takes(cls, "security"):
            options.setdefault("security", self.security)
        self.scheduler = cls(**options)
        await self.scheduler
        if isinstance(self.scheduler, Scheduler):
            self._hear_of_the_retired(self.scheduler)
        await self._connect(getattr(self.scheduler, "external_address", None) or self.scheduler.address)

    async def _connect(self, address: str) -> None:
        """Speak with the scheduler from now on."""
        self.scheduler_address = address
        if isinstance(self.scheduler, Scheduler):
            self._scheduler_link = LocalLink(self.scheduler)
        else:
            self._scheduler_link = RemoteLink(address, self.security)
        await self._refresh()
        self.http_address = self._scheduler_link.http_address

    async def _find_workers(self) -> None:
        """Fill `worker_spec` and `workers` with those that an adopted cluster has already."""

    async def _stop(self) -> None:
        watches, self._watches = self._watches, set()
        for watch in watches:
            watch.cancel()
        workers, self.workers = list(self.workers.values()), {}
        self.worker_spec = {}
        link = self._scheduler_link
        in_process = isinstance(self.scheduler, Scheduler)
        if self.shutdown_on_close or in_process:
            await self._end_processes(workers, link)
            if self.scheduler is not None:
                await self.scheduler.close()
            if self._entry is None:
                registry.forget(self.name)
        if link is not None:
            link.close()

    async def _end_processes(self, workers: list[Any], link: SchedulerLink | None) -> None:
        if link is not None:
            with contextlib.suppress(OSError, TimeoutError, DaskfleetError):  # gone already
                await link.shut_down()
        for outcome in await asyncio.gather(*(worker.close() for worker in workers), return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.warning("closing a worker of %s: %s", self.name, outcome)

    # -------------------------------------------------------------------------------------------- making it so

    def _spawn_correction(self) -> None:
        task = loops.start_soon(self.loop, self._correct_state())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _correct_state(self, raising: bool = False) -> None:
        """Start and close processes until there is what `worker_spec` says."""
        self._again = True
        async with self._correcting:
            if not self._again:
                return  # whoever was ahead of us has seen our change
            self._again = False
            if self.status is not Status.running:
                return
            surplus = [name for name in self.workers if name not in self.worker_spec]
            await self._close_workers(surplus)
            wait = self._not_before - self.loop.time()
            missing = [name for name in self.worker_spec if name not in self.workers]
            if missing and wait > 0:
                self._later(wait)
                return
            errors = await self._open_workers(missing)
        if errors:
            for name in missing:
                if name not in self.workers:
                    self.worker_spec.pop(name, None)
            if raising:
                raise errors[0]

    def _later(self, seconds: float) -> None:
        ref = weakref.ref(self)

        def again() -> None:
            if (cluster := ref()) is not None and cluster.status is Status.running:
                cluster._spawn_correction()

        self.loop.call_later(seconds, again)

    async def _open_workers(self, names: list[Any]) -> list[Exception]:
        """Start the processes of these names together; the errors of those that could not be."""
        made = {}
        for name in names:
            spec = self.worker_spec[name]
            cls, options = load_class(spec["cls"]), dict(spec.get("options", {}))
            made[name] = self._make(name, cls, options)
        self.workers.update(made)
        errors = []
        for (name, worker), error in zip(
            made.items(), await asyncio.gather(*map(_started, made.values())), strict=True
        ):
            if error is None:
                self._watch(name, worker)
                continue
            self.workers.pop(name, None)
            errors.append(error)
            self._false_start(f"worker {name}: {error}")
            with contextlib.suppress(Exception):  # the first error is the one to tell
                await worker.close()
        return errors

    def _make(self, name: Any, cls: Any, options: dict[str, Any]) -> Any:
        """The object of one process, not started."""
        options.setdefault("name", name)
        if takes(cls, "security"):
            options.setdefault("security", self.security)
        return cls(getattr(self.scheduler, "contact_address", None) or self.scheduler_address, **options)

    def _watch(self, name: Any, worker: Any) -> None:
        task = self.loop.create_task(_until_finished(weakref.ref(self), name, worker))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    def _on_finished(self, name: Any, worker: Any, lived: float) -> None:
        """A process has ended: forget it if that was on purpose, else let there be another."""
        if self.workers.get(name) is not worker or self.status is not Status.running:
            return
        del self.workers[name]
        failure = failure_of(worker)
        if not failure and not getattr(worker, "renew", False):
            self.worker_spec.pop(name, None)
            return
        if failure:
            logger.warning("worker %s of %s ended: %s", name, self.name, failure)
            if lived < LIVED:
                self._false_start(f"worker {name}: {failure}")
            else:
                self._false_starts.clear()
        if name in self.worker_spec:
            self._spawn_correction()

    def _false_start(self, why: str) -> None:
        self._false_starts.append(why)
        del self._false_starts[:-10]
        pause = min(BACKOFF[0] * 2 ** (len(self._false_starts) - 1), BACKOFF[1])
        self._not_before = self.loop.time() + pause

    def _start_afresh(self) -> None:
        self._false_starts.clear()
        self._not_before = 0.0

    async def _close_workers(self, names: list[Any]) -> None:
        """Retire the workers of these processes, then end the processes."""
        if not names:
            return
        members = [member for name in names for member in self._members(name)]
        if self._scheduler_link is not None:
            with contextlib.suppress(OSError, TimeoutError, DaskfleetError):  # then they end without handing over
                registered = await self._registered()
                await self._scheduler_link.retire([member for member in members if member in registered])
        closing = [self.workers.pop(name) for name in names if name in self.workers]
        await asyncio.gather(*(worker.close() for worker in closing))
        await self._refresh()

    # ------------------------------------------------------------------------------------------------- looking

    async def _refresh(self) -> None:
        if self._scheduler_link is not None:
            self._info = await self._scheduler_link.identity()

    async def _shortfall(self) -> str:
        why = [worker.waiting_for() for worker in self.workers.values() if hasattr(worker, "waiting_for")]
        why = sorted({text for text in why if text})
        times = len(self._false_starts)
        hopeless = times >= HOPELESS and not self._info["workers"]
        if times and (hopeless or not self.worker_spec):
            raise DaskfleetError(f"workers do not start (attempts that failed: {times}); {self._false_starts[-1]}")
        return "; ".join((why or self._false_starts)[-3:])

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: bool = True) -> Logs:
        logs = Logs()
        if cluster:
            logs["Cluster"] = Log("\n".join(self._false_starts))
        parts = {"Scheduler": self.scheduler} if scheduler else {}
        parts |= {str(name): worker for name, worker in self.workers.items()} if workers else {}
        for name, process in parts.items():
            if hasattr(process, "logs"):
                logs[name] = Log(await asyncio.to_thread(process.logs))
        return logs


async def _started(worker: Any) -> Exception | None:
    try:
        await worker
    except Exception as error:
        return error
    return None


async def _until_finished(ref: weakref.ref[SpecCluster], name: Any, worker: Any) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await worker.finished()
    cluster = ref()
    if cluster is not None:
        cluster._on_finished(name, worker, getattr(worker, "lived", None) or loop.time() - begun)


__all__ = ["ProcessInterface", "SpecCluster"]
