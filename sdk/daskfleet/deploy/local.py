"""`LocalCluster`: a scheduler in this process and workers in processes, or threads, of this machine.

Worker processes are forked off one small helper process, `daskfleet.worker.helper`: our own process has threads and
whatever the user has loaded, so forking it would be unsafe, and starting interpreters one by one slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import signal
import sys
import time
import uuid
from functools import partial
from typing import Any

from daskfleet import system
from daskfleet.deploy import registry
from daskfleet.deploy.cluster import Log, Logs
from daskfleet.deploy.process import load_class
from daskfleet.deploy.sized import Sized
from daskfleet.deploy.status import Status
from daskfleet.exceptions import DaskfleetError
from daskfleet.http.logs import ring
from daskfleet.options import WITHOUT_EFFECT, refuse
from daskfleet.scheduler.server import Scheduler
from daskfleet.scheduler.state import WorkerState
from daskfleet.security import Security
from daskfleet.worker.nanny import Nanny
from daskfleet.worker.server import Worker

logger = logging.getLogger(__name__)

#: Seconds in which another worker has to come while a cluster starts.
TIMEOUT = 60.0
#: Parameters of distributed's, which workers are not to be asked about.
NOT_TAKEN = frozenset({"blocked_handlers", "services", "worker_services", "service_kwargs"}) | WITHOUT_EFFECT


def shape(n_workers: int | None, threads_per_worker: int | None, processes: bool, cpus: int) -> tuple[int, int]:
    """Workers and threads of each, from what the user gave; as distributed, the processors are split evenly."""
    if n_workers is None and threads_per_worker is None:
        n_workers = max(1, round(cpus**0.5)) if processes and cpus > 4 else cpus if processes else 1
    if n_workers is None:
        n_workers = max(1, cpus // (threads_per_worker or 1)) if processes else 1
    if threads_per_worker is None:
        threads_per_worker = max(1, cpus // n_workers) if n_workers else 1
    return n_workers, threads_per_worker


class LocalCluster(Sized):
    """A cluster on this machine.

    Parameters
    ----------
    n_workers, threads_per_worker
        By default the processors are split over workers. (By position these come first here, in distributed `name`.)
    processes
        Give each worker a process; otherwise they are threads of this one.
    host
        Address to listen on; only this machine can connect by default.
    scheduler_port
        0 for any free port.
    dashboard_address
        ``":8787"`` by default (another free port if that is taken); None for no dashboard.
    worker_dashboard_address
        Such as ``":0"``: have workers serve health and metrics over HTTP; None for not.
    memory_limit
        For each worker, as `Worker` has it.
    security
        A `Security`, or True for certificates made for this cluster; by default a fresh token.
    worker_class
        Instead of `Worker`, of which it is a subclass, or the name of one.
    **worker_kwargs
        Further parameters of `Worker`.

    Attributes
    ----------
    scheduler : Scheduler
        It runs in this process.
    workers : dict
        By name: `Worker` objects, or with `processes` a `WorkerProcess` each. In difference from distributed names are
        texts, ``"0"`` and so on; ``workers[0]`` is taken too.

    Raises
    ------
    DaskfleetError
        A worker cannot start; the message says why.
    TimeoutError
        For a minute no other worker has come.

    Examples
    --------
    >>> with LocalCluster(n_workers=2) as cluster, cluster.get_client() as client:  # doctest: +SKIP
    ...     client.submit(sum, [1, 2]).result()
    3
    """

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        processes: bool | None = None,
        *,
        name: str | None = None,
        host: str | None = None,
        scheduler_port: int = 0,
        dashboard_address: str | None = ":8787",
        worker_dashboard_address: str | None = None,
        memory_limit: str | float | None = "auto",
        security: Security | dict[str, Any] | bool | None = None,
        protocol: str | None = None,
        interface: str | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        silence_logs: Any = None,
        worker_class: type[Worker] | type[Nanny] | str | None = None,
        scheduler_kwargs: dict[str, Any] | None = None,
        **worker_kwargs: Any,
    ) -> None:
        host = host or worker_kwargs.pop("ip", None) or "127.0.0.1"
        processes = processes is not False
        refuse("LocalCluster", {name: worker_kwargs.pop(name) for name in NOT_TAKEN & worker_kwargs.keys()})
        worker_class = load_class(worker_class)
        if processes and worker_class is Nanny:
            worker_class = None  # each has one anyway
        if worker_class is not None and not (isinstance(worker_class, type) and issubclass(worker_class, Worker)):
            raise ValueError(f"worker_class={worker_class!r}: expected a subclass of daskfleet.Worker")
        super().__init__(
            name=name or f"LocalCluster-{uuid.uuid4().hex[:8]}",
            asynchronous=asynchronous,
            loop=loop,
            security=Security.of(security) or Security.with_token(),
        )
        self._n_workers, self.threads_per_worker = shape(n_workers, threads_per_worker, processes, system.cpu_count())
        self.processes, self._worker_class = processes, worker_class
        self._scheduler_options = {
            "host": host,
            "port": scheduler_port,
            "interface": interface,
            "dashboard_address": dashboard_address,
            "security": self.security,
            "protocol": protocol,
            **(scheduler_kwargs or {}),
        }
        limit = system.parse_memory_limit(
            memory_limit, self.threads_per_worker, max(system.cpu_count(), self._n_workers * self.threads_per_worker)
        )
        self._worker_options = {
            "nthreads": self.threads_per_worker,
            "host": host,
            "interface": interface,
            "memory_limit": limit or 0,
            "dashboard_address": worker_dashboard_address,
            "security": self.security,
            **worker_kwargs,
        }
        self.scheduler: Scheduler | None = None
        self.workers: dict[str, Any] = _ByName()
        self._unwanted: set[str] = set()  # scaled down before they had come
        self._next = 0
        self._helper: _Helper | None = None
        if not self.asynchronous:
            self.sync(self._ensure_started)

    async def _start(self) -> None:
        self.scheduler = Scheduler(**self._scheduler_options)
        workers = self.workers  # and not `self`: the scheduler is not to keep a cluster that was dropped
        self.scheduler.on_retired.append(lambda worker: workers.pop(worker.name, None))
        self.scheduler.on_joined.append(partial(_turn_away, self.scheduler, self._unwanted))
        starting = asyncio.ensure_future(_Helper.start()) if self.processes else None
        try:
            await self.scheduler.start()
        finally:
            if starting is not None:
                self._helper = await starting
        self.scheduler_address = self.scheduler.address
        self._worker_options["scheduler_address"] = self.scheduler_address
        if self.scheduler.dashboard_port:
            host = self.scheduler_address.partition("://")[2].rpartition(":")[0]
            self.http_address = f"http://{host}:{self.scheduler.dashboard_port}"
        await self._scale(self._n_workers)
        with contextlib.suppress(OSError, ValueError):  # nowhere to write: only `daskfleet list` misses it
            identity = self.scheduler.identity()
            await asyncio.to_thread(registry.record, self.name, identity, self.security, type(self), {})
        await self._all_there(self.scheduler)
        await self._refresh()

    async def _all_there(self, scheduler: Scheduler) -> None:
        """Wait for the first workers, as long as another comes now and then."""
        there, due_at = 0, time.monotonic() + TIMEOUT
        while len(scheduler.state.workers) < self._n_workers:
            if self._helper is not None and self._helper.failure:
                raise DaskfleetError(self._helper.failure)
            if len(scheduler.state.workers) > there:
                there, due_at = len(scheduler.state.workers), time.monotonic() + TIMEOUT
            if time.monotonic() > due_at:
                raise TimeoutError(
                    f"{there} of {self._n_workers} workers have started, and no other for {TIMEOUT:g} s: is the "
                    "machine busy, or has a worker's --preload or plugin to wait for something?"
                )
            await scheduler._change(0.5)

    async def _stop(self) -> None:
        if self.scheduler is not None:
            with contextlib.suppress(OSError, ValueError):
                registry.forget(self.name)
            await self.scheduler.close("the cluster was closed", close_workers=True)
        if self._helper is not None:
            await self._helper.close()
        else:
            await asyncio.gather(*(worker.close() for worker in self.workers.values()))
        self.workers.clear()

    async def _scale(self, n: int) -> None:
        if n < 0:
            raise ValueError(f"scale({n}): a cluster cannot have fewer than 0 workers")
        starting = []
        while len(self.workers) < n:
            name, self._next = str(self._next), self._next + 1
            options = {**self._worker_options, "name": name}
            if self._helper is not None:
                assert self.scheduler is not None
                self.workers[name] = WorkerProcess(self.scheduler, name)
                self._helper.add(options, self._worker_class)
            else:
                worker = self.workers[name] = (self._worker_class or Worker)(**options)
                starting.append(self._start_here(worker))
        await asyncio.gather(*starting)
        if len(self.workers) > n and self.scheduler is not None:
            await self._scale_down(await self._workers_to_close(len(self.workers) - n))

    async def _start_here(self, worker: Worker) -> None:
        try:
            await worker
        except BaseException:  # adapting was stopped in the middle, say: no worker is left that nobody knows
            self.workers.pop(worker.name, None)
            await worker.close("it was not wanted any more")
            raise

    async def _scale_down(self, names: list[str]) -> None:
        assert self.scheduler is not None
        there = [worker for worker in self.scheduler.state.workers.values() if worker.name in names]
        ours = {name for name in names if self.workers.pop(name, None) is not None}
        self._unwanted |= ours - {worker.name for worker in there}
        await self.scheduler.retire_workers(there, close_workers=True)
        await self._refresh()

    async def _refresh(self) -> None:
        if self.scheduler is not None:
            self._info = self.scheduler.identity()

    def _threads_per_worker(self) -> int:
        return self.threads_per_worker

    def _memory_per_worker(self) -> int:
        if not self._worker_options["memory_limit"]:
            raise ValueError("the workers have no memory limit, so memory cannot say how many to have")
        return int(self._worker_options["memory_limit"])

    @property
    def requested(self) -> set[str]:
        return set(self.workers)

    async def _adaptive_target(self, target_duration: float) -> int:
        assert self.scheduler is not None
        return self.scheduler.adaptive_target(target_duration)

    async def _workers_to_close(self, n: int) -> list[str]:
        """Names of the cheapest to end: the newest of those that have not come yet before all others."""
        assert self.scheduler is not None
        there = {worker.name for worker in self.scheduler.state.workers.values()} & self.workers.keys()
        names = [name for name in reversed(self.workers) if name not in there][:n]
        if len(names) < n:
            names += [worker.name for worker in self.scheduler.workers_to_close(n - len(names), there)]
        return names

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: bool = True) -> Logs:
        assert self.scheduler is not None
        logs = Logs({"Cluster": Log("The log of a local cluster goes to this process's own.")} if cluster else {})
        if scheduler:
            logs["Scheduler"] = Log(ring().text(self.scheduler.security.token))
        if workers:
            rows = await self.scheduler.extensions["looking"].ask_workers(None, None, "logs")
            logs |= {address: Log("\n".join(lines)) for address, lines in rows}
        return logs


def _turn_away(scheduler: Scheduler, unwanted: set[str], worker: WorkerState) -> None:
    """Have a worker end that has just come and is wanted no more."""
    if worker.name in unwanted:
        unwanted.discard(worker.name)
        scheduler._spawn(scheduler.retire_workers([worker], close_workers=True))


class _ByName(dict[str, Any]):
    def __missing__(self, name: Any) -> Any:
        if isinstance(name, int) and str(name) in self:
            return self[str(name)]
        raise KeyError(name)


class WorkerProcess:
    """A worker of a `LocalCluster` that has a process of its own, as far as the scheduler knows it.

    Its nanny, which starts another in its place if it dies, is in the process that all of them are forked off.
    """

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self._scheduler, self.name = scheduler, name

    @property
    def _state(self) -> WorkerState | None:
        return next((worker for worker in self._scheduler.state.workers.values() if worker.name == self.name), None)

    @property
    def address(self) -> str:
        """``""`` while it is not there."""
        return self._state.address if self._state is not None else ""

    worker_address = address

    @property
    def pid(self) -> int | None:
        return self._state.info["pid"] if self._state is not None else None

    @property
    def status(self) -> Status:
        """``starting`` until it has joined the scheduler, and again while a nanny has to start another."""
        if self._scheduler.status != "running":
            return Status.closed
        return Status.starting if self._state is None else Status.running

    async def kill(self) -> None:
        """End its process at once; its nanny starts another."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.name!r} {self.address} {self.status}, pid {self.pid}>"


