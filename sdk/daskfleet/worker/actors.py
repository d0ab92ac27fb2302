"""The actors that live on a worker."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, dumps, dumps_by_value, loads
from daskfleet.worker import context

if TYPE_CHECKING:
    from daskfleet.worker.server import Worker


class Host:
    """An actor and the thread in which its methods run."""

    def __init__(self, instance: Any) -> None:
        self.instance = instance
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="daskfleet-actor")

    async def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method."""
        method = getattr(self.instance, name)
        if inspect.iscoroutinefunction(method):
            return await method(*args, **kwargs)
        run = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: run(method, *args, **kwargs))

    def __del__(self) -> None:
        self._thread.shutdown(wait=False)


class Actors:
    """By key. The result of the task that made an actor holds it; when that is let go, so is the actor."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._hosts: weakref.WeakValueDictionary[Key, Host] = weakref.WeakValueDictionary()

    def keep(self, key: Key, instance: Any) -> Host:
        """Take an actor in; it is here for as long as the answer is held."""
        host = self._hosts[key] = Host(instance)
        return host

    async def ask(self, key: Key, name: str, call: Serialized | None) -> Serialized:
        """Call a method, or (`call` is None) fetch an attribute: ``(succeeded, value or error)``."""
        context.coroutine.set(context.Coroutine(self._worker, None))
        host = self._hosts.get(key)
        try:
            if host is None:
                raise LookupError(f"the actor {key!r} is not on worker {self._worker.address} any more")
            if call is None:
                return dumps((True, getattr(host.instance, name)))
            args, kwargs = loads(call)
            return dumps((True, await host.call(name, args, kwargs)))
        except Exception as error:
            return dumps((False, loads(dumps_by_value(error))))
