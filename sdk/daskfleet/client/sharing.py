"""Published datasets, metadata and events: what clients leave for one another on the scheduler."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import logging
import os
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from typing import Any, ClassVar

from daskfleet.client.collections import futures_of
from daskfleet.client.core import Core
from daskfleet.client.inside import get_client
from daskfleet.comm import Connection
from daskfleet.protocol.serialize import dumps_by_value, loads
from daskfleet.worker.context import running_worker

logger = logging.getLogger(__name__)

_missing: Any = object()

EventHandler = Callable[[tuple[float, Any]], Any]


class Datasets(MutableMapping[Any, Any]):
    """`Client.datasets`: published datasets as a mapping; the methods with `Client` names do the work."""

    def __init__(self, client: Sharing) -> None:
        self._client = client

    def __getitem__(self, name: Any) -> Any:
        return self._client.get_dataset(name)

    def __setitem__(self, name: Any, value: Any) -> None:
        self._client.publish_dataset(value, name=name)

    def __delitem__(self, name: Any) -> None:
        if name not in self:
            raise KeyError(name)
        self._client.unpublish_dataset(name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._client.list_datasets())

    async def __aiter__(self) -> AsyncIterator[Any]:
        for name in await self._client.list_datasets():
            yield name

    def __len__(self) -> int:
        return len(self._client.list_datasets())

    def __contains__(self, name: Any) -> bool:
        return name in self._client.list_datasets()

    def __repr__(self) -> str:
        return f"<Datasets: {', '.join(map(str, self)) or 'none'}>"


class Sharing(Core):
    """Datasets, metadata, events."""

    _built_in: ClassVar[dict[str, EventHandler]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._topics: dict[str, EventHandler] = {}
        self._running: set[asyncio.Task[Any]] = set()
        super().__init__(*args, **kwargs)
        self._handlers["event"] = self._on_events

    async def _introduce(self, connection: Connection) -> None:
        await super()._introduce(connection)
        for topic in self._topics:  # of a connection that was lost, perhaps with its scheduler
            connection.send(("subscribe", topic))

    # Datasets ------------------------------------------------------------------------------------------------------

    def publish_dataset(self, *args: Any, name: Any = None, override: bool = False, **kwargs: Any) -> Any:
        """Keep persisted collections, futures or lists of them under names, for other clients and later sessions.

        Parameters
        ----------
        *args
            One collection, which needs `name`.
        override
            Replace one of that name.
        **kwargs
            Collections by name.

        Raises
        ------
        KeyError
            The name is taken, or the data is not on the cluster any more.

        Notes
        -----
        What is computed by then outlives the client and the scheduler: workers hold the data, and a few know the names.
        What is still to be computed outlives the client only, so `wait` for it where that matters.
        """
        if (name is None) == bool(args) or len(args) > 1:
            raise ValueError("publish_dataset takes one collection with name=, or collections by keyword")
        return self._sync(self._publish, {name: args[0]} if args else kwargs, override)

    async def _publish(self, datasets: dict[Any, Any], override: bool) -> None:
        for name, data in datasets.items():
            keys = [future.key for future in futures_of(data)]
            await self._call("dataset_publish", name, dumps_by_value(data), keys, override)

    def unpublish_dataset(self, name: Any) -> Any:
        """Let a published dataset go."""
        return self._sync(self._call, "dataset_unpublish", name)

    def list_datasets(self) -> Any:
        """The names of published datasets."""
        return self._sync(self._call, "dataset_list")

    def get_dataset(self, name: Any, default: Any = _missing) -> Any:
        """A published dataset, or `default`.

        Raises
        ------
        KeyError
            There is none of that name, and no default.
        """
        return self._sync(self._get_dataset, name, default)

    async def _get_dataset(self, name: Any, default: Any) -> Any:
        data = await self._call("dataset_get", name)
        if data is not None:
            with self.as_current():  # whose the futures in it will be
                return loads(data)
        if default is not _missing:
            return default
        names = ", ".join(map(str, await self._call("dataset_list")))
        raise KeyError(f"no dataset {name!r} is published; there are: {names or 'none'}")

    @property
    def datasets(self) -> Datasets:
        """Published datasets as a mapping; of an asynchronous client, their names by ``async for``."""
        return Datasets(self)

    # Metadata ------------------------------------------------------------------------------------------------------

    def set_metadata(self, key: Any, value: Any) -> Any:
        """Leave a fact on the scheduler, which one that is started in its place has from the workers.

        Parameters
        ----------
        key
            A name, or a list of names: a path into nested dicts, whose other members stay.
        value
            Anything that can be pickled; a dict's members can be got and set one by one.
        """
        return self._sync(self._call, "metadata_set", _path(key), _pack(value))

    def get_metadata(self, keys: Any, default: Any = _missing) -> Any:
        """What was left under a name or a path of names.

        Raises
        ------
        KeyError
            Nothing, and there is no default.
        """
        return self._sync(self._get_metadata, _path(keys), default)

    async def _get_metadata(self, path: list[Any], default: Any) -> Any:
        there, value = await self._call("metadata_get", path)
        if there:
            return _unpack(value)
        if default is _missing:
            raise KeyError(path[0] if len(path) == 1 else path)
        return default

    # Events --------------------------------------------------------------------------------------------------------

    def log_event(self, topic: Any, msg: Any) -> Any:
        """Note an event, with the time, under a topic or several. Events end with the scheduler.

        Parameters
        ----------
        msg
            Anything that can be pickled.
        """
        topics = topic if isinstance(topic, str) else list(topic)
        self._send(("log_event", (topics, dumps_by_value(msg))))
        return self._nothing()

    def get_events(self, topic: str | None = None) -> Any:
        """``((time, message), …)`` of a topic, oldest first; without one, of all topics by name."""
        return self._sync(self._get_events, topic)

    async def _get_events(self, topic: str | None) -> Any:
        rows = await self._call("get_events", topic)
        if topic is not None:
            return tuple((when, _event(message)) for when, message in rows)
        return {name: tuple((when, _event(message)) for when, message in events) for name, events in rows}

    def subscribe_topic(self, topic: str, handler: EventHandler) -> Any:
        """Call ``handler((time, message))`` for each event of a topic from now on.

        One handler a topic: another takes the place of the first. It runs on the event loop if it is a coroutine
        function, else in a thread.
        """
        if topic not in self._topics:
            self._send(("subscribe", topic))
        self._topics[topic] = handler
        return self._nothing()

    def unsubscribe_topic(self, topic: str) -> Any:
        """Hear no more of it.

        Raises
        ------
        ValueError
            There is no handler for this topic.
        """
        if self._topics.pop(topic, None) is None:
            raise ValueError(f"no handler is subscribed to topic {topic!r}")
        self._send(("unsubscribe", topic))
        return self._nothing()

    def _on_events(self, rows: list[tuple[str, float, Any]]) -> None:
        for topic, when, message in rows:
            handler = self._topics.get(topic) or self._built_in.get(topic)
            if handler is None:
                continue
            if inspect.iscoroutinefunction(handler):
                task = asyncio.ensure_future(handler((when, _event(message))))
                self._running.add(task)
                task.add_done_callback(self._ended)
            else:
                self._in_thread(_handle, handler, topic, when, message)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a handler of events failed", exc_info=error)


def _handle(handler: EventHandler, topic: str, when: float, message: Any) -> None:
    try:
        handler((when, _event(message)))
    except Exception:
        logger.exception("a handler of events of topic %r failed", topic)


def _event(message: Any) -> Any:
    """A message of a user's is a pickle; the scheduler's own are plain."""
    return loads(message) if isinstance(message, (bytes, memoryview)) else message


def _path(key: Any) -> list[Any]:
    return list(key) if isinstance(key, (list, tuple)) else [key]


def _pack(value: Any) -> Any:
    if type(value) is dict and all(isinstance(key, (str, int)) for key in value):
        return {key: _pack(item) for key, item in value.items()}
    return dumps_by_value(value)


def _unpack(value: Any) -> Any:
    return {key: _unpack(item) for key, item in value.items()} if isinstance(value, dict) else loads(value)


# In tasks -----------------------------------------------------------------------------------------------------------


def print(*args: Any, sep: str | None = " ", end: str | None = "\n", file: Any = None, flush: bool = False) -> None:
    """Print here and, from a task, in every client's process too; the parameters are the builtin's.

    `file` may be `sys.stdout` or `sys.stderr` where it is to appear on clients.
    """
    builtins.print(*args, sep=sep, end=end, file=file, flush=flush)
    stream = {None: 1, sys.stdout: 1, sys.stderr: 2}.get(file)
    if stream is not None and running_worker() is not None:
        text = (" " if sep is None else sep).join(map(str, args)) + ("\n" if end is None else end)
        get_client().log_event("print", (os.getpid(), stream, text))


def warn(
    message: str | Warning, category: type[Warning] | None = UserWarning, stacklevel: int = 1, source: Any = None
) -> None:
    """Warn here and, from a task, in every client's process too; the parameters are those of `warnings.warn`."""
    warnings.warn(message, category, stacklevel + 1, source)
    if running_worker() is not None:
        get_client().log_event("warn", (os.getpid(), message, category))


def _print_here(event: tuple[float, Any]) -> None:
    process, stream, text = event[1]
    if process != os.getpid():
        (sys.stderr if stream == 2 else sys.stdout).write(text)


def _warn_here(event: tuple[float, Any]) -> None:
    process, message, category = event[1]
    if process != os.getpid():
        warnings.warn(message, category, stacklevel=1)


BUILT_IN: dict[str, EventHandler] = {"print": _print_here, "warn": _warn_here}
