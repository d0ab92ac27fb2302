"""The scheduler around its state machine: listeners, peers, timers, and the calls that are not hot.

What arrives from a peer goes straight into `SchedulerState`; when a batch of messages has been taken in, the state is
asked to schedule and its messages are sent. Calls (`_client_*`, `_worker_*`) are the rest: one coroutine each.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from typing import Any

from daskfleet.comm import Connection, Listener, Pool, listen
from daskfleet.comm.addresses import DEFAULT_SCHEDULER_PORT, interface_ip
from daskfleet.functions import run_function
from daskfleet.preload import Preloads
from daskfleet.protocol.frames import Message
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, dumps, join, loads
from daskfleet.scheduler import extensions, retirement
from daskfleet.scheduler.adaptive import Load, adaptive_target
from daskfleet.scheduler.machine import SchedulerState
from daskfleet.scheduler.plugins import SchedulerPlugins, keys_of
from daskfleet.scheduler.state import (
    CLOSING,
    NO_WORKER,
    PAUSED,
    PROCESSING,
    QUEUED,
    RUNNING,
    WAITING,
    ClientState,
    WorkerState,
)
from daskfleet.security import Security

logger = logging.getLogger(__name__)

#: Seconds between looks at what no message announces: idleness, imbalance, silent workers.
TICK = 0.1
#: Seconds for which the futures of a client are kept that has not said goodbye.
CLIENT_GRACE = 15.0
#: Seconds that workers and clients of a scheduler that is gone have to come to the one in its place.
TAKE_OVER = 20.0
#: Seconds that the nanny of a worker that has died may take to start another, which then says how the last one ended.
NANNY_TIMEOUT = 10.0
#: Seconds after which a worker that has said nothing is given up (``distributed.scheduler.worker-ttl``).
WORKER_TTL = 300.0


class Scheduler:
    """Decides what runs where; awaitable, and an asynchronous context manager.

    Parameters
    ----------
    host, port, interface, protocol
        Where to listen: every interface and port 8786 by default; port 0 takes a free one.
    dashboard_address
        ``[host]:port`` of the HTTP server, ``":8787"`` by default; None for none.
    security
        Token and TLS certificates; by default from the environment and dask's configuration.
    idle_timeout
        Seconds without work after which it closes; None for never.
    preload, preload_argv
        Code to run as it starts (`daskfleet.preload`), and arguments for it.

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
        host: str = "",
        port: int = DEFAULT_SCHEDULER_PORT,
        interface: str | None = None,
        protocol: str = "tcp",
        dashboard_address: str | None = ":8787",
        security: Security | None = None,
        idle_timeout: float | None = None,
        allowed_failures: int = 3,
        preload: str | Sequence[str] | None = None,
        preload_argv: Sequence[str] | None = None,
    ) -> None:
        self.id = f"Scheduler-{uuid.uuid4()}"
        self.state = SchedulerState(allowed_failures=allowed_failures)
        self.security = security or Security()
        self.status = "init"
        self.address = ""
        self.idle_timeout = idle_timeout
        self.idle_since: float | None = time.time()
        self.started = time.time()
        self.dashboard_address = dashboard_address
        self.http: Any = None
        self._host = interface_ip(interface) if interface else host
        self._port, self._scheme = port, protocol
        self._listener: Listener | None = None
        self._connections: dict[WorkerState | ClientState, Connection] = {}
        self._peers: dict[Connection, WorkerState | ClientState] = {}
        self._strangers: set[Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._finished = asyncio.Event()
        self._handlers: dict[tuple[str, str], Callable[..., Awaitable[Any]]] = {}
        self._hearers: dict[tuple[str, str], Callable[[Any, Any], Any]] = {}
        self.on_client_gone: list[Callable[[ClientState], None]] = []
        self.own_clients: dict[ClientState, Callable[[Message], None]] = {}  # of extensions: no connection, a function
        self.on_restart: list[Callable[[], Any]] = []
        self.extensions: dict[str, Any] = {}
        self.plugins = SchedulerPlugins(self)
        self.preloads = Preloads(self, preload, preload_argv, "scheduler")
        self._changed: asyncio.Future[None] | None = None
        self.on_ended: list[Callable[[WorkerState, str, Sequence[Any]], None]] = []  # of those who watch tasks end

        extensions.install(self)

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
        self.address = str(self._listener.address)
        self._pool = Pool(self.security.get_connection_args("scheduler"))
        if self.dashboard_address is not None:
            from daskfleet.scheduler.http import serve

            self.http = await serve(self, self.dashboard_address)
        await self.preloads.start()
        self.status = "running"
        self._spawn(self._tick())
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
    def dashboard_port(self) -> int | None:
        return self.http.port if self.http is not None else None

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now = time.time()
            counts = self.state.counts
            if counts[WAITING] or counts[QUEUED] or counts[PROCESSING] or counts[NO_WORKER]:
                self.idle_since = None
                self.state.rebalance()
                self._flush()
            elif self.idle_since is None:
                self.idle_since = now
            self.state.totals.recent.append((now, self.state.totals.computed))
            for worker in list(self.state.workers.values()):
                if now - worker.last_seen > WORKER_TTL:
                    logger.warning("%r has said nothing for %g s: giving it up", worker, WORKER_TTL)
                    self._connections[worker].abort()
            if self.idle_timeout and self.idle_since is not None and now - self.idle_since > self.idle_timeout:
                logger.info("closing: idle for %g s", self.idle_timeout)
                await self.close("idle", close_workers=True)

    # Peers ---------------------------------------------------------------------------------------------------------

    def _greet(self, connection: Connection) -> None:
        self._strangers.add(connection)
        connection.on_call = self._answer
        connection.on_close = lambda connection, _: self._strangers.discard(connection)

    async def _answer(self, connection: Connection, method: str, args: tuple[Any, ...]) -> Any:
        if method == "register":
            return self._register(connection, *args)
        if method == "identity":
            return self.identity()
        peer = self._peers.get(connection)
        if peer is None:
            raise ValueError("register first")
        role = "worker" if type(peer) is WorkerState else "client"
        answer = self._handlers.get((role, method)) or getattr(self, f"_{role}_{method}", None)
        if answer is None:
            raise ValueError(f"the scheduler has no method {method!r} for a {role}")
        return await answer(peer, *args)

    def handle(self, role: str, method: str, answer: Callable[..., Awaitable[Any]]) -> None:
        """Answer calls of `method` by clients or workers (`role`) with ``await answer(peer, *args)``."""
        self._handlers[role, method] = answer

    def hear(self, role: str, op: str, hearer: Callable[[Any, Any], Any]) -> None:
        """Pass messages ``(op, content)`` of clients or workers (`role`) to ``hearer(peer, content)``."""
        self._hearers[role, op] = hearer

    def _heard(self, role: str, peer: ClientState | WorkerState, message: Message) -> None:
        hearer = self._hearers.get((role, message[0])) if len(message) == 2 else None
        if hearer is None:
            logger.warning("%s %r sent something unknown: %.100r", role, peer, message)
            return
        try:
            hearer(peer, message[1])
        except Exception:
            logger.exception("%r of %r failed", message[0], peer)

    def notify(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Tell the plugins."""
        self.plugins.notify(hook, *args, **kwargs)

    def _register(self, connection: Connection, role: str, info: dict[str, Any]) -> dict[str, Any]:
        if role == "worker":
            return self._register_worker(connection, info)
        if role != "client":
            raise ValueError(f"role {role!r}: expected worker or client")
        client = self.state.add_client(str(info["id"]))
        client.worker = info.get("worker")
        if info.get("scheduler") not in (None, self.id):
            self._take_over()
        self._adopt(connection, client, self._on_client, self._on_client_gone)
        logger.info("client %s connected from %s", client.id, connection.peer)
        self.notify("add_client", scheduler=self, client=client.id)
        return {"id": self.id, "address": self.address, "dashboard": self.dashboard_port}

    def _register_worker(self, connection: Connection, info: dict[str, Any]) -> dict[str, Any]:
        address, name = str(info["address"]), str(info["name"])
        for other in list(self.state.workers.values()):
            if other.address == address:
                self._drop_worker(other)  # it came back before its old connection was seen to end
            elif other.name == name:
                raise ValueError(f"a worker named {name!r} is connected already, from {other.address}")
        worker = WorkerState(
            address=address,
            name=name,
            nthreads=int(info["nthreads"]),
            memory_limit=int(info["memory_limit"]),
            resources=dict(info["resources"]),
            info={key: value for key, value in info.items() if key != "held"},
            last_seen=time.time(),
        )
        if info["held"] and info.get("scheduler") != self.id:
            self._take_over()
        self.state.explain(name, outside=info.get("predecessor") in ("killed", "reconnected"))
        ids = self.state.add_worker(worker, info["held"])
        # A message and not the call's answer, because it must be read before the messages that follow it.
        connection.send(("joined", self.id, ids))
        if plugins := self.plugins.for_new_worker():
            connection.send(("plugins", plugins))
        self._adopt(connection, worker, self._on_worker, self._on_worker_gone)
        logger.info("worker %s registered, %s, %d threads", name, address, worker.nthreads)
        self.notify("add_worker", scheduler=self, worker=address)
        self._flush()
        self._pulse()
        return {"id": self.id}

    def _take_over(self) -> None:
        """Workers and clients come that knew another scheduler: we are in its place and learn what it knew."""
        if not self.state.adopting:
            logger.info("taking over from a scheduler that is gone: adopting its workers' data for %g s", TAKE_OVER)
            self.state.adopting = True
            asyncio.get_running_loop().call_later(TAKE_OVER, self._end_take_over)

    def _end_take_over(self) -> None:
        self.state.end_adoption()
        self._flush()

    def _adopt(self, connection: Connection, peer: Any, on_messages: Any, on_close: Any) -> None:
        self._strangers.discard(connection)
        self._peers[connection] = peer
        self._connections[peer] = connection
        connection.on_messages, connection.on_close = on_messages, on_close

    def _on_client_gone(self, connection: Connection, error: Exception | None) -> None:
        client = self._peers.pop(connection, None)
        if type(client) is not ClientState:
            return
        self._connections.pop(client, None)
        if client.leaving:
            self._drop_client(client)
        else:
            logger.info("client %s has lost its connection: keeping its futures for %g s", client.id, CLIENT_GRACE)
            asyncio.get_running_loop().call_later(CLIENT_GRACE, self._drop_client, client)

    def _drop_client(self, client: ClientState) -> None:
        if client not in self._connections and self.state.clients.get(client.id) is client:
            logger.info("client %s is gone", client.id)
            self.state.remove_client(client.id)
            for react in self.on_client_gone:
                react(client)
            self.notify("remove_client", scheduler=self, client=client.id)
            self._flush()

    def _on_worker_gone(self, connection: Connection, error: Exception | None) -> None:
        worker = self._peers.get(connection)
        if type(worker) is WorkerState:
            expected = worker.status == CLOSING
            log = logger.info if expected else logger.warning
            log("worker %s (%s) is gone%s", worker.name, worker.address, f": {error}" if error else "")
            self._drop_worker(worker, expected=expected)

    def _drop_worker(self, worker: WorkerState, *, expected: bool = False) -> None:
        connection = self._connections.pop(worker, None)
        if connection is not None:
            self._peers.pop(connection, None)
            connection.reset_handlers()
            connection.close()
        self._pool.forget(worker.address)
        for client in [client for client in self.state.clients.values() if client.worker == worker.address]:
            client.leaving = True  # its tasks are gone, and with them what they held
            self._drop_client(client)
        self.state.remove_worker(worker, expected=expected)
        if (dead := self.state.unexplained.get(worker.name)) is not None and dead[0] is worker:
            asyncio.get_running_loop().call_later(NANNY_TIMEOUT, self._presume, worker)
        self.notify("remove_worker", scheduler=self, worker=worker.address, stimulus_id=f"remove-{worker.address}")
        self._flush()
        self._pulse()

    def _presume(self, worker: WorkerState) -> None:
        """The nanny of a dead worker has said nothing."""
        if (dead := self.state.unexplained.get(worker.name)) is not None and dead[0] is worker:
            self.state.explain(worker.name)
            self._flush()

    def _on_client(self, connection: Connection, messages: list[Message]) -> None:
        state, client = self.state, self._peers[connection]
        assert type(client) is ClientState
        for message in messages:
            match message:
                case ("tasks", number, last, priority, functions, prefixes, rows):
                    state.submit(client, number, last, priority, functions, prefixes, rows)
                    if self.plugins.own:
                        self.notify("update_graph", scheduler=self, client=client.id, keys=keys_of(rows))
                case ("know", rows):
                    state.know(client, rows)
                case ("goodbye",):
                    client.leaving = True
                case ("release", cids):
                    state.release(client, cids)
                case ("want", rows):
                    state.want(client, rows)
                case _:
                    self._heard("client", client, message)
        self._flush()

    def _on_worker(self, connection: Connection, messages: list[Message]) -> None:
        state, worker = self.state, self._peers[connection]
        assert type(worker) is WorkerState
        worker.last_seen = time.time()
        for message in messages:
            match message:
                case ("done", rows):
                    for watch in self.on_ended:
                        watch(worker, "done", rows)
                    state.done(worker, rows)
                case ("erred", rows):
                    for watch in self.on_ended:
                        watch(worker, "erred", rows)
                    state.erred(worker, rows)
                case ("heartbeat", metrics):
                    worker.metrics = metrics
                case ("missing", rows):
                    state.missing(worker, rows)
                case ("holds", ids):
                    state.holds(worker, ids)
                case ("dropped", ids):
                    state.dropped(worker, ids)
                case ("yielded", rows):
                    state.yielded(worker, rows)
                case ("seceded", rows):
                    state.seceded(worker, rows)
                case ("rejoined", rows):
                    state.rejoined(worker, rows)
                case ("rescheduled", rows):
                    state.rescheduled(worker, rows)
                case ("status", "closed"):
                    worker.status = CLOSING
                case ("status", status) if status in (RUNNING, PAUSED):
                    state.set_status(worker, status)
                case _:
                    self._heard("worker", worker, message)
        self._flush()
        self._pulse()

    def _flush(self) -> None:
        self.state.schedule()
        for peer, messages in self.state.drain():
            connection = self._connections.get(peer)
            if connection is not None:
                for message in messages:
                    connection.send(message)
            elif type(peer) is ClientState and peer in self.own_clients:
                for message in messages:
                    self.own_clients[peer](message)

    def _pulse(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def _change(self, timeout: float) -> None:
        """Wait until a worker has said something, or `timeout` seconds."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._changed], timeout=timeout)

    # What clients ask ----------------------------------------------------------------------------------------------

    async def _client_locate(self, client: ClientState, cids: Sequence[int]) -> list[tuple[int, int, list[str]]]:
        """``(cid, id, addresses)`` of those in memory."""
        found = []
        for cid in cids:
            ts = client.futures.get(cid)
            if ts is not None and ts.holders:
                found.append((cid, ts.id, [worker.address for worker in ts.holders]))
        return found

    async def _client_gather(self, client: ClientState, cids: Sequence[int]) -> list[tuple[int, Serialized]]:
        """The data itself, fetched from the workers on behalf of a client that cannot reach them."""
        by_address: dict[str, dict[int, int]] = {}
        values: list[tuple[int, Serialized]] = []
        for cid in cids:
            ts = client.futures.get(cid)
            if ts is None:
                continue
            if ts.value is not None:
                values.append((cid, ts.value))
            elif ts.holders:
                by_address.setdefault(ts.holders[0].address, {})[ts.id] = cid

        async def fetch(address: str, wanted: dict[int, int]) -> None:
            try:
                rows = await self._pool.call(address, "get_data", self.id, list(wanted), timeout=300)
            except (OSError, TimeoutError) as error:
                logger.warning("could not fetch %d keys from %s for a client: %s", len(wanted), address, error)
                return
            for id, _, _, value in rows:
                values.append((wanted[id], join(value) if type(value) is tuple else value))

        await asyncio.gather(*(fetch(address, wanted) for address, wanted in by_address.items()))
        return values

    async def _client_scatter(
        self, client: ClientState, rows: Sequence[tuple[int, Key, Serialized]], workers: Sequence[str], broadcast: bool
    ) -> None:
        """Put data on workers: each piece on one of them in turn, or on all of them with `broadcast`."""
        targets = [worker for worker in self.select(workers) if worker.status == RUNNING]
        if not targets:
            raise TimeoutError("no worker to scatter to: none is running" + (" of those named" if workers else ""))
        targets.sort(key=lambda worker: worker.nbytes)
        ids = {key: self.state.expect_data(client, cid, key) for cid, key, _ in rows}

        async def put(worker: WorkerState, part: Sequence[tuple[int, Key, Serialized]]) -> None:
            payload = [(ids[key], key, join(data) if type(data) is tuple else data) for _, key, data in part]
            answer = await self._pool.call(worker.address, "put_data", self.id, payload, timeout=300)
            kept = {id: rest for id, *rest in answer}
            for _, key, _ in part:
                size, kind = kept[ids[key]]
                self.state.data_put(ids[key], size, kind, worker)

        parts = [rows] * len(targets) if broadcast else [rows[i :: len(targets)] for i in range(len(targets))]
        try:
            await asyncio.gather(*(put(worker, part) for worker, part in zip(targets, parts, strict=True) if part))
        finally:
            for _, key, _ in rows:
                self.state.data_expected_no_more(ids[key])
            self._flush()

    async def _client_cancel(self, client: ClientState, cids: Sequence[int], force: bool, reason: str) -> None:
        sent = [ts for cid in cids if (ts := client.futures.get(cid)) is not None and ts.state == PROCESSING]
        where = [(ts, ts.worker) for ts in sent]
        self.state.cancel(client, cids, force=force, reason=reason)
        if force:  # what nobody needs any more is stopped though it runs already
            for ts, worker in where:
                if ts.state != PROCESSING and worker is not None and (to := self._connections.get(worker)) is not None:
                    to.send(("stop", [ts.id]))
        self._flush()

    async def _client_retry(self, client: ClientState, cids: Sequence[int]) -> None:
        self.state.retry(client, cids)
        self._flush()

    async def _client_run(
        self, client: ClientState, call: Serialized, workers: Sequence[str] | None, wait: bool
    ) -> list[tuple[str, Any]]:
        """Run a function on workers; ``(address, outcome)`` for each."""
        call = join(call) if type(call) is tuple else call

        async def one(address: str) -> tuple[str, Any]:
            try:
                value = await self._pool.call(address, "run", call, wait)
            except (OSError, TimeoutError) as error:  # of this worker alone: the others' results count
                value = dumps((False, error))
            return address, join(value) if type(value) is tuple else value

        return await asyncio.gather(*(one(worker.address) for worker in self.select(workers)))

    async def _client_run_on_scheduler(self, client: ClientState, call: Serialized, wait: bool) -> Serialized:
        function, args, kwargs = loads(call)
        return await run_function(function, args, kwargs, {"dask_scheduler": self}, wait)

    async def _client_wait_for_workers(self, client: ClientState, n: int, timeout: float | None) -> int:
        """The number of workers, as soon as it is `n` or more, or when the time is up."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while len(self.state.workers) < n:
            left = 3600.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                break
            await self._change(left)
        return len(self.state.workers)

    async def _client_who_has(self, client: ClientState, keys: Sequence[Key] | None) -> list[tuple[Key, list[str]]]:
        tasks = (
            self.state.keys.values()
            if keys is None
            else [self.state.keys[key] for key in keys if key in self.state.keys]
        )
        return [(ts.key, [worker.address for worker in ts.holders]) for ts in tasks]

    async def _client_has_what(self, client: ClientState, workers: Sequence[str] | None) -> list[tuple[str, list[Key]]]:
        return [(worker.address, [ts.key for ts in worker.data]) for worker in self.select(workers)]

    async def _client_processing(
        self, client: ClientState, workers: Sequence[str] | None
    ) -> list[tuple[str, list[Key]]]:
        return [(worker.address, [ts.key for ts in worker.processing]) for worker in self.select(workers)]

    async def _client_retire_workers(
        self, client: ClientState, names: Sequence[str] | None, n: int | None, close_workers: bool
    ) -> dict[str, Any]:
        if names is None and n is None:
            n = len(retirement.idle_surplus(self.state.workers.values()))
        chosen = self.select(names) if names else self.workers_to_close(n or 0)  # no names mean nobody, not everybody
        return await self.retire_workers(chosen, close_workers=close_workers)

    async def _client_shutdown(self, client: ClientState) -> None:
        logger.info("client %s asks the whole cluster to shut down", client.id)
        asyncio.get_running_loop().call_later(0.05, self._spawn_close)

    def _spawn_close(self) -> None:
        self._closing = asyncio.ensure_future(self.close("a client shut the cluster down", close_workers=True))

    # What workers ask ----------------------------------------------------------------------------------------------

    async def _worker_ping(self, worker: WorkerState) -> None:
        """Nothing; the worker measures how long the answer takes."""

    async def _worker_leave(self, worker: WorkerState) -> None:
        await self.retire_workers([worker], close_workers=False)

    # What operators and dashboards ask -----------------------------------------------------------------------------

    def select(self, names: Iterable[str] | None) -> list[WorkerState]:
        """The workers with these names or addresses, or all of them for None or an empty list."""
        wanted = set(names or ())
        workers = list(self.state.workers.values())
        return (
            [worker for worker in workers if worker.name in wanted or worker.address in wanted] if wanted else workers
        )

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
        return identities

    def adaptive_target(self, target_duration: float = 5.0, names: Iterable[str] | None = None) -> int:
        """How many workers the work at hand deserves (see `daskfleet.scheduler.adaptive`)."""
        state = self.state
        workers = [worker for worker in self.select(names) if worker.status != CLOSING]
        queued = [ts for worker in state.workers.values() for _, _, ts in worker.ready if ts.state == QUEUED]
        n_ready = state.counts[QUEUED] + state.counts[NO_WORKER]
        waiting = sum(ts.prefix.duration for ts in (*queued, *state.unrunnable))
        waiting += state.queued_seconds()
        return adaptive_target(
            Load(
                occupancy=sum(worker.occupancy for worker in workers),
                waiting=waiting,
                n_processing=state.counts[PROCESSING],
                n_ready=n_ready,
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
            "last_seen": worker.last_seen,
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
