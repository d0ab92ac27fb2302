"""The worker around its state machine: connections, threads, signals, memory figures.

Whatever happens, a message of the scheduler, an outcome of a thread, data that has come, changes the machine, and
`_advance` then does what the machine has decided: that is the whole of it. What has a concern of its own (data, memory,
spilling, actors, plugins, stopping) is a module of its own and met here once, in the constructor. That has all
parameters of distributed's worker, which with their explanation are a fifth of this module, and the reason for its
length.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from daskfleet import config, options, system
from daskfleet import scheduler_file as files
from daskfleet.comm import Connection, Listener, Pool, listen, parse_address, reach
from daskfleet.comm.addresses import interface_ip, own_ip
from daskfleet.exceptions import DaskfleetError
from daskfleet.http.logs import ring
from daskfleet.plugins import WorkerPlugin, plugin_name
from daskfleet.preload import Preloads
from daskfleet.protocol.frames import Message
from daskfleet.protocol.serialize import dumps, dumps_by_value
from daskfleet.security import Security
from daskfleet.worker import context
from daskfleet.worker.actors import Actors
from daskfleet.worker.answers import Answers
from daskfleet.worker.data import Data, Holdings
from daskfleet.worker.executor import Again, Deprived, Executor, Failed, Outcome, Success, Suspended, failure, success
from daskfleet.worker.folder import Folder
from daskfleet.worker.health import beat, watch_memory
from daskfleet.worker.lifetime import Lifetime
from daskfleet.worker.machine import Task, WorkerMachine
from daskfleet.worker.memory import MemoryMonitor, Thresholds
from daskfleet.worker.observing import Observer
from daskfleet.worker.pieces import SUFFIX, inherit
from daskfleet.worker.plugins import WorkerPlugins
from daskfleet.worker.shelf import Shelf
from daskfleet.worker.spill import SpillBuffer, Spilling
from daskfleet.worker.stopping import Stopping

logger = logging.getLogger(__name__)


class Worker:
    """Runs tasks for a scheduler; awaitable, and an asynchronous context manager.

    Parameters
    ----------
    scheduler_address, scheduler_port
        Such as ``tcp://10.0.0.1:8786``, or a host and a port.
    scheduler_file
        File that says so instead (``dask-scheduler --scheduler-file``), now and whenever the scheduler has been lost:
        it may have been started anew on another host.
    nthreads
        Tasks that may run at once; by default one per processor this process may use.
    name
        Unique in the cluster; a random one by default.
    host, port, interface, protocol
        Where to listen for the other workers. By default every interface, any free port; a range takes the first free.
    contact_address
        What others should connect to, when that differs from where it listens.
    scheduler_sni
        Name to ask for when connecting to the scheduler under TLS, for proxies that route by it.
    memory_limit
        Bytes, a fraction, a text such as ``"5GB"``, ``"auto"`` or 0.
    resources
        Amounts of abstract resources, such as ``{"GPU": 2}``, that tasks may ask for.
    death_timeout
        Seconds, or a text such as ``"1 minute"``, after which it gives up on a scheduler that does not answer; None for
        never.
    lifetime, lifetime_stagger, lifetime_restart
        Seconds, or texts such as ``"1 hour"``: hand the data over and leave after so long, at most so much sooner or
        later by chance; and whether to start anew instead, for which there must be a nanny, or something else that
        looks at `renew`. What is not given is configured as ``distributed.worker.lifetime.*``.
    dashboard_address, dashboard, http_prefix
        ``[host]:port`` of an HTTP server with health and metrics, or ``dashboard=True`` for one on any port; by default
        none. The path before its own.
    preload, preload_argv
        Code to run as it starts (`daskfleet.preload`), and arguments for it.
    plugins
        To be set up as it starts.
    **others
        Parameters of distributed's: without effect, or refused with what to do instead (`daskfleet.options`).

    Attributes
    ----------
    renew
        Whether it has ended for another to take its place: its lifetime was over.

    Notes
    -----
    Lost connections to the scheduler are made again, and the data is still there afterwards.
    """

    def __init__(
        self,
        scheduler_address: str | None = None,
        scheduler_port: int | None = None,
        *,
        scheduler_file: str | None = None,
        nthreads: int | None = None,
        name: str | int | None = None,
        host: str | None = "",
        port: int | range | None = 0,
        interface: str | None = None,
        protocol: str | None = None,
        contact_address: str | None = None,
        memory_limit: str | float | None = "auto",
        resources: dict[str, float] | None = None,
        local_directory: str | None = None,
        security: Security | dict[str, Any] | None = None,
        death_timeout: float | str | None = None,
        lifetime: float | str | None = None,
        lifetime_stagger: float | str | None = None,
        lifetime_restart: bool | None = None,
        dashboard_address: str | None = None,
        dashboard: bool | None = None,
        http_prefix: str | None = None,
        scheduler_sni: str | None = None,
        preload: str | Sequence[str] | None = None,
        preload_argv: Sequence[str] | None = None,
        plugins: Sequence[WorkerPlugin] = (),
        **others: Any,
    ) -> None:
        options.refuse("Worker", others)
        given = Security.of(security)
        self.security = given or Security()
        if scheduler_address is None:
            if scheduler_file is None:
                raise ValueError("a worker needs the scheduler's address, or a scheduler_file that has it")
            info = files.read(scheduler_file)
            scheduler_address = info.address
            self.security = info.secured(given) or self.security
        if scheduler_port is not None:
            scheduler_address = f"{scheduler_address}:{scheduler_port}"
        self.scheduler_file = scheduler_file
        self.scheduler_address = str(parse_address(scheduler_address))
        self.nthreads = nthreads or system.cpu_count()
        self.name = str(name) if name is not None else f"worker-{uuid.uuid4().hex[:8]}"
        self.memory_limit = system.parse_memory_limit(memory_limit, self.nthreads)
        self.resources = resources or {
            name: float(amount) for name, amount in config.get("distributed.worker.resources").items()
        }
        self.death_timeout = config.as_seconds(death_timeout)
        self.lifetime, self.renew = Lifetime(lifetime, lifetime_stagger, lifetime_restart), False
        self.status = "init"
        self.address = ""
        self.scheduler_id = ""
        self.predecessors_folder: str | None = None  # of one that has died, whose nanny is ours
        self._inherited: list[Any] = []
        # How the worker before us ended: for want of "memory"; "killed" by somebody; "reconnected": it was we.
        self.predecessor = ""
        self._joined = asyncio.Event()
        self.stirred = asyncio.Event()  # somebody has wanted something
        self.pace = 1  # factor of the time between heartbeats, set by the scheduler
        self.machine = WorkerMachine(self.nthreads, self.resources)
        self._remembered: dict[Any, Any] | None = None  # rows, for a scheduler that comes after this one
        self.local_directory = local_directory
        self.dashboard_address = dashboard_address or (":0" if dashboard else None)
        self._http_prefix, self._sni = http_prefix, scheduler_sni
        self._host = interface_ip(interface) if interface else host or ""
        self._port, self._contact = port or 0, contact_address
        self._scheme = (protocol or parse_address(scheduler_address).scheme).removesuffix("://")
        self._scheduler: Connection | None = None
        self._listener: Listener | None = None
        self._executor: Executor | None = None
        self._http: Any = None
        self._peers: set[Connection] = set()
        self._pool = Pool(self.security.get_connection_args("worker"))
        self._tasks: set[asyncio.Task[Any]] = set()
        self._finished = asyncio.Event()
        self._started = time.time()
        self.stored: SpillBuffer | None = None
        self.spilling: Spilling | None = None
        self._folder: Folder | None = None
        self.nanny: Any = None  # what `daskfleet.worker.process` gives it, to reach the nanny that watches over it
        self._handlers: dict[str, Callable[..., Awaitable[Any]]] = {}
        self._data = Data(self)
        Answers(self)
        self.plugins = WorkerPlugins(self)
        self._first_plugins = plugins
        self.preloads = Preloads(self, preload, preload_argv, "worker")
        self.actors = Actors(self)
        self.pieces = Shelf()
        # Answers that go on after they are given, as long as the connection does.
        self._lasting: dict[str, Callable[..., Awaitable[Any]]] = {
            "pieces": self.pieces.portion,
            "lend_data": self._data.lend_data,
            "take_back": self._data.take_back,
        }
        self.client: Any = None  # of the tasks that use one (`daskfleet.client.current`)
        self.client_lock = threading.Lock()

    def __repr__(self) -> str:
        figures = f"{len(self.machine.data)} stored, {self.machine.executing} running"
        return f"<Worker {self.name!r} {self.address} {self.status}, {figures}>"

    @property
    def data(self) -> Mapping[Any, Any]:
        """What it holds, by key: in memory or on disk."""
        return Holdings(self.machine)

    def get_current_task(self) -> Any:
        """The key of the calling task; raises ValueError outside of one."""
        if (key := context.current_key()) is None:
            raise ValueError("get_current_task() works inside a task only")
        return key

    # Life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> Worker:
        """Listen, and register with the scheduler, which may still be starting.

        Raises
        ------
        TimeoutError
            The scheduler was not there within `death_timeout`.
        ProtocolError, AuthenticationError, ValueError
            Something else is there, our token is wrong, or the scheduler does not want us (the name is taken).
        """
        loop = self.loop = asyncio.get_running_loop()
        parent = self.local_directory or config.get("temporary-directory")
        self._folder = Folder(parent, self.predecessors_folder, keep=(SUFFIX,))
        self.local_directory = str(self._folder.path)
        args = self.security.get_listen_args("worker")
        self._listener = await listen(self._host, self._port, self._on_peer, scheme=self._scheme, **args)
        self._executor = Executor(self.nthreads, loop, self._on_outcomes, self)
        self._stopping = Stopping(self, self._executor)
        self._observer = Observer(self._executor)
        ring()  # the last log lines are kept from now on
        if self.dashboard_address is not None:
            from daskfleet.worker.http import serve

            self._http = await serve(self, self.dashboard_address)
            self._http.mounts.put_below(self._http_prefix)
        self._set_up_memory(self._folder.path)
        for plugin in self._first_plugins:
            await self.plugins.put(plugin, plugin_name(plugin))
        await self.preloads.start()
        await self._join()
        if self.status == "closed":  # told to end as soon as it was there
            return self
        context.workers.append(self)
        self.status = "running"
        self._spawn(beat(self))
        self._spawn(self.lifetime.watch(self))
        threading.Thread(target=self._folder.clean_up_after_others, daemon=True).start()
        return self

    def _set_up_memory(self, folder: Path) -> None:
        if not self.memory_limit:
            return
        thresholds = Thresholds.configured()
        target = int(thresholds.target * self.memory_limit) if thresholds.target else sys.maxsize
        self.stored = SpillBuffer(
            folder, target, self.machine.sizes, config.size("distributed.worker.memory.max-spill")
        )
        self.machine.data = self.stored
        self.spilling = Spilling(self.stored, self._advance)
        self._spawn(watch_memory(self, MemoryMonitor(self.memory_limit, thresholds), self.spilling))

    def __await__(self) -> Generator[Any, None, Worker]:
        return self.start().__await__()

    async def __aenter__(self) -> Worker:
        return self if self.status == "running" else await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def finished(self) -> None:
        """Wait until the worker has closed."""
        await self._finished.wait()

    async def close(self, reason: str = "") -> None:
        """Leave at once; data that only this worker holds is lost. See `close_gracefully`."""
        if self.status == "closed":
            return
        self.status = "closed"
        if reason:
            logger.info("closing: %s", reason)
        await self.preloads.teardown()
        if self in context.workers:
            context.workers.remove(self)
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        if self._scheduler is not None:
            self._scheduler.send(("status", "closed"))
            self._scheduler.close()
        if self._listener is not None:
            self._listener.close()
        if self._http is not None:
            self._http.stop()
        for peer in list(self._peers):
            peer.close()
        if self.client is not None:
            await self.client._close()
        await self.plugins.close()
        self._pool.close()
        if self._executor is not None:
            self._executor.close()
            self._observer.close()
        if self.spilling is not None:
            await self.spilling.close()
        if self._folder is not None:
            self._folder.remove()
        self._finished.set()

    async def close_gracefully(self, timeout: float = 25.0, reason: str = "asked to") -> None:
        """Take no more tasks, hand the data over to other workers, then leave."""
        if self.status in ("closing", "closed"):
            return
        self.status = "closing"
        if self._scheduler is not None and not self._scheduler.closed:
            try:
                await self._scheduler.call("leave", timeout=timeout)
            except (OSError, TimeoutError) as error:
                logger.warning("leaving without having handed over the data: %s", error)
        await self.close(reason)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Scheduler -----------------------------------------------------------------------------------------------------

    async def _join(self) -> None:
        """Connect and register, however long that takes (up to `death_timeout`)."""
        assert self._listener is not None
        args = self.security.get_connection_args("worker")
        if self._sni:
            args["server_hostname"] = self._sni

        def where() -> str:
            self.scheduler_address = files.moved(self.scheduler_file, self.scheduler_address)
            return self.scheduler_address

        self.pace = 1
        connection = await reach(where, self._attach, self.death_timeout, args, early=True)
        try:
            await self._register(connection)
        except BaseException:  # we may be told to end meanwhile
            connection.reset_handlers()
            connection.abort()
            raise
        self._scheduler = connection
        self.predecessor = "reconnected"
        logger.info("registered with the scheduler at %s as %s (%s)", self.scheduler_address, self.name, self.address)
        self._advance()

    async def _register(self, connection: Connection) -> None:
        self.address = self._contact_address(connection)
        if self.predecessors_folder is not None:
            self._inherited, self.predecessors_folder = inherit(self), None
        await connection.call(
            "register",
            "worker",
            self._identity()
            | {
                "held": self.machine.offer(),
                "inherited": [(of, id, key, dumps(pieces)) for of, id, key, pieces in self._inherited],
                "scheduler": self.scheduler_id or None,
                "remembered": None if self._remembered is None else list(self._remembered.items()),
            },
            timeout=30,
        )

    def _contact_address(self, connection: Connection) -> str:
        assert self._listener is not None
        if self._contact:
            return str(parse_address(self._contact, default_port=self._listener.port))
        address = self._listener.address
        if self._host in ("", "0.0.0.0", "::"):
            # The address by which we reach the scheduler is the one by which its other workers reach us.
            host = parse_address(connection.local).host if connection.local else own_ip()
            address = type(address)(address.scheme, host, address.port)
        return str(address)

    def _identity(self) -> dict[str, Any]:
        services = {"dashboard": self._http.port} if self._http is not None else {}
        return {
            "type": "Worker",
            "address": self.address,
            "name": self.name,
            "host": parse_address(self.address).host,
            "nthreads": self.nthreads,
            "memory_limit": self.memory_limit or 0,
            "resources": self.resources,
            "local_directory": self.local_directory,
            "services": services,
            "pid": os.getpid(),
            "started": self._started,
            "nanny": self.nanny is not None,
            "predecessor": self.predecessor,
        }

    def _attach(self, connection: Connection) -> None:
        connection.on_messages = self._on_scheduler
        connection.on_call = self._answer
        connection.on_close = self._on_scheduler_gone

    def _on_scheduler_gone(self, connection: Connection, error: Exception | None) -> None:
        if self.status != "running":
            return
        logger.warning("lost the scheduler at %s; trying to reach it again", self.scheduler_address)
        self._scheduler = None
        self._joined.clear()
        self.machine.forget_tasks()
        self._spawn(self._rejoin())

    async def _rejoin(self) -> None:
        try:
            await self._join()
        except (OSError, ValueError, TimeoutError, DaskfleetError) as error:
            await self.close(f"cannot join the scheduler again: {error}")

    def _on_scheduler(self, _: Connection, messages: list[Message]) -> None:
        machine = self.machine
        self.stirred.set()
        for message in messages:
            match message:
                case ("run", rows):
                    machine.run(rows)
                case ("free", ids):
                    machine.free(ids)
                case ("function", id, blob):
                    machine.add_function(id, blob)
                case ("forget", ids):
                    assert self._executor is not None
                    self._executor.forget(machine.forget_functions(ids))
                case ("fetch", rows):
                    machine.fetch(rows)
                case ("plugins", rows):
                    machine.preparing = True
                    self._spawn(self._prepare(rows))
                case ("stop", ids):
                    for id in ids:
                        if (task := machine.tasks.get(id)) is not None:
                            self._stopping.stop(task)
                case ("yield", ids):
                    machine.give_back(ids)
                case ("joined", scheduler_id, ids):
                    self.scheduler_id = scheduler_id
                    self._joined.set()
                    machine.joined(ids)
                    for of, id, key, pieces in self._inherited:
                        if of == scheduler_id:  # it frees what it has no use for
                            machine.put(id, key, pieces, 0)
                    self._inherited = []
                case ("remember_all", rows):
                    self._remembered = None if rows is None else dict(rows)
                case ("remember", rows):
                    assert self._remembered is not None
                    for key, value in rows:
                        self._remembered.pop(key, None)
                        if value is not None:
                            self._remembered[key] = value
                case ("pace", factor):
                    self.pace = factor
                case ("close", reason):
                    self._spawn(self.close(reason))
                case _:
                    logger.warning("the scheduler sent something unknown: %.100r", message)
        self._advance()

    def _advance(self, *, now: bool = False) -> None:
        """Do what the machine has decided; with `now` at the end of a callback of the loop's own."""
        machine = self.machine
        machine.spilling = self.spilling is not None and self.spilling.holds_up()
        machine.advance()
        if machine.execute:
            assert self._executor is not None
            for task in machine.execute:
                self._executor.submit(task)
                if task.timeout is not None:
                    self._stopping.watch(task)
            machine.execute.clear()
        for address, ids in machine.gather:
            self._spawn(self._data.gather(address, ids))
        machine.gather.clear()
        if machine.outbox and self._scheduler is not None:
            messages, machine.outbox = machine.outbox, []
            if now:
                self._scheduler.send_now(messages)
            else:
                for message in messages:
                    self._scheduler.send(message)

    def _on_outcomes(self, outcomes: list[Outcome]) -> None:
        machine = self.machine
        for outcome in outcomes:
            if outcome.task.timeout is not None or self._stopping.given_up:
                self._stopping.ended(outcome.task)
            if type(outcome) is Success:
                machine.finished(
                    outcome.task, outcome.value, outcome.nbytes, outcome.seconds, outcome.kind, outcome.inline
                )
            elif type(outcome) is Failed:
                logger.info("task %r failed: %s", outcome.task.key, outcome.text)
                machine.failed(outcome.task, outcome.exception, outcome.traceback, outcome.text, outcome.seconds)
            elif type(outcome) is Again:
                machine.again(outcome.task)
            elif type(outcome) is Deprived:
                machine.deprived(outcome.task, outcome.copies)
            elif type(outcome) is Suspended:
                self._spawn(self._run_coroutine(outcome))
        self._advance(now=True)

    async def _run_coroutine(self, suspended: Suspended) -> None:
        task, started = suspended.task, suspended.started
        context.coroutine.set(context.Coroutine(self, task))
        self._stopping.awaiting(task)
        try:
            outcome: Outcome = success(task, await suspended.coroutine, time.perf_counter() - started)
        except BaseException as error:
            outcome = failure(task, error, time.perf_counter() - started)
        self._stopping.awaited(task)
        self._on_outcomes([outcome])

    async def _prepare(self, plugins: Sequence[tuple[str, str, bytes]]) -> None:
        await self.plugins.add_all(plugins)
        self.machine.preparing = False
        self._advance()

    async def _restart(self) -> None:
        if self.nanny is not None:
            await self.close("told to start anew")
            self.nanny.start_anew()
        if self._scheduler is not None:
            logger.info("starting anew")
            self._scheduler.reset_handlers()
            self._scheduler.close()
            await self.plugins.close()
            self.machine.forget_tasks()
            self.machine.forget_data()
            await self._rejoin()

    async def replace(self) -> None:
        """Hand the data over and have the nanny start another process in this one's place."""
        self.status = "closing"
        if self._scheduler is not None and not self._scheduler.closed:
            try:
                await self._scheduler.call("leave", timeout=25)
            except (OSError, TimeoutError) as error:
                logger.warning("leaving without having handed over the data: %s", error)
        await self._restart()

    def log_event(self, topic: str | list[str], msg: Any) -> None:
        """Note an event (see `Client.log_event`); from any thread."""
        self.loop.call_soon_threadsafe(self._send_event, topic, dumps_by_value(msg))

    def _send_event(self, topic: str | list[str], message: bytes) -> None:
        # Not sent directly: the first tasks of a worker may run before it has learnt that it is registered.
        self.machine.outbox.append(("log_event", (topic, message)))
        self._advance()

    def secede(self, task: Task, *, thread: bool) -> None:
        """Run others in place of `task`, which goes on; called from the task (`daskfleet.worker.context`)."""
        assert self._executor is not None
        if thread:
            self._executor.grow()
        self.loop.call_soon_threadsafe(self._on_machine, self.machine.secede, task)

    def rejoin(self, task: Task, *, thread: bool) -> None:
        """`task` takes up a slot again; called from the task."""
        assert self._executor is not None
        if thread:
            self._executor.shrink()
        self.loop.call_soon_threadsafe(self._on_machine, self.machine.rejoin, task)

    def _on_machine(self, event: Callable[[Task], None], task: Task) -> None:
        event(task)
        self._advance()

    def handle(self, method: str, answer: Callable[..., Awaitable[Any]]) -> None:
        """Answer calls of `method`, by whomever, with ``await answer(*args)``."""
        self._handlers[method] = answer

    def _on_peer(self, connection: Connection) -> None:
        self._peers.add(connection)
        connection.on_call = self._answer
        connection.on_close = self._on_peer_gone

    def _on_peer_gone(self, connection: Connection, error: Exception | None) -> None:
        self._peers.discard(connection)
        self._data.lender.forget(connection)

    async def _answer(self, connection: Connection, method: str, args: tuple[Any, ...]) -> Any:
        self.stirred.set()
        if method in self._lasting:
            return await self._lasting[method](connection, *args)
        answer = self._handlers.get(method)
        if answer is None:
            raise ValueError(f"a worker has no method {method!r}")
        return await answer(*args)
