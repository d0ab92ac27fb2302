"""The worker around its state machine: connections, threads, signals, memory figures."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from daskfleet import system
from daskfleet.comm import Connection, Listener, Pool, connect, listen, parse_address
from daskfleet.comm.addresses import interface_ip, own_ip
from daskfleet.exceptions import DaskfleetError
from daskfleet.functions import run_function
from daskfleet.http.logs import ring
from daskfleet.preload import Preloads
from daskfleet.protocol.frames import Message
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, dumps, dumps_by_value, join, loads, refusal
from daskfleet.security import Security
from daskfleet.versions import versions
from daskfleet.worker import context
from daskfleet.worker.actors import Actors
from daskfleet.worker.executor import Again, Executor, Failed, Outcome, Success, Suspended, failure, size_of, success
from daskfleet.worker.machine import Task, WorkerMachine
from daskfleet.worker.memory import MemoryMonitor, Thresholds, resident_memory
from daskfleet.worker.observing import Observer
from daskfleet.worker.plugins import WorkerPlugins
from daskfleet.worker.spill import OnDisk, SpillBuffer
from daskfleet.worker.stopping import Stopping

logger = logging.getLogger(__name__)

#: Seconds between heartbeats.
HEARTBEAT = 0.5
#: Seconds between looks at our memory (``distributed.worker.memory.monitor-interval``).
LOOK = 0.2
#: Seconds between attempts to reach the scheduler: it may be started after us.
RETRY = 0.1
#: Seconds for which attempts are short, one after the other: a Service's address swallows packets until its rules are
#: there, which takes up to a second; a path that is merely slow gets longer attempts afterwards.
EAGER = 3.0
#: Seconds that the first attempt waits for an answer; each that got none makes the next one wait half as long again.
FIRST_PATIENCE = 0.2
LONGEST_PATIENCE = 10.0
#: Values above this many bytes are pickled and unpickled outside of the event loop.
OFFLOAD = 4 << 20


class Worker:
    """Runs tasks for a scheduler; awaitable, and an asynchronous context manager.

    Parameters
    ----------
    scheduler_address
        Such as ``tcp://10.0.0.1:8786``.
    nthreads
        Tasks that may run at once; by default one per processor this process may use.
    name
        Unique in the cluster; a random one by default.
    host, port, interface, protocol
        Where to listen for the other workers. By default every interface, any free port; a range takes the first free.
    contact_address
        What others should connect to, when that differs from where it listens.
    memory_limit
        Bytes, a fraction, a text such as ``"5GB"``, ``"auto"`` or 0.
    resources
        Amounts of abstract resources, such as ``{"GPU": 2}``, that tasks may ask for.
    death_timeout
        Seconds after which it gives up on a scheduler that does not answer; None for never.
    preload, preload_argv
        Code to run as it starts (`daskfleet.preload`), and arguments for it.

    Notes
    -----
    Lost connections to the scheduler are made again, and the data is still there afterwards.
    """

    def __init__(
        self,
        scheduler_address: str,
        *,
        nthreads: int | None = None,
        name: str | int | None = None,
        host: str = "",
        port: int | range = 0,
        interface: str | None = None,
        protocol: str | None = None,
        contact_address: str | None = None,
        memory_limit: str | float | None = "auto",
        resources: dict[str, float] | None = None,
        local_directory: str | None = None,
        security: Security | None = None,
        death_timeout: float | None = None,
        dashboard_address: str | None = None,
        preload: str | Sequence[str] | None = None,
        preload_argv: Sequence[str] | None = None,
    ) -> None:
        self.scheduler_address = str(parse_address(scheduler_address))
        self.nthreads = nthreads or system.cpu_count()
        self.name = str(name) if name is not None else f"worker-{uuid.uuid4().hex[:8]}"
        self.memory_limit = system.parse_memory_limit(memory_limit, self.nthreads)
        self.resources = resources or {}
        self.security = security or Security()
        self.death_timeout = death_timeout
        self.status = "init"
        self.address = ""
        self.scheduler_id = ""
        self.predecessor = ""  # how the worker before us ended: "killed", if not by itself; "reconnected": it was we
        self._joined = asyncio.Event()
        self.machine = WorkerMachine(self.nthreads, self.resources)
        self.local_directory = local_directory
        self.dashboard_address = dashboard_address
        self._host = interface_ip(interface) if interface else host
        self._port, self._contact = port, contact_address
        self._scheme = protocol or parse_address(scheduler_address).scheme
        self._scheduler: Connection | None = None
        self._listener: Listener | None = None
        self._executor: Executor | None = None
        self._http: Any = None
        self._peers: set[Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._finished = asyncio.Event()
        self._started = time.time()
        self.stored: SpillBuffer | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.nanny: Any = None  # what `daskfleet.worker.process` gives it, to reach the nanny that watches over it
        self.plugins = WorkerPlugins(self)
        self.preloads = Preloads(self, preload, preload_argv, "worker")
        self.actors = Actors(self)
        self.client: Any = None  # of the tasks that use one (`daskfleet.client.current`)
        self.client_lock = threading.Lock()

    def __repr__(self) -> str:
        figures = f"{len(self.machine.data)} stored, {self.machine.executing} running"
        return f"<Worker {self.name!r} {self.address} {self.status}, {figures}>"

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
        if self.local_directory is not None:
            Path(self.local_directory).mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(
            prefix="daskfleet-worker-", dir=self.local_directory, ignore_cleanup_errors=True
        )
        self.local_directory = self._folder.name
        args = self.security.get_listen_args("worker")
        self._listener = await listen(self._host, self._port, self._on_peer, scheme=self._scheme, **args)
        self._pool = Pool(self.security.get_connection_args("worker"))
        self._executor = Executor(self.nthreads, loop, self._on_outcomes, self)
        self._stopping = Stopping(self, self._executor)
        self._observer = Observer(self._executor)
        ring()  # the last log lines are kept from now on
        if self.dashboard_address is not None:
            from daskfleet.worker.http import serve

            self._http = await serve(self, self.dashboard_address)
        self._set_up_memory(Path(self._folder.name))
        await self.preloads.start()
        await self._join()
        context.workers.append(self)
        self.status = "running"
        self._spawn(self._beat())
        return self

    def _set_up_memory(self, folder: Path) -> None:
        if not self.memory_limit:
            return
        thresholds = Thresholds.configured()
        target = int(thresholds.target * self.memory_limit) if thresholds.target else sys.maxsize
        self.stored = SpillBuffer(folder, target, self.machine.sizes, Thresholds.max_spill())
        self.machine.data = self.stored
        self._spawn(self._watch_memory(MemoryMonitor(self.memory_limit, thresholds, self.stored.evict)))

    async def _watch_memory(self, monitor: MemoryMonitor) -> None:
        while self.status != "closed":
            await asyncio.sleep(LOOK)
            paused = monitor.look(resident_memory())
            if paused != self.machine.paused:
                used = 100 * resident_memory() // monitor.limit
                logger.warning("%s: %d %% of the memory limit is in use", "pausing" if paused else "resuming", used)
                self.machine.paused = paused
                if self._scheduler is not None and self.status == "running":
                    self._scheduler.send(("status", "paused" if paused else "running"))
                self._advance()

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
        if self._folder is not None:
            self._folder.cleanup()
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
        deadline = None if self.death_timeout is None else time.monotonic() + self.death_timeout
        args = self.security.get_connection_args("worker")
        said, patience, started = False, FIRST_PATIENCE, time.monotonic()
        while True:
            try:
                connection = await connect(self.scheduler_address, setup=self._attach, patience=patience, **args)
                break
            except (ConnectionRefusedError, ConnectionResetError, TimeoutError, OSError) as error:
                from daskfleet.protocol.frames import ProtocolError

                if isinstance(error, ProtocolError):
                    raise
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(
                        f"no scheduler at {self.scheduler_address} within {self.death_timeout:g} s ({error}): "
                        "is it running, and reachable from here?"
                    ) from None
                if not said:
                    logger.info("waiting for the scheduler at %s: %s", self.scheduler_address, error)
                    said = True
                if not isinstance(error, TimeoutError):
                    await asyncio.sleep(RETRY)
                elif time.monotonic() - started > EAGER:
                    patience = min(1.5 * patience, LONGEST_PATIENCE)
        self.address = self._contact_address(connection)
        await connection.call(
            "register",
            "worker",
            self._identity() | {"held": self.machine.offer(), "scheduler": self.scheduler_id or None},
            timeout=30,
        )
        self._scheduler = connection
        self.predecessor = "reconnected"
        logger.info("registered with the scheduler at %s as %s (%s)", self.scheduler_address, self.name, self.address)
        self._advance()

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
                case ("close", reason):
                    self._spawn(self.close(reason))
                case _:
                    logger.warning("the scheduler sent something unknown: %.100r", message)
        self._advance()

    def _advance(self) -> None:
        """Do what the machine has decided."""
        machine = self.machine
        machine.advance()
        if machine.execute:
            assert self._executor is not None
            for task in machine.execute:
                self._executor.submit(task)
                if task.timeout is not None:
                    self._stopping.watch(task)
            machine.execute.clear()
        for address, ids in machine.gather:
            self._spawn(self._gather(address, ids))
        machine.gather.clear()
        if machine.outbox and self._scheduler is not None:
            for message in machine.outbox:
                self._scheduler.send(message)
            machine.outbox = []

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
            elif type(outcome) is Suspended:
                self._spawn(self._run_coroutine(outcome))
        self._advance()

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

    async def _call_restart(self) -> None:
        """Start anew: as a new process where there is a nanny, else without what this one holds."""
        self._spawn(self._restart())

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

    async def _call_versions(self) -> dict[str, str | None]:
        return versions()

    async def _call_logs(self) -> list[str]:
        return ring().text(self.security.token).splitlines()

    async def _call_call_stack(self, keys: Sequence[Key] | None) -> list[tuple[Key, list[str]]]:
        return self._observer.call_stacks(keys)

    async def _call_profile(self, prefix: str | None, start: float | None, stop: float | None) -> dict[str, Any]:
        return await asyncio.to_thread(self._observer.profile, prefix, start, stop)

    async def _call_dump(self) -> dict[str, Any]:
        """All that is known here, as plain data."""
        machine = self.machine
        return {
            **self._identity(),
            "status": self.status,
            "executing": machine.executing,
            "tasks": [
                {"key": task.key, "state": task.state, "attempt": task.attempt} for task in machine.tasks.values()
            ],
            "data": {str(machine.keys[id]): machine.sizes[id] for id in machine.keys},
            "fetching": [{"key": fetch.key, "from": fetch.address} for fetch in machine.fetches.values()],
            "versions": versions(),
        }

    async def _call_actor(self, key: Key, name: str, call: Serialized | None) -> Serialized:
        return await self.actors.ask(key, name, call)

    async def _call_plugin_add(self, kind: str, name: str, blob: bytes) -> None:
        await self.plugins.add(kind, name, blob)

    async def _call_plugin_remove(self, kind: str, name: str) -> None:
        await self.plugins.remove(kind, name)

    def log_event(self, topic: str | list[str], message: bytes) -> None:
        """Note an event, pickled (see `Client.log_event`); from any thread."""
        self.loop.call_soon_threadsafe(self._send_event, topic, message)

    def _send_event(self, topic: str | list[str], message: bytes) -> None:
        if self._scheduler is not None:
            self._scheduler.send(("log_event", (topic, message)))

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

    async def _beat(self) -> None:
        last_time, last_used = time.monotonic(), sum(os.times()[:2])
        while self.status != "closed":
            machine = self.machine
            now, used = time.monotonic(), sum(os.times()[:2])
            cpu = 100 * (used - last_used) / max(now - last_time, 0.01)
            last_time, last_used = now, used
            if self._scheduler is not None:
                metrics = {
                    "memory": resident_memory(),
                    "spilled": self.stored.disk_bytes if self.stored is not None else 0,
                    "cpu": cpu,
                    "executing": machine.executing,
                    "ready": len(machine.tasks) - machine.executing,
                    "in_memory": len(machine.data),
                    "time": time.time(),
                }
                self._scheduler.send(("heartbeat", metrics))
            await asyncio.sleep(HEARTBEAT)

    # Data ----------------------------------------------------------------------------------------------------------

    async def _gather(self, address: str, ids: list[int]) -> None:
        found: list[tuple[int, Key, Any, int]] = []
        try:
            rows = await self._pool.call(address, "get_data", self.scheduler_id, ids, timeout=300)
            for id, key, size, serialized in rows:
                try:
                    found.append((id, key, await _loads(serialized, size), size))
                except Exception as error:
                    reason = TypeError(f"the input {key!r} could not be brought here: {error}")
                    self.machine.refused(id, dumps_by_value(reason), str(reason))
        except (OSError, TimeoutError, DaskfleetError) as error:
            logger.warning("could not fetch %d keys from %s: %s", len(ids), address, error)
        except Exception:
            logger.exception("could not read %d keys from %s", len(ids), address)
        self.machine.arrived(address, ids, found)
        self._advance()

    def _on_peer(self, connection: Connection) -> None:
        self._peers.add(connection)
        connection.on_call = self._answer
        connection.on_close = lambda connection, _: self._peers.discard(connection)

    async def _answer(self, _: Connection, method: str, args: tuple[Any, ...]) -> Any:
        answer = getattr(self, f"_call_{method}", None)
        if answer is None:
            raise ValueError(f"a worker has no method {method!r}")
        return await answer(*args)

    async def _call_get_data(self, scheduler_id: str, ids: Sequence[int]) -> list[Any]:
        """``(id, key, nbytes, value)`` of those that are here; an id means nothing to another scheduler's workers."""
        if scheduler_id != self.scheduler_id:
            return []
        machine, rows = self.machine, []
        for id in ids:
            if id in machine.data:
                size, key = machine.sizes[id], machine.keys[id]
                try:
                    value = await _dumps(machine.data[id], size)
                except TypeError as error:
                    value = refusal(error)
                rows.append((id, key, size, value))
        return rows

    async def _call_put_data(
        self, scheduler_id: str, rows: Sequence[tuple[int, Key, Serialized]]
    ) -> list[tuple[int, int, str]]:
        """Keep scattered data; answers with ``(id, nbytes, type name)``. The ids mean nothing to us before we have
        joined that scheduler, which we have asked to when it knows our address."""
        async with asyncio.timeout(10):
            await self._joined.wait()
        if self.scheduler_id != scheduler_id:
            raise ValueError("this worker has joined another scheduler")
        kept = []
        for id, key, serialized in rows:
            value = loads(serialized)
            size = size_of(value)
            self.machine.put(id, key, value, size)
            kept.append((id, size, type(value).__name__))
        return kept

    async def _call_run(self, call: Serialized, wait: bool) -> Serialized:
        """Run a function of the user's outside of the task system (`Client.run`)."""
        context.coroutine.set(context.Coroutine(self, None))  # of this call's own task only
        function, args, kwargs = loads(call)
        return await run_function(function, args, kwargs, {"dask_worker": self}, wait)

    async def _call_identity(self) -> dict[str, Any]:
        return self._identity()

    async def _call_close(self, reason: str) -> None:
        self._spawn(self.close_gracefully(reason=reason))


async def _dumps(value: Any, size: int) -> Serialized:
    if type(value) is OnDisk:
        return join(value.serialized())
    return await asyncio.to_thread(dumps, value) if size > OFFLOAD else dumps(value)


async def _loads(serialized: Serialized, size: int) -> Any:
    return await asyncio.to_thread(loads, serialized) if size > OFFLOAD else loads(serialized)
