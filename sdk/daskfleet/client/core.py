"""A client's life, and calls to its scheduler and workers; what is said in between is `link`'s.

`Client` is a stack of classes, each a module with the methods of one purpose: this one, then submitting, collections,
looking and so on up to `extending`. Half of these modules are docstrings: they are what users read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from daskfleet import config
from daskfleet import loop as loops
from daskfleet import scheduler_file as files
from daskfleet.client import current
from daskfleet.client.inside import giving_way
from daskfleet.client.link import Link
from daskfleet.client.times import seconds
from daskfleet.comm import CommClosedError, Connection, Pool, connect, parse_address, reach
from daskfleet.comm.addresses import own_ip
from daskfleet.exceptions import DaskfleetError
from daskfleet.loop import on_loop_thread, shared_loop
from daskfleet.security import Security
from daskfleet.worker.context import in_task

if TYPE_CHECKING:
    from daskfleet.client.client import Client
    from daskfleet.client.future import Future

logger = logging.getLogger(__name__)

#: Calls that may be made again when the connection was lost before the answer came.
REPEATABLE = frozenset(
    {"gather", "locate", "wait_for_workers", "identity", "who_has", "has_what", "processing"}
    | {"semaphore_acquire", "semaphore_release", "semaphore_value", "multilock_acquire", "multilock_release"}
    | {"variable_get", "variable_set", "variable_delete", "queue_get", "queue_size"}
    | {"event_wait", "event_set", "event_clear", "event_is_set", "metadata_get", "metadata_set"}
    | {"dataset_get", "dataset_list", "dataset_unpublish"}
)
#: Parameters of distributed's client without effect here.
IGNORED = frozenset({"heartbeat_interval", "serializers", "deserializers", "extensions", "connection_limit"})
#: Seconds that a task's call to the scheduler may take before the task gives way to others.
PATIENCE = 0.02


class Core(Link):
    """Connection, life, and the states of futures. The parameters are `Client`'s."""

    #: Whether the network in front of the scheduler may be younger than we are (`daskfleet.comm.reaching`).
    _early: ClassVar[bool] = False

    def __init__(
        self,
        address: Any = None,
        *,
        timeout: float | str | None = None,
        set_as_default: bool = True,
        scheduler_file: str | None = None,
        security: Security | dict[str, Any] | bool | None = None,
        asynchronous: bool = False,
        name: str | None = None,
        direct_to_workers: bool | None = None,
        loop: Any = None,
        **kwargs: Any,
    ) -> None:
        self._asynchronous = asynchronous
        if loop is not None:
            super().__init__(getattr(loop, "asyncio_loop", loop))
        else:
            super().__init__(asyncio.get_running_loop() if asynchronous else shared_loop())
        self.id = f"{name or 'Client'}-{uuid.uuid4()}"
        self.cluster: Any = None
        self.security = Security.of(security)
        self._own_cluster = False
        self._timeout = seconds(timeout if timeout is not None else _configured_timeout()) or 0.0
        self._direct = direct_to_workers
        self._scheduler_file: str | None = None  # which says where the scheduler is, if that is how we found it
        self._set_as_default = set_as_default
        self._address = self._find(address, scheduler_file)
        self._kwargs = {name: value for name, value in kwargs.items() if name not in IGNORED}
        self._starting: asyncio.Task[None] | None = None
        self._pool: Pool | None = None
        self._checking: asyncio.Task[None] | None = None
        self._info: dict[str, Any] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._begin()

    def _begin(self) -> None:
        if not self._asynchronous:
            loops.sync(self.loop, self._start)

    def _find(self, address: Any, scheduler_file: str | None) -> Any:
        if address is None and scheduler_file is not None:
            self._scheduler_file = scheduler_file
            return None
        return address if address is not None else config.get("scheduler-address", None)

    @property
    def asynchronous(self) -> bool:
        """Whether methods return awaitables: asked for, or because the caller runs on the client's own loop."""
        return (self._asynchronous and not in_task()) or on_loop_thread(self.loop)

    # Life ----------------------------------------------------------------------------------------------------------

    def start(self) -> Any:
        """Connect. Making a client does this by itself; an asynchronous one when it is awaited or entered."""
        return self._sync(self._start)

    async def _start(self) -> Self:
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._connect())
        await asyncio.shield(self._starting)
        return self

    async def _connect(self) -> None:
        if self.status != "connecting":
            return
        target = self._address
        if self._scheduler_file is not None:
            target = await self._read_file(self._scheduler_file)
        if target is None:
            from daskfleet.deploy.local import LocalCluster

            options = {"security": self.security, **self._kwargs}
            target = await LocalCluster(asynchronous=self._asynchronous, loop=self.loop, **options)
            self._own_cluster = True
        elif self._kwargs:
            names = ", ".join(f"{name}=" for name in sorted(self._kwargs))
            raise TypeError(
                f"Client() takes no {names} when it connects to a cluster that is there: a LocalCluster takes them, "
                "which a Client without an address makes"
            )
        if not isinstance(target, str):
            self.cluster = target
            self.security = self.security or getattr(target, "security", None)
            target = target.scheduler_address
        self.security = self.security or Security()
        args = self.security.get_connection_args("client")
        self._target: str = target
        try:
            await self._introduce(await reach(self._where, self._attach, self._timeout, args, early=self._early))
        except BaseException as error:
            self._give_up(str(error) or "the client was closed")
            if self._own_cluster:
                await self.cluster._close()
            raise
        self._pool = Pool(args)
        assert self._scheduler is not None
        if self._direct is None:
            self._direct = getattr(self.cluster, "direct_to_workers", None)
        if self._direct is None:
            # By the address that the scheduler itself gives: the one we connected to may be a forward's.
            host = parse_address(self._info["address"]).host
            self._direct = host in (self._scheduler.local.rpartition(":")[0], own_ip())
        self.status = "running"
        if self._set_as_default:
            current.become_default(cast("Client", self))
        self._checking = self.loop.create_task(self._check_versions())
        self._wake()

    async def _read_file(self, path: str) -> str:
        """The address in a scheduler file, which the scheduler may still have to write."""
        deadline = self.loop.time() + self._timeout
        while not os.path.exists(path) and self.loop.time() < deadline:  # noqa: ASYNC110 - it is another process's
            await asyncio.sleep(0.05)
        info = files.read(path)
        self.security = info.secured(self.security)
        return info.address

    async def _check_versions(self) -> None:
        """Warn, in the background, of versions that do not fit (`daskfleet.client.looking`)."""
        raise NotImplementedError

    def _worker_address(self) -> str | None:
        """The worker whose tasks use this client, and with which it ends."""
        return None

    def _where(self) -> str:
        """The scheduler's address, as far as we know."""
        self._target = files.moved(self._scheduler_file, self._target)
        return self._target

    async def _come_back(self, patience: float) -> None:
        assert self.security is not None
        args = self.security.get_connection_args("client") | {"timeout": self._timeout, "patience": patience}
        await self._introduce(await connect(self._where(), setup=self._attach, **args))

    async def _introduce(self, connection: Connection) -> None:
        """Tell the scheduler who we are, and which one knew us before."""
        try:
            who = {"id": self.id, "scheduler": self._info.get("id"), "worker": self._worker_address()}
            self._info = await connection.call("register", "client", who, timeout=self._timeout)
            if self.status == "closed":  # meanwhile
                raise DaskfleetError("the client is closed")
        except BaseException:
            connection.reset_handlers()
            connection.abort()
            raise
        self._scheduler = connection
        self._connected.set()

    def __await__(self) -> Generator[Any, None, Self]:
        return self._start().__await__()

    def __enter__(self) -> Self:
        if self._asynchronous:
            raise TypeError("this client is asynchronous: use 'async with'")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await self._start()

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    def close(self, timeout: float | None = None) -> Any:
        """Disconnect: the cluster lets go of everything that only this client wanted. Ends a cluster of its own."""
        if self.asynchronous:
            return self._close()
        if self.status == "closed" or self.loop.is_closed():
            return None
        return loops.sync(self.loop, self._close)

    async def _close(self) -> None:
        if self.status == "closed":
            return
        self._flush()
        self.status = "closed"
        current.resign(cast("Client", self))
        self._connected.set()
        if self._scheduler is not None:
            self._scheduler.send(("goodbye",))
            self._scheduler.close()
        if self._pool is not None:
            self._pool.close()
        self._cancel_all("the client was closed")
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        if self._own_cluster:
            await self.cluster._close()

    def shutdown(self) -> Any:
        """End the whole cluster: scheduler, workers and this client."""
        return self._sync(self._shutdown)

    async def _shutdown(self) -> None:
        await self._call("shutdown")
        if self.cluster is not None:
            await self.cluster._close()
        await self._close()

    @classmethod
    def current(cls, allow_global: bool = True) -> Client:
        """The client of the calling task, thread or coroutine (`as_current`), or else the process's default.

        In difference from distributed ``with Client(…)`` alone makes a client the default, and not the one of its
        context, which is what is left with ``allow_global=False``.

        Raises
        ------
        ValueError
            There is none.
        """
        return current.current_client(allow_global)

    def as_current(self) -> AbstractContextManager[Client]:
        """A context in which this is the current client of the calling thread or coroutine."""
        return current.as_current(cast("Client", self))

    def __repr__(self) -> str:
        if self._scheduler is None or self.status != "running":
            return f"<Client: {self.status}>"
        return f"<Client: {self.scheduler_address!r}>"

    def _repr_html_(self) -> str:
        link = self.dashboard_link
        dashboard = f'<a href="{link}" target="_blank">{link}</a>' if link else "none"
        return (
            f"<div><h3>Client</h3><p><b>Scheduler:</b> {self.scheduler_address} · <b>Dashboard:</b> {dashboard} · "
            f"<b>Status:</b> {self.status}</p></div>"
        )

    @property
    def scheduler_address(self) -> str:
        """What this client is connected to."""
        if self._scheduler is None:
            return ""
        return f"{parse_address(self._target).scheme}://{self._scheduler.peer}"

    @property
    def dashboard_link(self) -> str:
        """The dashboard's address for a browser, "" without one."""
        if self.cluster is not None and getattr(self.cluster, "dashboard_link", None):
            return cast(str, self.cluster.dashboard_link)
        port = self._info.get("dashboard")
        if not port or self._scheduler is None:
            return ""
        target = parse_address(self._target)  # the name that was given, where there is one: proxies may know no other
        where = str(target).partition("://")[2] if target.scheme in ("tcp", "tls") else self._scheduler.peer
        host = where.rpartition(":")[0]
        return config.dashboard_link(f"http://{host}:{port}")

    # Talking to the scheduler --------------------------------------------------------------------------------------

    def sync(
        self,
        func: Callable[..., Awaitable[Any]],
        *args: Any,
        asynchronous: bool | None = None,
        callback_timeout: float | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a coroutine function on the client's loop: its result, or an awaitable in an asynchronous client.

        Parameters
        ----------
        asynchronous
            Return an awaitable, whatever the client does by itself.
        callback_timeout
            Seconds, or a text, that it may take.

        Raises
        ------
        TimeoutError
            It took longer.
        """
        limit = seconds(callback_timeout)

        async def call() -> Any:
            async with asyncio.timeout(limit):
                return await func(*args, **kwargs)

        return call() if asynchronous else self._sync(call)

    def _sync(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Run a coroutine function on the client's loop: its result, or an awaitable when asynchronous."""
        if self.asynchronous:
            return function(*args)
        if not in_task():
            return loops.sync(self.loop, function, *args)

        answer = asyncio.run_coroutine_threadsafe(loops.awaited(function(*args)), self.loop)
        if loops.done_within(answer, PATIENCE):
            return answer.result()
        with giving_way():
            return loops.wait(answer)

    async def _call(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        """Ask the scheduler, after everything that was queued for it."""
        if self.status == "connecting":
            await self._start()
        while True:
            if self.status == "reconnecting":
                async with asyncio.timeout(timeout):
                    await self._connected.wait()
            if self._scheduler is None or self.status == "closed":
                raise DaskfleetError("the client is closed")
            self._flush()
            try:
                return await self._scheduler.call(method, *args, timeout=timeout)
            except CommClosedError:
                if method not in REPEATABLE or self.status == "closed":
                    raise

    async def _ask_worker(self, address: str, method: str, *args: Any) -> Any:
        """Call a worker: directly, or through the scheduler where this client cannot reach workers."""
        if self.status == "connecting":
            await self._start()
        if not self._direct:
            return await self._call("ask_worker", address, method, args)
        assert self._pool is not None
        self._flush()
        return await self._pool.call(address, method, *args)

    def wait_for_workers(self, n_workers: int, timeout: float | str | None = None) -> Any:
        """Wait until the cluster has at least `n_workers`.

        Raises
        ------
        TimeoutError
            It has fewer after `timeout` seconds; the message says how many.
        """
        return self._sync(self._wait_for_workers, n_workers, seconds(timeout))

    async def _wait_for_workers(self, n_workers: int, timeout: float | None) -> None:
        count = await self._call("wait_for_workers", n_workers, timeout)
        if count < n_workers:
            raise TimeoutError(f"only {count} of {n_workers} workers were there within {timeout:g} s")

    def _nothing(self) -> Any:
        """None, awaitable in an asynchronous client: of a method that only queues a message."""
        return _Nothing() if self.asynchronous else None

    def _in_thread(self, function: Callable[..., Any], *args: Any) -> None:
        """Call something of the user's outside of the loop; in the order of the calls."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="daskfleet-callbacks")
        self._threads.submit(function, *args)

    def _call_in_thread(self, function: Callable[[Future], Any], future: Future) -> None:
        def call() -> None:
            try:
                function(future)
            except Exception:
                logger.exception("a callback of %r failed", future)

        self._in_thread(call)


def _configured_timeout() -> float | str:
    return cast("float | str", config.get("distributed.comm.timeouts.connect", 30.0))


class _Nothing:
    """Awaitable, and no trouble to whoever does not await it."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()
