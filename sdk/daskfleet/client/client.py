"""The client: what users call, and the one connection to the scheduler behind it.

User threads encode; the loop's thread sends and completes futures. Between the two stands one deque of outgoing
messages, so that what a program does in some order reaches the scheduler in that order, and one wake-up of the loop a
burst. A blocking method that needs nothing but an answer that is already here (a small result travels with the news
that it is ready) never crosses to the loop at all.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import time
import uuid
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import dask
from dask._task_spec import TaskRef, convert_legacy_graph
from dask.base import is_dask_collection
from dask.utils import parse_timedelta

from daskfleet.client.encode import (
    PLAIN,
    GraphEncoder,
    annotations_by_key,
    encode_call,
    encode_function,
    function_name,
    token,
)
from daskfleet.client.future import CANCELLED, ERROR, FINISHED, PENDING, Future, FutureState, wait_all
from daskfleet.comm import Connection, Pool, connect
from daskfleet.exceptions import DaskfleetError
from daskfleet.loop import on_loop_thread, shared_loop, sync
from daskfleet.protocol.frames import Message
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import PROTOCOL, Serialized, dumps, loads
from daskfleet.security import Security

logger = logging.getLogger(__name__)

#: Rows sent at a time, so that workers start while the rest is still being encoded.
CHUNK = 1000
#: How often data that went missing between two questions is asked for again.
GATHER_TRIES = 20

_default: weakref.ref[Client] | None = None
_no_client: Any = object()


class Client:
    """Submits work to a scheduler and gets the results.

    Parameters
    ----------
    address
        The scheduler's address, or a cluster object. Without one: the scheduler file's, else the configured
        ``scheduler-address`` (``DASK_SCHEDULER_ADDRESS``), else a new `LocalCluster`, which takes the remaining
        keywords.
    timeout
        Seconds (or a text such as ``"10s"``) for the connection, ``distributed.comm.timeouts.connect`` by default.
    set_as_default
        Let dask collections compute on this client, and `Client.current` find it.
    scheduler_file
        A file that the scheduler has written (``dask-scheduler --scheduler-file``).
    security
        Token and certificates; a cluster object brings its own.
    asynchronous
        Return awaitables, on the running event loop, instead of blocking.
    direct_to_workers
        Fetch results from the workers themselves instead of through the scheduler. By default it does so when the
        scheduler is on this machine.

    Examples
    --------
    >>> client = Client("tcp://10.0.0.1:8786")  # doctest: +SKIP
    >>> client.submit(sum, [1, 2, 3]).result()  # doctest: +SKIP
    6
    """

    def __init__(
        self,
        address: Any = None,
        *,
        timeout: float | str | None = None,
        set_as_default: bool = True,
        scheduler_file: str | None = None,
        security: Security | None = None,
        asynchronous: bool = False,
        name: str | None = None,
        direct_to_workers: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.asynchronous = asynchronous
        self.loop = asyncio.get_running_loop() if asynchronous else shared_loop()
        self.id = f"{name or 'Client'}-{uuid.uuid4()}"
        self.status = "connecting"
        self.cluster: Any = None
        self.security = security
        self._own_cluster = False
        self._timeout = float(parse_timedelta(timeout if timeout is not None else _configured_timeout()))
        self._direct = direct_to_workers
        self._set_as_default = set_as_default
        self._address, self._kwargs = self._find(address, scheduler_file), kwargs
        self._scheduler: Connection | None = None
        self._pool: Pool | None = None
        self._info: dict[str, Any] = {}
        self._cids, self._graphs = itertools.count(1), itertools.count(1)
        self._states: dict[Key, weakref.ref[FutureState]] = {}
        self._by_cid: dict[int, weakref.ref[FutureState]] = {}
        self._outgoing: deque[Message] = deque()
        self._released: deque[int] = deque()
        self._waking = False
        self._threads: ThreadPoolExecutor | None = None
        self._configuration: Any = None
        if not asynchronous:
            sync(self.loop, self._start)

    def _find(self, address: Any, scheduler_file: str | None) -> Any:
        if address is None and scheduler_file is not None:
            from daskfleet.deploy.scheduler_file import read

            info = read(scheduler_file)
            self.security = self.security or info.security
            return info.address
        return address if address is not None else dask.config.get("scheduler-address", None)

    # Life ----------------------------------------------------------------------------------------------------------

    async def _start(self) -> Client:
        if self.status != "connecting":
            return self
        target = self._address
        if target is None:
            from daskfleet.deploy.local import LocalCluster

            target = await LocalCluster(asynchronous=self.asynchronous, loop=self.loop, **self._kwargs)
            self._own_cluster = True
        elif self._kwargs:
            raise TypeError(f"Client() got unexpected keyword arguments {', '.join(sorted(self._kwargs))}")
        if not isinstance(target, str):
            self.cluster = target
            self.security = self.security or getattr(target, "security", None)
            target = target.scheduler_address
        self.security = self.security or Security()
        args = self.security.get_connection_args("client")
        try:
            self._scheduler = await connect(target, timeout=self._timeout, setup=self._attach, **args)
            self._info = await self._scheduler.call("register", "client", {"id": self.id}, timeout=self._timeout)
        except BaseException:
            self.status = "closed"
            if self._own_cluster:
                await self.cluster._close()
            raise
        self._pool = Pool(args)
        if self._direct is None:
            self._direct = self._scheduler.peer.rpartition(":")[0] == self._scheduler.local.rpartition(":")[0]
        self.status = "running"
        if self._set_as_default:
            self._become_default()
        self._wake()
        return self

    def __await__(self) -> Generator[Any, None, Client]:
        return self._start().__await__()

    def __enter__(self) -> Client:
        if self.asynchronous:
            raise TypeError("this client is asynchronous: use 'async with'")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Client:
        return await self._start()

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    def close(self, timeout: float | None = None) -> Any:
        """Disconnect: the cluster lets go of everything that only this client wanted. Ends a cluster of its own."""
        if self.asynchronous:
            return self._close()
        if self.status == "closed" or self.loop.is_closed():
            return None
        return sync(self.loop, self._close)

    async def _close(self) -> None:
        if self.status == "closed":
            return
        self._flush()
        self.status = "closed"
        self._resign()
        if self._scheduler is not None:
            self._scheduler.close()
        if self._pool is not None:
            self._pool.close()
        self._cancel_all("the client was closed")
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

    def _become_default(self) -> None:
        global _default
        _default = weakref.ref(self)
        settings: dict[str, Any] = {"scheduler": self}
        # Without these dask falls back to shuffling through one process's local disk, which is wrong across workers.
        for name in ("dataframe.shuffle.method", "array.rechunk.method"):
            if dask.config.get(name, None) is None:
                settings[name] = "tasks"
        self._configuration = dask.config.set(settings)

    def _resign(self) -> None:
        global _default
        if _default is not None and _default() is self:
            _default = None
        if self._configuration is not None and dask.config.get("scheduler", None) is self:
            self._configuration.__exit__(None, None, None)
        self._configuration = None

    @classmethod
    def current(cls, allow_global: bool = True) -> Client:
        """The client that is the default at present.

        Raises
        ------
        ValueError
            There is none.
        """
        client = _default() if _default is not None else None
        if client is None or client.status != "running":
            raise ValueError("no client: create one with Client(...) first")
        return client

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
        return f"tcp://{self._scheduler.peer}" if self._scheduler is not None else ""

    @property
    def dashboard_link(self) -> str:
        """The dashboard's address for a browser, "" without one."""
        if self.cluster is not None and getattr(self.cluster, "dashboard_link", None):
            return cast(str, self.cluster.dashboard_link)
        port = self._info.get("dashboard")
        if not port or self._scheduler is None:
            return ""
        host = self._scheduler.peer.rpartition(":")[0]
        template = dask.config.get("distributed.dashboard.link", None) or "{protocol}://{host}:{port}/status"
        return cast(str, template.format(protocol="http", host=host, port=port))

    # Talking to the scheduler --------------------------------------------------------------------------------------

    def _sync(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return function(*args) if self.asynchronous else sync(self.loop, function, *args)

    async def _call(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        """Ask the scheduler, after everything that was queued for it."""
        if self._scheduler is None or self.status == "closed":
            raise DaskfleetError("the client is closed")
        self._flush()
        return await self._scheduler.call(method, *args, timeout=timeout)

    def _send(self, message: Message) -> None:
        if self.status == "closed":
            raise DaskfleetError("the client is closed: create a new one")
        self._outgoing.append(message)
        self._wake()

    def _wake(self) -> None:
        if not self._waking:
            self._waking = True
            if not self.loop.is_closed():
                self.loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self._waking = False
        scheduler = self._scheduler
        if scheduler is None or self.status == "closed":
            return
        while self._outgoing:
            scheduler.send(self._outgoing.popleft())
        if self._released:
            released = []
            while self._released:
                released.append(self._released.popleft())
            scheduler.send(("release", released))

    def _attach(self, connection: Connection) -> None:
        connection.on_messages = self._on_messages
        connection.on_close = self._on_gone

    def _on_gone(self, connection: Connection, error: Exception | None) -> None:
        if self.status == "running":
            logger.warning("lost the scheduler at %s", connection.peer)
            self.status = "closed"
            self._resign()
            self._cancel_all("the connection to the scheduler was lost")

    def _cancel_all(self, reason: str) -> None:
        for reference in list(self._by_cid.values()):
            state = reference()
            if state is not None and state.status == PENDING:
                state.reason = reason
                state.settle(CANCELLED)

    def _on_messages(self, _: Connection, messages: list[Message]) -> None:
        find = self._by_cid.get
        for op, rows in messages:
            if op == "finished":
                for cid, nbytes, kind, value in rows:
                    if (reference := find(cid)) is not None and (state := reference()) is not None:
                        state.nbytes, state.type, state.value = nbytes, kind, value
                        state.settle(FINISHED)
            elif op == "erred":
                for cid, exception, traceback, key in rows:
                    if (reference := find(cid)) is not None and (state := reference()) is not None:
                        state.exception, state.traceback, state.failed_key = exception, traceback, key
                        state.settle(ERROR)
            elif op == "lost":
                for cid, reason in rows:
                    if (reference := find(cid)) is not None and (state := reference()) is not None:
                        state.reason = reason
                        state.settle(CANCELLED)
            elif op == "pending":
                for cid in rows:
                    if (reference := find(cid)) is not None and (state := reference()) is not None:
                        state.status, state.value = PENDING, None

    # Futures -------------------------------------------------------------------------------------------------------

    def _state(self, key: Key) -> tuple[FutureState, bool]:
        """The state of `key`, and whether it is new, so that the scheduler has to be told."""
        reference = self._states.get(key)
        state = reference() if reference is not None else None
        if state is not None and state.status != CANCELLED:
            return state, False
        state = FutureState(self, key, next(self._cids))
        self._states[key] = self._by_cid[state.cid] = state.reference
        return state, True

    def _forget(self, key: Key, cid: int, reference: weakref.ref[FutureState]) -> None:
        """The last future of a key is gone. Called by the garbage collector: from any thread, at any time."""
        if not cid:
            return
        if self._states.get(key) is reference:
            self._states.pop(key, None)
        self._by_cid.pop(cid, None)
        if self.status == "running":
            self._released.append(cid)
            self._wake()

    def _result(self, future: Future, timeout: float | str | None) -> Any:
        state = future._state
        if self.asynchronous or on_loop_thread(self.loop):
            return self._await_result(state, timeout)
        deadline = _deadline(timeout)
        while True:
            if not wait_all([state], _left(deadline)):
                raise TimeoutError(f"{state.key!r} was not ready within {timeout} s")
            if state.status == FINISHED:
                value = state.value
                if value is not None:
                    return loads(value)
                return sync(self.loop, self._gather_states, [state], "raise", _left(deadline))[0]
            if state.status != PENDING:
                raise state.error()

    async def _await_result(self, state: FutureState, timeout: float | str | None = None) -> Any:
        return (await self._gather_states([state], "raise", _seconds(timeout)))[0]

    def _when_settled(self, future: Future, timeout: float | str | None, function: Callable[[], Any]) -> Any:
        if self.asynchronous:

            async def settled() -> Any:
                await self._settled([future._state], _seconds(timeout))
                return function()

            return settled()
        if not wait_all([future._state], _seconds(timeout)):
            raise TimeoutError(f"{future.key!r} was not ready within {timeout} s")
        return function()

    async def _settled(self, states: Collection[FutureState], timeout: float | None) -> None:
        """Wait until all have a final status.

        Raises
        ------
        TimeoutError
        """
        pending = {state.cid for state in states if state.status == PENDING}
        if not pending:
            return
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def callback(cid: int) -> Callable[[], None]:
            def done() -> None:
                pending.discard(cid)
                if not pending and not arrived.done():
                    arrived.set_result(None)

            return done

        for state in states:
            if state.cid in pending:
                state.when_done(callback(state.cid))
        try:
            await asyncio.wait_for(arrived, timeout)
        except TimeoutError:
            raise TimeoutError(f"{len(pending)} of {len(states)} results were not ready within {timeout:g} s") from None

    async def _gather_states(self, states: Sequence[FutureState], errors: str, timeout: float | None) -> list[Any]:
        """The values of `states`, in order; with ``errors="skip"`` only of those that have one."""
        deadline = _deadline(timeout)
        values: dict[int, Any] = {}
        unique = {state.cid: state for state in states}
        for attempt in range(GATHER_TRIES):
            await self._settled(unique.values(), _left(deadline))
            absent: dict[int, FutureState] = {}
            for cid, state in unique.items():
                if cid in values:
                    continue
                if state.status == FINISHED:
                    if state.value is not None:
                        values[cid] = loads(state.value)
                    else:
                        absent[cid] = state
                elif state.status != PENDING and errors == "raise":
                    raise state.error()
            if absent:
                values.update(await self._fetch(absent, _left(deadline)))
            if all(cid in values or state.status in (ERROR, CANCELLED) for cid, state in unique.items()):
                return [values[state.cid] for state in states if state.cid in values]
            await asyncio.sleep(min(0.01 * 2**attempt, 1))  # a worker has just gone; its data is being computed again
        raise TimeoutError(f"could not fetch {len(unique) - len(values)} results after {GATHER_TRIES} attempts")

    async def _fetch(self, states: Mapping[int, FutureState], timeout: float | None) -> dict[int, Any]:
        """What can be had now of results that are on workers."""
        if not self._direct:
            rows = await self._call("gather", list(states), timeout=timeout)
            return {cid: await _loads(value) for cid, value in rows}
        by_address: dict[str, dict[int, int]] = {}
        for cid, id, addresses in await self._call("locate", list(states), timeout=timeout):
            by_address.setdefault(addresses[0], {})[id] = cid
        assert self._pool is not None
        values: dict[int, Any] = {}

        async def fetch(address: str, wanted: dict[int, int]) -> None:
            assert self._pool is not None
            try:
                rows = await self._pool.call(address, "get_data", self._info["id"], list(wanted), timeout=timeout)
            except (ConnectionError, TimeoutError) as error:
                logger.info("could not fetch from %s: %s", address, error)
                return
            for id, _, _, value in rows:
                values[wanted[id]] = await _loads(value)

        await asyncio.gather(*(fetch(address, wanted) for address, wanted in by_address.items()))
        return values

    def gather(
        self, futures: Any, errors: str = "raise", direct: bool | None = None, asynchronous: bool | None = None
    ) -> Any:
        """The results of futures, in the structure in which they are given: lists, tuples, sets and dicts, nested.

        Parameters
        ----------
        errors
            ``"raise"`` the first error, or ``"skip"`` what failed (in flat lists and iterators).
        direct
            Override the client's `direct_to_workers` is not needed any more: small results are here already, and large
            ones come by whichever way the client has found to work.

        Raises
        ------
        Exception
            What a task raised.
        """
        if errors not in ("raise", "skip"):
            raise ValueError(f'errors={errors!r}: expected "raise" or "skip"')
        if isinstance(futures, Iterator):
            futures = list(futures)
        found: dict[int, FutureState] = {}
        _find_states(futures, found)
        states = list(found.values())

        if self.asynchronous or asynchronous or on_loop_thread(self.loop):

            async def gather() -> Any:
                values = await self._gather_states(states, errors, None)
                return self._replace(futures, states, values, errors)

            return gather()
        wait_all(states, None)
        if errors == "raise" and all(state.status == FINISHED and state.value is not None for state in states):
            values = [loads(cast(Serialized, state.value)) for state in states]
        else:
            values = sync(self.loop, self._gather_states, states, errors, None)
        return self._replace(futures, states, values, errors)

    def _replace(self, futures: Any, states: list[FutureState], values: list[Any], errors: str) -> Any:
        if errors == "skip":
            states = [state for state in states if state.status == FINISHED]
        by_cid = {state.cid: value for state, value in zip(states, values, strict=True)}
        return _put_values(futures, by_cid)

    # Submitting ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        func: Callable[..., Any],
        *args: Any,
        key: Key | None = None,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: int = 0,
        allow_other_workers: bool = False,
        pure: bool = True,
        **kwargs: Any,
    ) -> Future:
        """Run ``func(*args, **kwargs)`` on the cluster.

        Parameters
        ----------
        func
            Any callable; a coroutine function runs on the worker's event loop.
        *args, **kwargs
            Futures among them, also inside lists, tuples, sets and dicts, are replaced by their results.
        key
            A name for the result. By default one that is equal for equal calls, so that they run once.
        workers
            Names, addresses or hosts of the only workers that may run it; with `allow_other_workers`, preferably.
        resources
            Amounts of the workers' abstract resources that it needs while it runs.
        retries
            How often to try again when it raises.
        priority
            Higher runs earlier, from -1023 to 1023.
        pure
            False for a call that should run again each time, though its arguments are equal.

        Raises
        ------
        TypeError
            The function or an argument cannot be pickled; the message names it.
        """
        if not callable(func):
            raise TypeError(f"the first argument of submit must be callable, not {type(func).__name__}")
        blob, digest = encode_function(func)
        name = function_name(func)
        if key is None:
            key = f"{name}-{token(digest, args, kwargs) if pure else uuid.uuid4().hex}"
        state, new = self._state(key)
        if not new:
            return Future(state)
        payload, dependencies = encode_call(args, kwargs)
        options = _options(workers, resources, retries, allow_other_workers)
        numbers = [self._number(dependency) for dependency in dependencies] if dependencies else None
        prefix = name if isinstance(key, str) and key.startswith(name) else function_prefix(key)
        row = (state.cid, key, 0, payload, numbers, 0, options)
        self._send(("tasks", next(self._graphs), True, priority, [blob], [prefix], [row]))
        return Future(state)

    def map(
        self,
        func: Callable[..., Any],
        *iterables: Iterable[Any],
        key: str | Sequence[Key] | None = None,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: int = 0,
        allow_other_workers: bool = False,
        pure: bool = True,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[Future]:
        """Run `func` on each element of `iterables` (zipped); the parameters are those of `submit`.

        Parameters
        ----------
        key
            A prefix for the keys, or one key per element.
        batch_size
            Rows sent at a time; 1,000 by default.
        """
        if not callable(func):
            raise TypeError(f"the first argument of map must be callable, not {type(func).__name__}")
        blob, digest = encode_function(func)
        name = key if isinstance(key, str) else function_name(func)
        given = None if key is None or isinstance(key, str) else list(key)
        options = _options(workers, resources, retries, allow_other_workers)
        batch = batch_size or CHUNK
        futures: list[Future] = []
        rows: list[tuple[Any, ...]] = []
        if kwargs and pure:
            digest = bytes.fromhex(token(digest, (), kwargs))
        for position, args in enumerate(zip(*iterables, strict=False)):
            if given is not None:
                task_key: Key = given[position]
            else:
                task_key = f"{name}-{token(digest, args, {}) if pure else uuid.uuid4().hex}"
            state, new = self._state(task_key)
            futures.append(Future(state))
            if not new:
                continue
            numbers = None
            if len(args) == 1 and not kwargs and type(args[0]) in PLAIN:
                payload: Serialized = pickle.dumps((args, kwargs), PROTOCOL)
            else:
                payload, dependencies = encode_call(args, kwargs)
                if dependencies:
                    numbers = [self._number(dependency) for dependency in dependencies]
            rows.append((state.cid, task_key, 0, payload, numbers, 0, options))
            if len(rows) == batch:
                self._send(("tasks", next(self._graphs), True, priority, [blob], [name], rows))
                rows = []
        if rows:
            self._send(("tasks", next(self._graphs), True, priority, [blob], [name], rows))
        return futures

    def _number(self, dependency: TaskRef) -> int:
        """How a row names a future it depends on."""
        if isinstance(dependency, Future):
            state = dependency._state
            if state.client is self and state.cid:
                return -state.cid
            raise ValueError(f"{dependency!r} was released or belongs to another client, so it cannot be an argument")
        return -self._want(dependency.key)._state.cid

    def _want(self, key: Key) -> Future:
        """A future of a key that somebody else has submitted."""
        state, new = self._state(key)
        if new:
            self._send(("want", [(state.cid, key)]))
        return Future(state)

    def scatter(
        self,
        data: Any,
        workers: str | Iterable[str] | None = None,
        broadcast: bool = False,
        direct: bool | None = None,
        hash: bool = True,
        timeout: float | str | None = None,
    ) -> Any:
        """Put data on workers, spread over them or, with `broadcast`, on each.

        Parameters
        ----------
        data
            A list, tuple, set or iterator (a future for each element), a dict (a future for each value, under its key),
            or any other object (one future).
        hash
            Give equal data equal keys.

        Raises
        ------
        TimeoutError
            No worker came within `timeout` seconds (the client's own by default).
        """
        return self._sync(self._scatter, data, _names(workers), broadcast, hash, _seconds(timeout))

    async def _scatter(self, data: Any, workers: list[str], broadcast: bool, hash: bool, timeout: float | None) -> Any:
        if isinstance(data, Iterator):
            data = list(data)
        if isinstance(data, dict):
            names, values = list(data), list(data.values())
        elif isinstance(data, (list, tuple, set, frozenset)):
            values = list(data)
            names = [_data_key(value, hash) for value in values]
        else:
            values, names = [data], [_data_key(data, hash)]
        await self._wait_for_workers(1, timeout if timeout is not None else self._timeout)
        states = []
        rows = []
        for name, value in zip(names, values, strict=True):
            state, new = self._state(name)
            states.append(state)
            if new or state.status == CANCELLED:
                rows.append((state.cid, name, dumps(value)))
        if rows:
            await self._call("scatter", rows, workers, broadcast)
        futures = [Future(state) for state in states]
        if isinstance(data, dict):
            return dict(zip(names, futures, strict=True))
        if isinstance(data, (list, tuple, set, frozenset)):
            return type(data)(futures)
        return futures[0]

    def cancel(
        self,
        futures: Any,
        asynchronous: bool | None = None,
        force: bool = False,
        reason: str | None = None,
        msg: str | None = None,
    ) -> Any:
        """Do not compute these, as far as nobody else wants them (`force`: even then)."""
        found: dict[int, FutureState] = {}
        _find_states(futures, found)
        return self._sync(self._call, "cancel", list(found), force, msg or reason or "")

    def retry(self, futures: Any, asynchronous: bool | None = None) -> Any:
        """Compute these again after a failure, from the task that failed first."""
        found: dict[int, FutureState] = {}
        _find_states(futures, found)
        return self._sync(self._retry, found)

    async def _retry(self, found: dict[int, FutureState]) -> None:
        for state in found.values():
            if state.status == ERROR:
                state.status = PENDING
        await self._call("retry", list(found))

    # Collections ---------------------------------------------------------------------------------------------------

    def get(self, dsk: Any, keys: Any, workers: Any = None, sync: bool = True, **kwargs: Any) -> Any:
        """Compute a dask graph; dask calls this for ``collection.compute()``.

        Parameters
        ----------
        dsk
            A graph: a dict, a ``HighLevelGraph`` or an expression.
        keys
            A key, or lists of keys, nested as the result should be.
        sync
            Return the values; otherwise futures.
        """
        flat = list(_flatten(keys))
        futures = self._submit_graph(dsk, flat, **_graph_options(kwargs))
        by_key = {future.key: future for future in futures}
        packed = _pack_keys(keys, by_key)
        return self.gather(packed) if sync else packed

    def compute(self, collections: Any, sync: bool = False, optimize_graph: bool = True, **kwargs: Any) -> Any:
        """Futures of what ``dask.compute`` would return, without waiting; with `sync`, the values.

        Parameters
        ----------
        collections
            A dask collection, or a list of them (a list of futures then).
        """
        single = not isinstance(collections, (list, tuple, set, frozenset))
        items = [collections] if single else list(collections)
        futures = [
            self._compute_one(item, optimize_graph, kwargs) if is_dask_collection(item) else item for item in items
        ]
        result = futures[0] if single else futures
        return self.gather(result) if sync else result

    def _compute_one(self, collection: Any, optimize_graph: bool, kwargs: dict[str, Any]) -> Future:
        """A future of one collection's final value: its finalising step is a task of its own."""
        from dask.base import collections_to_expr
        from dask.tokenize import tokenize

        expression = collections_to_expr([collection], optimize_graph=optimize_graph).finalize_compute()
        if optimize_graph:
            expression = expression.optimize()
        keys = list(_flatten(expression.__dask_keys__()))
        if len(keys) == 1:
            return self._submit_graph(expression, keys, **_graph_options(kwargs))[0]
        futures = self._submit_graph(expression, keys, **_graph_options(kwargs))
        return self.submit(_as_is, futures, key=f"finalize-{tokenize(keys)}")

    def persist(self, collections: Any, optimize_graph: bool = True, **kwargs: Any) -> Any:
        """Collections like these whose data is being computed and will stay on the cluster."""
        single = not isinstance(collections, (list, tuple, set, frozenset))
        items = [collections] if single else list(collections)
        from dask.base import collections_to_expr

        expression = collections_to_expr(items, optimize_graph=optimize_graph)
        if optimize_graph:
            expression = expression.optimize()
        keys = list(dict.fromkeys(_flatten(expression.__dask_keys__())))
        futures = {future.key: future for future in self._submit_graph(expression, keys, **_graph_options(kwargs))}
        results = []
        for item, own_keys in zip(items, _keys_by_collection(expression, items), strict=True):
            rebuild, args = item.__dask_postpersist__()
            results.append(rebuild({key: futures[key] for key in _flatten(own_keys)}, *args))
        return results[0] if single else results

    def _submit_graph(
        self,
        dsk: Any,
        keys: Sequence[Key],
        *,
        priority: int = 0,
        **options: Any,
    ) -> list[Future]:
        """Send a graph; futures of `keys`, in their order."""
        from dask._expr import Expr
        from dask.highlevelgraph import HighLevelGraph
        from dask.order import order

        annotations: Mapping[str, Any] = {}
        if isinstance(dsk, Expr):
            annotations = dsk.__dask_annotations__()
            dsk = dsk.__dask_graph__()
        elif isinstance(dsk, HighLevelGraph):
            annotations = {}
            dsk = dsk.to_dict()
        graph = convert_legacy_graph(dict(dsk))
        _check(graph, keys, self._states)
        by_key = annotations_by_key(annotations)
        shared = {name: value for name, value in options.items() if value is not None}
        positions = order(graph)
        outside: list[Future] = []  # held until the message is queued

        def number(key: Key) -> int:
            future = self._want(key)
            outside.append(future)
            return -future._state.cid

        encoder = GraphEncoder(number)
        states: dict[Key, FutureState] = {}
        wanted = set(keys)
        graph_number = next(self._graphs)
        rows: list[tuple[Any, ...]] = []
        sent = 0
        for key in sorted(graph, key=positions.__getitem__):
            cid = 0
            if key in wanted:
                states[key], new = self._state(key)
                cid = states[key].cid if new else 0
            rows.append(encoder.row(cid, key, graph[key], by_key.get(key) or shared or None))
            if len(rows) == CHUNK and sent + CHUNK < len(graph):
                self._send(("tasks", graph_number, False, priority, encoder.functions, encoder.prefixes, rows))
                sent += len(rows)
                rows = []
        self._send(("tasks", graph_number, True, priority, encoder.functions, encoder.prefixes, rows))
        return [Future(states[key]) if key in states else self._want(key) for key in keys]

    # Out of band ---------------------------------------------------------------------------------------------------

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: str | Iterable[str] | None = None,
        wait: bool = True,
        on_error: str = "raise",
        **kwargs: Any,
    ) -> Any:
        """Call a function on every worker, or those named, at once and outside of the task system.

        A parameter named ``dask_worker`` is given the worker.

        Parameters
        ----------
        on_error
            ``"raise"`` the first error, ``"return"`` errors in place of results, or ``"ignore"`` those workers.

        Returns
        -------
        dict
            Results by the worker's address.
        """
        if on_error not in ("raise", "return", "ignore"):
            raise ValueError(f'on_error={on_error!r}: expected "raise", "return" or "ignore"')
        return self._sync(self._run, dumps((function, args, kwargs)), _names(workers), wait, on_error)

    async def _run(self, call: Serialized, workers: list[str], wait: bool, on_error: str) -> dict[str, Any] | None:
        rows = await self._call("run", call, workers, wait)
        if not wait:
            return None
        results = {}
        for address, outcome in rows:
            succeeded, value = loads(outcome)
            if not succeeded and on_error == "raise":
                raise value
            if succeeded or on_error == "return":
                results[address] = value
        return results

    def run_on_scheduler(self, function: Callable[..., Any], *args: Any, wait: bool = True, **kwargs: Any) -> Any:
        """Call a function in the scheduler's process; a parameter named ``dask_scheduler`` is given the scheduler."""
        return self._sync(self._run_on_scheduler, dumps((function, args, kwargs)), wait)

    async def _run_on_scheduler(self, call: Serialized, wait: bool) -> Any:
        outcome = await self._call("run_on_scheduler", call, wait)
        if not wait:
            return None
        succeeded, value = loads(outcome)
        if not succeeded:
            raise value
        return value

    def wait_for_workers(self, n_workers: int, timeout: float | str | None = None) -> Any:
        """Wait until the cluster has at least `n_workers`.

        Raises
        ------
        TimeoutError
            It has fewer after `timeout` seconds; the message says how many.
        """
        return self._sync(self._wait_for_workers, n_workers, _seconds(timeout))

    async def _wait_for_workers(self, n_workers: int, timeout: float | None) -> None:
        count = await self._call("wait_for_workers", n_workers, timeout)
        if count < n_workers:
            raise TimeoutError(f"only {count} of {n_workers} workers were there within {timeout:g} s")

    def retire_workers(
        self, workers: Iterable[str] | None = None, n: int | None = None, close_workers: bool = True
    ) -> Any:
        """End workers without losing what they hold: those named, the `n` cheapest to end, or all that have nothing to
        do.

        Returns
        -------
        dict
            What is known of each, by address.
        """
        return self._sync(self._call, "retire_workers", None if workers is None else _names(workers), n, close_workers)

    def scheduler_info(self, n_workers: int = -1) -> Any:
        """The scheduler's identity and its workers, as ``/json/identity.json`` has them."""
        return self._sync(self._call, "identity")

    def nthreads(self, workers: Iterable[str] | None = None) -> Any:
        """Threads of each worker, by address."""
        return self._sync(self._nthreads, _names(workers))

    ncores = nthreads

    async def _nthreads(self, names: list[str]) -> dict[str, int]:
        workers = (await self._call("identity"))["workers"].values()
        chosen = [worker for worker in workers if not names or worker["address"] in names or worker["name"] in names]
        return {worker["address"]: worker["nthreads"] for worker in chosen}

    def who_has(self, futures: Any = None) -> Any:
        """The addresses of the workers that hold each key."""
        return self._sync(self._dict, "who_has", None if futures is None else _keys(futures))

    def has_what(self, workers: Iterable[str] | None = None) -> Any:
        """The keys that each worker holds, by its address."""
        return self._sync(self._dict, "has_what", _names(workers))

    def processing(self, workers: Iterable[str] | None = None) -> Any:
        """The keys that each worker was sent and has not finished, by its address."""
        return self._sync(self._dict, "processing", _names(workers))

    async def _dict(self, method: str, argument: Any) -> dict[Any, tuple[Any, ...]]:
        return {name: tuple(items) for name, items in await self._call(method, argument)}

    def futures_of(self, collections: Any) -> list[Future]:
        """The futures inside persisted collections."""
        return futures_of(collections, self)

    def _call_in_thread(self, function: Callable[[Future], Any], future: Future) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="daskfleet-callbacks")

        def call() -> None:
            try:
                function(future)
            except Exception:
                logger.exception("a callback of %r failed", future)

        self._threads.submit(call)


