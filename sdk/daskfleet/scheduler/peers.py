"""Who is connected to the scheduler, and what they say.

What arrives from a peer goes straight into `SchedulerState`; when a batch of messages has been taken in, the state is
asked to schedule and its messages are sent. Calls are the rest: one coroutine each, of the extensions.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from daskfleet.comm import Connection, Pool
from daskfleet.protocol.frames import Message
from daskfleet.scheduler.machine import SchedulerState
from daskfleet.scheduler.plugins import SchedulerPlugins
from daskfleet.scheduler.state import CLOSING, PAUSED, RUNNING, ClientState, WorkerState

logger = logging.getLogger(__name__)

#: Seconds for which the futures of a client are kept that has not said goodbye.
CLIENT_GRACE = 15.0
#: Seconds that workers and clients of a scheduler that is gone have to come to its successor: as long as clients try.
TAKE_OVER = 60.0
#: Seconds that the nanny of a worker that has died may take to start another, which then says how the last one ended.
NANNY_TIMEOUT = 10.0


class Peers:
    """Connections, and what comes through them."""

    _pool: Pool
    plugins: SchedulerPlugins

    def __init__(self, state: SchedulerState) -> None:
        self.id = f"Scheduler-{uuid.uuid4()}"
        self.state = state
        self.address = ""
        self._connections: dict[WorkerState | ClientState, Connection] = {}
        self._peers: dict[Connection, WorkerState | ClientState] = {}
        self._strangers: set[Connection] = set()
        self._submissions = 0  # messages of clients that bring work or data
        self._handlers: dict[tuple[str, str], Callable[..., Awaitable[Any]]] = {}
        self._hearers: dict[tuple[str, str], Callable[[Any, Any], Any]] = {}
        self.on_client_gone: list[Callable[[ClientState], None]] = []
        self.on_worker: list[Callable[[dict[str, Any]], None]] = []  # with what a worker that joins says of itself
        self.on_joined: list[Callable[[WorkerState], None]] = []
        self.on_left: list[Callable[[WorkerState], None]] = []
        self.on_retired: list[Callable[[WorkerState], None]] = []  # told to end for good
        self.own_clients: dict[ClientState, Callable[[Message], None]] = {}  # of extensions: no connection, a function
        self._changed: asyncio.Future[None] | None = None
        self.on_ended: list[Callable[[WorkerState, str, Sequence[Any]], None]] = []  # of those who watch tasks end

    @property
    def dashboard_port(self) -> int | None:
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What ``/json/identity.json`` and `Client.scheduler_info` show."""
        raise NotImplementedError

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
        answer = self._handlers.get((role, method))
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
            info={key: value for key, value in info.items() if key not in ("held", "inherited", "remembered")},
            last_seen=time.monotonic(),
        )
        if info.get("scheduler") not in (None, self.id):
            if info["held"] or info.get("remembered"):
                self._take_over()
            for learn in self.on_worker:
                learn(info)
        how = info.get("predecessor")
        self.state.explain(name, outside=how in ("killed", "reconnected"), memory=how == "memory")
        ids = self.state.add_worker(worker, info["held"])
        inherited = info.get("inherited", ())
        self.state.inherited(worker, [row for of, *row in inherited if of == self.id])
        # A message and not the call's answer, because it must be read before the messages that follow it.
        connection.send(("joined", self.id, ids))
        if plugins := self.plugins.for_new_worker():
            connection.send(("plugins", plugins))
        self._adopt(connection, worker, self._on_worker, self._on_worker_gone)
        for joined in self.on_joined:
            joined(worker)
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
        if type(client) is not ClientState or self._connections.get(client) is not connection:
            return  # it came back before its old connection was seen to end, as behind a proxy or a port-forward
        del self._connections[client]
        if client.leaving:
            self._drop_client(client)
        else:
            logger.info("client %s has lost its connection: keeping its futures for %g s", client.id, CLIENT_GRACE)
            asyncio.get_running_loop().call_later(CLIENT_GRACE, self._drop_client, client)

    def expect_client(self, id: str) -> ClientState:
        """A client of a scheduler that was here before: it is forgotten unless it comes soon."""
        client = self.state.add_client(id)
        asyncio.get_running_loop().call_later(CLIENT_GRACE, self._drop_client, client)
        return client

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
        for left in self.on_left:
            left(worker)
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
                    self._submissions += 1
                    state.submit(client, number, last, priority, functions, prefixes, rows)
                    if self.plugins.own:
                        self.plugins.submitted(client.id, rows)
                case ("know", rows):
                    self._submissions += 1
                    state.know(client, rows)
                case ("goodbye",):
                    client.leaving = True
                case ("release", cids):
                    state.release(client, cids)
                case ("want", rows):
                    state.want(client, rows)
                case _:
                    self._heard("client", client, message)
        self._flush(now=True)

    def _on_worker(self, connection: Connection, messages: list[Message]) -> None:
        state, worker = self.state, self._peers[connection]
        assert type(worker) is WorkerState
        worker.last_seen = time.monotonic()
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
        self._flush(now=True)
        self._pulse()

    def _flush(self, *, now: bool = False) -> None:
        """Decide and tell; `now`, for the end of a callback of the loop's own, tells workers and neighbours at once."""
        self.state.schedule()
        for peer, messages in self.state.drain():
            connection = self._connections.get(peer)
            if connection is not None and now and (type(peer) is WorkerState or connection.inproc):
                connection.send_now(messages)
            elif connection is not None:
                for message in messages:
                    connection.send(message)
            elif type(peer) is ClientState and peer in self.own_clients:
                for message in messages:
                    self.own_clients[peer](message)

    def _pulse(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `condition` holds, which is looked at as workers say something; False after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not condition():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            await self._change(left)
        return True

    def replaced(self, worker: WorkerState) -> bool:
        """Whether another has come in its place, by name."""
        return any(other.name == worker.name and other is not worker for other in self.state.workers.values())

    async def _change(self, timeout: float | None) -> None:
        """Wait until a worker has said something, or `timeout` seconds."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._changed], timeout=timeout)