class _Helper:
    """Our end of the helper process."""

    def __init__(self, process: asyncio.subprocess.Process, answers: int) -> None:
        self._process = process
        self._answers = answers
        self.failure = ""
        self._reader = asyncio.ensure_future(self._read())

    @classmethod
    async def start(cls) -> _Helper:
        level = logging.getLogger("daskfleet").getEffectiveLevel()
        ours, theirs = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "daskfleet.worker.helper",
                str(level),
                json.dumps(sys.path),
                str(theirs),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[theirs],
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return cls(process, ours)

    def add(self, options: dict[str, Any], worker_class: type[Worker] | None) -> None:
        """Start one more worker."""
        assert self._process.stdin is not None
        blob = pickle.dumps(options)
        if worker_class is not None:  # it may be of the notebook's
            from cloudpickle import dumps

            blob = dumps({**options, "worker_class": worker_class})
        self._process.stdin.write(json.dumps(blob.hex()).encode() + b"\n")

    async def _read(self) -> None:
        answers = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(answers), os.fdopen(self._answers, "rb", buffering=0)
        )
        try:
            async for line in answers:
                self.failure = json.loads(line)["failed"]
                logger.error("a worker failed to start: %s", self.failure)
            status = await self._process.wait()
            self.failure = self.failure or f"the process that starts the workers ended with status {status}"
        finally:
            transport.close()

    async def close(self) -> None:
        """End the helper, and with it every worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._reader.cancel()