# ---------------------------------------------------------------------------------------------------------------------


def future_from_key(key: Key) -> Future:
    """A future that travelled: it belongs to the current client of the process it arrived in."""
    return Client.current()._want(key)


def futures_of(collections: Any, client: Client | None = None) -> list[Future]:
    """The futures inside persisted collections, in no particular order, each once."""
    found: dict[Key, Future] = {}
    stack = [collections]
    while stack:
        item = stack.pop()
        if isinstance(item, Future):
            found[item.key] = item
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif is_dask_collection(item):
            stack.extend(dict(item.__dask_graph__()).values())
    return list(found.values())


def function_prefix(key: Key) -> str:
    """The kind of a task whose key the user chose."""
    from daskfleet.client.encode import split

    name = key[0] if isinstance(key, tuple) and key else key
    return split(str(name))


def _as_is(value: Any) -> Any:
    return value


def _options(
    workers: str | Iterable[str] | None,
    resources: Mapping[str, float] | None,
    retries: int | None,
    allow_other_workers: bool,
) -> dict[str, Any] | None:
    options: dict[str, Any] = {}
    if workers is not None:
        options["workers"] = _names(workers)
        options["allow_other_workers"] = allow_other_workers
    elif allow_other_workers:
        raise ValueError("allow_other_workers=True says nothing without workers=")
    if resources:
        options["resources"] = dict(resources)
    if retries:
        options["retries"] = retries
    return options or None


