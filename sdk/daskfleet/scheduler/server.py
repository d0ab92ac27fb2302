"""The scheduler around its state machine: its life, its timers, and what operators and dashboards ask.

Connections are `peers`, what clients ask for besides tasks is in `extensions`, HTTP in `http`; the state machine
decides (`machine`). A third of this module are the parameters of distributed's scheduler and their explanation.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from daskfleet import config, options
from daskfleet import scheduler_file as files
from daskfleet.comm import Listener, Pool, listen, parse_address
from daskfleet.comm.addresses import DEFAULT_SCHEDULER_PORT, interface_ip
from daskfleet.exceptions import NoValidWorker
from daskfleet.plugins import SchedulerPlugin, plugin_name
from daskfleet.preload import Preloads
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import dumps
from daskfleet.scheduler import extensions, retirement
from daskfleet.scheduler.adaptive import Load, adaptive_target
from daskfleet.scheduler.machine import SchedulerState
from daskfleet.scheduler.peers import Peers
from daskfleet.scheduler.plugins import SchedulerPlugins
from daskfleet.scheduler.state import (
    CLOSING,
    NO_WORKER,
    PAUSED,
    PROCESSING,
    QUEUED,
    WAITING,
    ClientState,
    TaskState,
    WorkerState,
)
from daskfleet.security import Security

logger = logging.getLogger(__name__)

#: Seconds between looks at what no message announces: idleness, imbalance, silent workers.
TICK = 0.1
#: Seconds after which users are told that all workers are too full to go on.
FULL = 10.0


class Scheduler(Peers):
    """Decides what runs where; awaitable, and an asynchronous context manager.

    Parameters
    ----------
    host, port, interface, protocol
        Where to listen: every interface and port 8786 by default; port 0 takes a free one. The protocol (``"tcp"`` or
        ``"tcp://"``, `tls`, `unix`, `inproc`) is TLS where `security` has certificates.
    contact_address
        What others should connect to, when that differs from where it listens.
    scheduler_file
        File to write the address to, for workers and clients to read. It holds the token too, of which one is made
        unless there is one. A scheduler that is started with the file of one before takes over from that: its token
        holds, and its port unless that is taken.
    dashboard_address, dashboard
        ``[host]:port`` of the HTTP server, ``":8787"`` by default; None, or ``dashboard=False``, for none.
    http_prefix
        Path before the HTTP server's, such as ``"/dask"``, behind a proxy.
    jupyter
        Serve JupyterLab below the dashboard, at ``/jupyter``.
    security
        Token and TLS certificates; by default from the environment and dask's configuration.
    idle_timeout
        Seconds, or a text such as ``"1 hour"``, without work after which it closes,
        ``distributed.scheduler.idle-timeout`` by default; 0 for never.
    worker_ttl
        Seconds, or a text, after which a worker that says nothing is given up, ``distributed.scheduler.worker-ttl`` by
        default; 0 for never.
    allowed_failures
        Workers that may die as they run a task before it is given up, ``distributed.scheduler.allowed-failures`` by
        default.
    preload, preload_argv
        Code to run as it starts (`daskfleet.preload`), and arguments for it.
    plugins
        What it is to tell of all that happens.
    **others
        Parameters of distributed's: without effect, or refused with what to do instead (`daskfleet.options`).

    Attributes
    ----------
    address
        What clients and workers connect to, for example ``tcp://10.0.0.1:8786``.
    state
        The `SchedulerState`.
    """

    def __init__(
        self,
        *,
        host: str | None = "",
        port: int = DEFAULT_SCHEDULER_PORT,
        interface: str | None = None,
        protocol: str | None = None,
        contact_address: str | None = None,
        scheduler_file: str | None = None,
        dashboard_address: str | None = ":8787",
        dashboard: bool | None = None,
        http_prefix: str | None = None,
        jupyter: bool = False,
        security: Security | dict[str, Any] | None = None,
        idle_timeout: float | str | None = None,
        worker_ttl: float | str | None = None,
        allowed_failures: int | None = None,
        preload: str | Sequence[str] | None = None,
        preload_argv: Sequence[str] | None = None,
        plugins: Sequence[SchedulerPlugin] = (),
        **others: Any,
    ) -> None:
        options.refuse("Scheduler", others)
        super().__init__(
            SchedulerState(
                allowed_failures=config.get("distributed.scheduler.allowed-failures")
                if allowed_failures is None
                else allowed_failures,
                bandwidth=config.size("distributed.scheduler.bandwidth") or 1e8,
                unknown_duration=config.seconds("distributed.scheduler.unknown-task-duration") or 0.0,
                stealing=config.get("distributed.scheduler.work-stealing"),
            )
        )
        self.worker_ttl = config.seconds("distributed.scheduler.worker-ttl", worker_ttl) or math.inf
        self._no_workers_timeout = config.seconds("distributed.scheduler.no-workers-timeout")
        self._unrunnable: dict[TaskState, float] = {}
        self._full_from: float | None = None
        self.security = Security.of(security) or Security()
        self.status = "init"
        self.idle_timeout = config.seconds("distributed.scheduler.idle-timeout", idle_timeout)
        self._idle_with_clients = bool(config.get("distributed.scheduler.idle-with-clients"))
        self._idle_from: float | None = time.monotonic()  # whose clock nobody sets
        self.started = time.time()
        self.dashboard_address = None if dashboard is False else dashboard_address
        if jupyter and self.dashboard_address is None:
            raise ValueError("jupyter needs the dashboard, below which it is served")
        self._http_prefix, self._jupyter = http_prefix, jupyter
        self.http: Any = None
        self._host = interface_ip(interface) if interface else host or ""
        self.scheduler_file, self.contact_address = scheduler_file, contact_address
        self._port = files.renew(scheduler_file, self.security, port) if scheduler_file else port
        self._scheme = (protocol or ("tls" if self.security.encrypted else "tcp")).removesuffix("://")
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._finished = asyncio.Event()
        self.on_start: list[Callable[[], Any]] = []
        self.on_restart: list[Callable[[], Any]] = []
        self.extensions: dict[str, Any] = {}
        self.plugins = SchedulerPlugins(self)
        self.preloads = Preloads(self, preload, preload_argv, "scheduler")
        extensions.install(self)
        self.plugins.back_up(self.extensions["backup"])
        self._first_plugins = plugins

    def __repr__(self) -> str:
        state = self.state
        return f"<Scheduler {self.address!r}, {len(state.workers)} workers, {len(state.tasks)} tasks>"

    # Life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> Scheduler:
        """Listen.

        Raises
        ------
        OSError
            A port is taken; the message names it.
        """
        self._listener = await listen(
            self._host, self._port, self._greet, scheme=self._scheme, **self.security.get_listen_args("scheduler")
        )
        listening = self._listener.address
        contact = self.contact_address
        self.address = str(parse_address(contact, default_port=listening.port) if contact else listening)
        self._pool = Pool(self.security.get_connection_args("scheduler"))
        if self.dashboard_address is not None:
            from daskfleet.scheduler.http import serve

            self.http = await serve(self, self.dashboard_address)
            self.http.mounts.put_below(self._http_prefix)
        if self._jupyter:
            from daskfleet.scheduler.http import jupyter

            jupyter.serve(self)
        for plugin in self._first_plugins:
            await self.plugins.add(plugin, plugin_name(plugin), False)
        await self.preloads.start()
        if self.scheduler_file:
            files.write(self.scheduler_file, self.identity(), self.security)
        self.status = "running"
        self._spawn(self._tick())
        for begin in self.on_start:
            begin()
        return self

    def __await__(self) -> Generator[Any, None, Scheduler]:
        return self.start().__await__()

    async def __aenter__(self) -> Scheduler:
        return self if self.status == "running" else await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def finished(self) -> None:
        """Wait until the scheduler has closed."""
        await self._finished.wait()

    async def close(self, reason: str = "the scheduler is closing", *, close_workers: bool = False) -> None:
        """Stop at once. Workers keep running and look for a scheduler at this address again, unless `close_workers`."""
        if self.status in ("closing", "closed"):
            return
        self.status = "closing"
        await self.preloads.teardown()
        await self.plugins.closing("before_close")
        self.status = "closed"
        await self.plugins.closing("close")
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        if self._listener is not None:
            self._listener.close()
        if self.http is not None:
            self.http.stop()
        for connection in list(self._connections.values()):
            connection.reset_handlers()
            if close_workers:  # the whole cluster ends: nobody should look for a scheduler in our place
                connection.send(("close", reason))
            connection.close()
        for connection in list(self._strangers):
            connection.close()
        self._pool.close()
        self._finished.set()

    @property
    def busy(self) -> bool:
        """Whether there is work; or, where that counts as well, somebody connected who may send some."""
        counts = self.state.counts
        if counts[WAITING] or counts[QUEUED] or counts[PROCESSING] or counts[NO_WORKER]:
            return True
        clients = () if self._idle_with_clients else self.state.clients.values()
        return any(client.worker is None and client not in self.own_clients for client in clients)

    @property
    def idle_since(self) -> float | None:
        """Seconds since the epoch; None while it is `busy`."""
        return None if self._idle_from is None else time.time() - (time.monotonic() - self._idle_from)

    @property
    def dashboard_port(self) -> int | None:
        return self.http.port if self.http is not None else None

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        seen = 0
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            seen, before = self._submissions, seen
            if self.busy:
                self._idle_from = None
                self.state.rebalance()
                self._flush()
            elif seen != before:  # tasks may come and be done between two looks
                self._idle_from = None
            elif self._idle_from is None:
                self._idle_from = now
            self.state.totals.recent.append((time.time(), self.state.totals.computed))
            for worker in list(self.state.workers.values()):
                if now - worker.last_seen > self.worker_ttl:
                    logger.warning("%r has said nothing for %g s: giving it up", worker, self.worker_ttl)
                    self._connections[worker].abort()
            self._give_up_unrunnable(now)
            self._tell_of_full_memory(now)
            if self.idle_timeout and self._idle_from is not None and now - self._idle_from > self.idle_timeout:
                logger.info("closing: idle for %g s", self.idle_timeout)
                await self.close("idle", close_workers=True)

    def _give_up_unrunnable(self, now: float) -> None:
        """Fail what no worker has come for in time (``distributed.scheduler.no-workers-timeout``)."""
        if self._no_workers_timeout is None:
            return
        self._unrunnable = {ts: self._unrunnable.get(ts, now) for ts in self.state.without_worker()}
        overdue = [ts for ts, since in self._unrunnable.items() if now - since > self._no_workers_timeout]
        for ts in overdue:
            self.state.refuse(ts, NoValidWorker(ts.key, self._no_workers_timeout))
        if overdue:
            self._flush()

    def _tell_of_full_memory(self, now: float) -> None:
        """Work waits, and every worker has paused: nobody but the user can mend that, so every client is told, once."""
        counts, workers = self.state.counts, self.state.workers.values()
        waiting = counts[QUEUED] + counts[NO_WORKER]
        if not waiting or counts[PROCESSING] or not workers or any(worker.status != PAUSED for worker in workers):
            self._full_from = None
        elif self._full_from is None:
            self._full_from = now
        elif now - self._full_from > FULL:
            self._full_from = math.inf
            text = (
                f"{waiting} tasks wait, and all workers have paused: their memory is full of results that are still "
                "wanted, and no more can be spilled to disk. Release futures, or add workers, memory or disk space."
            )
            logger.warning("%s", text)
            self.log_event("warn", (0, text, UserWarning))

    # What plugins and `run_on_scheduler` use, by distributed's names -----------------------------------------------

    @property
    def workers(self) -> dict[str, WorkerState]:
        """By address."""
        return self.state.workers

    @property
    def tasks(self) -> dict[Key, TaskState]:
        """By key."""
        return self.state.keys

    @property
    def clients(self) -> dict[str, ClientState]:
        """By id."""
        return self.state.clients

    def log_event(self, topic: str | list[str], msg: Any) -> None:
        """Note an event (see `Client.log_event`)."""
        self.extensions["events"].log(topic, dumps(msg))

    def add_plugin(self, plugin: SchedulerPlugin, *, idempotent: bool = False, name: str | None = None) -> None:
        """Tell a plugin of what happens from now on: for preloads. Its `start` is not called.

        Raises
        ------
        ValueError
            There is one of that name, and it is not `idempotent` to add it again.
        """
        name = name or plugin_name(plugin)
        if name not in self.plugins.own:
            self.plugins.put(plugin, name)
        elif not idempotent:
            raise ValueError(f"there is a scheduler plugin {name!r} already: give this one another name")

    async def remove_plugin(self, name: str) -> None:
        """Close a plugin; ValueError when there is none of that name."""
        await self.plugins.remove(name)

    # What operators and dashboards ask -----------------------------------------------------------------------------

    def select(self, names: Iterable[str] | None) -> list[WorkerState]:
        """The workers with these names or addresses, or all of them for None."""
        workers = list(self.state.workers.values())
        if names is None:
            return workers
        wanted = set(names)
        return [worker for worker in workers if worker.name in wanted or worker.address in wanted]

    def workers_to_close(self, n: int, names: Iterable[str] | None = None) -> list[WorkerState]:
        """The `n` workers, of those named, that are cheapest to end."""
        return retirement.cheapest_to_close(self.plugins.downscaling(self.select(names)), n)

    async def retire_workers(
        self, workers: Sequence[WorkerState], *, close_workers: bool = False, timeout: float = 60.0
    ) -> dict[str, Any]:
        """Send `workers` nothing more, let them finish what they run, and move what only they hold to the others.

        Returns
        -------
        dict
            The identity of each, by address, when all is done. After `timeout` seconds it is given up waiting: tasks
            that still run then will run again elsewhere. Without workers that stay, data cannot be moved and is lost.
        """
        identities = {worker.address: self.worker_identity(worker) for worker in workers}
        for worker in workers:
            self.state.set_status(worker, CLOSING)
        deadline = time.monotonic() + timeout
        asked: Counter[int] = Counter()
        while (left := deadline - time.monotonic()) > 0:
            busy = self.state.hand_over(workers, asked)
            self._flush()
            if not busy:
                break
            await self._change(min(left, 1.0))
        else:
            logger.warning("gave up waiting for %d workers to finish and hand over after %g s", len(workers), timeout)
        if close_workers:
            for worker in workers:
                if (connection := self._connections.get(worker)) is not None:
                    connection.send(("close", "retired"))
                for retired in self.on_retired:
                    retired(worker)
        return identities

    def adaptive_target(self, target_duration: float = 5.0, names: Iterable[str] | None = None) -> int:
        """How many workers the work at hand deserves (see `daskfleet.scheduler.adaptive`)."""
        state = self.state
        workers = [worker for worker in self.select(names) if worker.status != CLOSING]
        return adaptive_target(
            Load(
                occupancy=sum(worker.occupancy for worker in workers),
                waiting=state.queued_seconds(),
                n_processing=state.counts[PROCESSING],
                n_ready=state.counts[QUEUED] + state.counts[NO_WORKER],
                n_workers=len(workers),
                n_threads=sum(worker.nthreads for worker in workers),
                nbytes=sum(worker.nbytes for worker in workers),
                memory_limit=sum(worker.memory_limit for worker in workers),
                n_to_close=len(retirement.idle_surplus(workers)),
            ),
            target_duration,
        )

    def worker_identity(self, worker: WorkerState) -> dict[str, Any]:
        return {
            **worker.info,
            "status": worker.status,
            "last_seen": time.time() - (time.monotonic() - worker.last_seen),
            "metrics": worker.metrics,
            "nbytes": worker.nbytes,
            "processing": len(worker.processing),
        }

    def identity(self) -> dict[str, Any]:
        """What ``/json/identity.json`` and `Client.scheduler_info` show."""
        workers = self.state.workers.values()
        return {
            "type": "Scheduler",
            "id": self.id,
            "address": self.address,
            "services": {"dashboard": self.dashboard_port} if self.http is not None else {},
            "started": self.started,
            "n_workers": len(workers),
            "total_threads": sum(worker.nthreads for worker in workers),
            "total_memory": sum(worker.memory_limit for worker in workers),
            "workers": {worker.address: self.worker_identity(worker) for worker in workers},
        }
