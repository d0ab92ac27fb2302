"""`Client.submit`, `map` and `scatter`."""

from __future__ import annotations

import asyncio
import os
import pickle
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from daskfleet.client.actors import Make
from daskfleet.client.garbage import paused_collection
from daskfleet.client.gathering import Gathering
from daskfleet.client.options import task_options, worker_names
from daskfleet.client.states import CANCELLED
from daskfleet.client.times import seconds
from daskfleet.importing import Lazy
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import PROTOCOL, Serialized, dumps

if TYPE_CHECKING:
    from dask._task_spec import TaskRef

    from daskfleet.client import encode
    from daskfleet.client import future as handles
else:
    encode, handles = Lazy("daskfleet.client.encode"), Lazy("daskfleet.client.future")

#: Rows sent at a time, so that workers start while the rest is still being encoded.
CHUNK = 1000


class Submitting(Gathering):
    """Calls and data, from here to the cluster."""

    _span: str | None = None  # the last one that the scheduler was told of

    def _announce_span(self, options: dict[str, Any] | None) -> None:
        """Tell the scheduler of a span before its first task: it watches none that it does not know."""
        if options and "span" in options and options["span"][0] != self._span:
            self._span = options["span"][0]
            self._send(("span", options["span"]))

    def submit(
        self,
        func: Callable[..., Any],
        *args: Any,
        key: Key | None = None,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: int = 0,
        fifo_timeout: str | float = "100 ms",
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        timeout: float | str | None = None,
        pure: bool = True,
        **kwargs: Any,
    ) -> handles.Future:
        """Run ``func(*args, **kwargs)`` on the cluster.

        Parameters
        ----------
        func
            Any callable; a coroutine function runs on the worker's event loop.
        *args, **kwargs
            Futures among them, also inside lists, tuples, sets and dicts, are replaced by their results.
        key
            A name for the result. By default one that is equal for equal calls, so that they run once. As long as
            anybody holds a future of a key, it stands for the work that was submitted first.
        workers
            Names, addresses or hosts of the only workers that may run it; with `allow_other_workers`, preferably.
        resources
            Amounts of the workers' abstract resources that it needs while it runs.
        retries
            How often to try again when it raises.
        priority
            Higher runs earlier, from -1023 to 1023.
        fifo_timeout
            Has no effect: what was submitted earlier runs earlier, whatever time has passed.
        actor, actors
            `func` is a class: its instance stays on a worker, and the result is a proxy, `Actor`.
        timeout
            Seconds (or a text such as ``"10s"``) that it may run. Then it is stopped and fails with `TimeoutError`.
        pure
            False for a call that should run again each time, though its arguments are equal.

        Raises
        ------
        TypeError
            The function or an argument cannot be pickled; the message names it.
        """
        if not callable(func):
            raise TypeError(f"the first argument of submit must be callable, not {type(func).__name__}")
        blob, digest = encode.encode_function(func)
        name = encode.function_name(func)
        if actor or actors:
            # Two equal calls mean two actors.
            (blob, digest), pure = encode.encode_function(Make(func)), False
        work = None
        if key is None:
            # As random as a UUID, whose object takes 5 µs to make.
            key = f"{name}-{encode.token(digest, args, kwargs) if pure else os.urandom(16).hex()}"
        else:
            self._release_first()
            work = digest, args if not kwargs and all(type(value) in encode.PLAIN for value in args) else None
        state, new = self._state(key)
        if not new:
            if work is not None and _differ(self._named.get(state), work):
                warnings.warn(
                    f"the key {key!r} stands for other work already, whose result this future gets: choose another key",
                    stacklevel=2,
                )
            return handles.Future(state)
        if work is not None:
            self._named[state] = work
        payload, dependencies = encode.encode_call(args, kwargs)
        options = task_options(workers, resources, retries, allow_other_workers, timeout, actor or actors)
        self._announce_span(options)
        numbers = [self._number(dependency) for dependency in dependencies] if dependencies else None
        prefix = name if isinstance(key, str) and key.startswith(name) else _prefix(key)
        row = (state.cid, key, 0, payload, numbers, 0, options)
        self._send(("tasks", next(self._graphs), True, priority, [blob], [prefix], [row]))
        return handles.Future(state)

    def map(
        self,
        func: Callable[..., Any],
        *iterables: Iterable[Any],
        key: str | Sequence[Key] | None = None,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: int = 0,
        fifo_timeout: str | float = "100 ms",
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        timeout: float | str | None = None,
        pure: bool = True,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[handles.Future]:
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
        if key is not None:
            self._release_first()
        blob, digest = encode.encode_function(func)
        name = key if isinstance(key, str) else encode.function_name(func)
        if actor or actors:
            (blob, digest), pure = encode.encode_function(Make(func)), False
        given = None if key is None or isinstance(key, str) else list(key)
        options = task_options(workers, resources, retries, allow_other_workers, timeout, actor or actors)
        self._announce_span(options)
        batch, unique = batch_size or CHUNK, uuid.uuid4().hex
        futures: list[handles.Future] = []
        if kwargs and pure:
            digest = bytes.fromhex(encode.token(digest, (), kwargs))
        plain = all(isinstance(iterable, (list, tuple, range)) for iterable in iterables)
        # Iterating over anything else may run the user's own code, which may count on the collector.
        with paused_collection() if plain else nullcontext():
            rows: list[tuple[Any, ...]] = []
            for position, args in enumerate(zip(*iterables, strict=False)):
                if given is not None:
                    task_key: Key = given[position]
                else:
                    task_key = f"{name}-{encode.token(digest, args, {}) if pure else f'{unique}-{position}'}"
                state, new = self._state(task_key)
                futures.append(handles.Future(state))
                if not new:
                    continue
                numbers = None
                if len(args) == 1 and not kwargs and type(args[0]) in encode.PLAIN:
                    payload: Serialized = pickle.dumps((args, kwargs), PROTOCOL)
                else:
                    payload, dependencies = encode.encode_call(args, kwargs)
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
        if isinstance(dependency, handles.Future):
            state = dependency._state
            if state.client is self and state.cid:
                return -state.cid
            raise ValueError(f"{dependency!r} was released or belongs to another client, so it cannot be an argument")
        return -self._want(dependency.key)._state.cid

    def scatter(
        self,
        data: Any,
        workers: str | Iterable[str] | None = None,
        broadcast: bool = False,
        direct: bool | None = None,
        hash: bool = True,
        timeout: float | str | None = None,
        asynchronous: bool | None = None,
    ) -> Any:
        """Put data on workers, spread over them or, with `broadcast`, on each.

        Parameters
        ----------
        data
            A list, tuple, set or iterator (a future for each element), a dict (a future for each value, under its key),
            or any other object (one future).
        hash
            Give equal data equal keys.
        asynchronous
            Return an awaitable, whatever the client does by itself.

        Raises
        ------
        TimeoutError
            No worker came within `timeout` seconds (the client's own by default).
        """
        arguments = (data, worker_names(workers), broadcast, hash, seconds(timeout))
        return self.sync(self._scatter, *arguments, asynchronous=asynchronous)

    async def _scatter(
        self, data: Any, workers: list[str] | None, broadcast: bool, hash: bool, timeout: float | None
    ) -> Any:
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
            await self._put(rows, workers, broadcast)
        futures = [handles.Future(state) for state in states]
        if isinstance(data, dict):
            return dict(zip(names, futures, strict=True))
        if isinstance(data, (list, tuple, set, frozenset)):
            return type(data)(futures)
        return futures[0]

    async def _put(self, rows: list[tuple[int, Key, Serialized]], workers: list[str] | None, broadcast: bool) -> None:
        """Put data where the scheduler says, and tell it what came of that."""
        named = [(cid, key) for cid, key, _ in rows]
        number, parts = await self._call("scatter_begin", named, workers, broadcast)
        kept: list[tuple[str, int, int, str]] = []
        gone: set[str] = set()

        async def put(address: str, part: list[tuple[int, int]]) -> None:
            payload = [(id, rows[position][1], rows[position][2]) for position, id in part]
            try:
                answer = await self._ask_worker(address, "put_data", self._info["id"], payload)
            except OSError:  # it has gone; that another of them has its part is as good
                others = [other for other, _ in parts if other != address and other not in gone]
                if broadcast or not others:
                    raise
                gone.add(address)
                return await put(others[0], part)
            kept.extend((address, *row) for row in answer)

        outcomes = await asyncio.gather(*(put(address, part) for address, part in parts), return_exceptions=True)
        await self._call("scatter_end", number, kept)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome


def _prefix(key: Key) -> str:
    """The kind of a task whose key the user chose."""

    name = key[0] if isinstance(key, tuple) and key else key
    return encode.split(str(name))


def _data_key(value: Any, hash: bool) -> str:
    if not hash:
        return f"{type(value).__name__}-{uuid.uuid4().hex}"
    from dask.tokenize import tokenize

    return f"{type(value).__name__}-{tokenize(value)}"


def _differ(one: tuple[bytes, Any] | None, other: tuple[bytes, Any]) -> bool:
    """Whether two calls, as far as that can be seen cheaply, are of other functions or arguments."""
    if one is None:
        return False
    return one[0] != other[0] or (None not in (one[1], other[1]) and one[1] != other[1])