def _graph_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    known = {
        name: kwargs[name] for name in ("priority", "retries", "resources", "allow_other_workers") if kwargs.get(name)
    }
    if kwargs.get("workers"):
        known["workers"] = _names(kwargs["workers"])
    return known


def _names(workers: Any) -> list[str]:
    if workers is None:
        return []
    return [workers] if isinstance(workers, str) else [str(worker) for worker in workers]


def _keys(futures: Any) -> list[Key]:
    return [future.key for future in ([futures] if isinstance(futures, TaskRef) else futures_of(futures))]


def _data_key(value: Any, hash: bool) -> str:
    if not hash:
        return f"{type(value).__name__}-{uuid.uuid4().hex}"
    from dask.tokenize import tokenize

    return f"{type(value).__name__}-{tokenize(value)}"


def _check(graph: Mapping[Key, Any], keys: Sequence[Key], known: Mapping[Key, Any]) -> None:
    missing = [key for key in keys if key not in graph and key not in known]
    if missing:
        raise KeyError(
            f"the graph has no task for {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )


def _find_states(value: Any, found: dict[int, FutureState]) -> None:
    kind = type(value)
    if kind is Future:
        found[value._state.cid] = value._state
    elif kind in (list, tuple, set, frozenset):
        for item in value:
            _find_states(item, found)
    elif kind is dict:
        for item in value.values():
            _find_states(item, found)


def _put_values(value: Any, values: Mapping[int, Any]) -> Any:
    kind = type(value)
    if kind is Future:
        return values[value._state.cid]
    if kind in (list, tuple, set, frozenset):
        return kind(
            _put_values(item, values) for item in value if type(item) is not Future or item._state.cid in values
        )
    if kind is dict:
        return {
            key: _put_values(item, values)
            for key, item in value.items()
            if type(item) is not Future or item._state.cid in values
        }
    return value


def _flatten(keys: Any) -> Iterator[Key]:
    if isinstance(keys, list):
        for key in keys:
            yield from _flatten(key)
    else:
        yield keys


def _pack_keys(keys: Any, by_key: Mapping[Key, Future]) -> Any:
    if isinstance(keys, list):
        return [_pack_keys(key, by_key) for key in keys]
    return by_key[keys]


def _keys_by_collection(expression: Any, items: Sequence[Any]) -> list[Any]:
    keys = expression.__dask_keys__()
    return keys if len(keys) == len(items) else [item.__dask_keys__() for item in items]


async def _loads(value: Serialized) -> Any:
    size = sum(len(part) for part in value) if type(value) is tuple else len(cast(bytes, value))
    return await asyncio.to_thread(loads, value) if size > 4 << 20 else loads(value)


def _seconds(timeout: float | str | None) -> float | None:
    return None if timeout is None else float(parse_timedelta(timeout))


def _configured_timeout() -> float | str:
    return cast("float | str", dask.config.get("distributed.comm.timeouts.connect", "30s"))


def _deadline(timeout: float | str | None) -> float | None:
    seconds = _seconds(timeout)
    return None if seconds is None else time.monotonic() + seconds


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)
