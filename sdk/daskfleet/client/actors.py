"""Actors: objects that live on a worker, with their state, and are called from anywhere.

``client.submit(Counter, actor=True)`` makes one. Its result is an `Actor`, a proxy of a few bytes; the object itself
stays on its worker for as long as somebody holds the future or a proxy. A call goes to that worker directly, past the
scheduler: it is fast, and nothing is tried again. An actor's state is lost with its worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future as ThreadFuture
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from daskfleet import loop as loops
from daskfleet.client.current import current_client
from daskfleet.client.inside import giving_way
from daskfleet.client.times import seconds
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, dumps, join, loads
from daskfleet.worker.context import current_key, get_worker

if TYPE_CHECKING:
    from daskfleet.client.client import Client
    from daskfleet.client.future import Future

T = TypeVar("T")


class ActorFuture(Generic[T]):
    """The result of an actor's method: ``result()`` it, or await it."""

    def __init__(self, answer: ThreadFuture[T]) -> None:
        self._answer = answer

    def result(self, timeout: float | str | None = None) -> T:
        """The result, waiting for it up to `timeout` (seconds, or a text such as ``"10s"``).

        Raises
        ------
        TimeoutError
        Exception
            What the method raised.
        """
        if self._answer.done():
            return self._answer.result()
        with giving_way():
            return self._answer.result(seconds(timeout))

    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._answer.done()

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._answer).__await__()

    def __repr__(self) -> str:
        return f"<ActorFuture: {'done' if self.done() else 'pending'}>"


class Actor:
    """Stands for an object on a worker.

    Methods return an `ActorFuture`. Other attributes are fetched: their value, or an awaitable of it in an asynchronous
    client. Methods of one actor run one at a time, in the order of the calls; coroutine methods run on the worker's
    event loop and may overlap.
    """

    #: Such a result is not kept on the scheduler: it is worth nothing without its worker.
    __daskfleet_stays__ = True

    def __init__(self, cls: type, address: str, key: Key, *, host: Any = None, future: Future | None = None) -> None:
        self._cls, self._address, self._key = cls, address, key
        self._host, self._future = host, future  # what keeps the object: itself where it lives, its future elsewhere

    def __repr__(self) -> str:
        return f"<Actor: {self._cls.__name__}, key={self._key}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self._cls, self._address, self._key)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *(name for name in dir(self._cls) if not name.startswith("_"))})

    @property
    def key(self) -> Key:
        """Of the task that has made it."""
        return self._key

    @property
    def _client(self) -> Client:
        return self._future.client if self._future is not None else current_client()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if not callable(getattr(self._cls, name, None)):
            return self._client._sync(self._ask, self._client, name, None)

        def method(*args: Any, **kwargs: Any) -> ActorFuture[Any]:
            client = self._client
            return ActorFuture(loops.start_soon(client.loop, self._ask(client, name, dumps((args, kwargs)))))

        method.__name__ = name
        method.__doc__ = getattr(self._cls, name).__doc__
        return method

    async def _ask(self, client: Client, name: str, call: Serialized | None) -> Any:
        try:
            outcome = await client._ask_worker(self._address, "actor", self._key, name, call)
        except ConnectionError as error:
            raise ConnectionError(f"{self!r} was on worker {self._address}, which cannot be reached: {error}") from None
        succeeded, value = loads(join(outcome) if type(outcome) is tuple else outcome)
        if not succeeded:
            raise value
        return value


def _arrived(cls: type, address: str, key: Key) -> Actor:
    from daskfleet.client.future import unbound

    return Actor(cls, address, key, future=unbound(key))


class Make:
    """The task that makes an actor."""

    def __init__(self, cls: Callable[..., Any]) -> None:
        self.cls = cls

    def __call__(self, *args: Any, **kwargs: Any) -> Actor:
        worker, key = get_worker(), current_key()
        instance = self.cls(*args, **kwargs)
        return Actor(type(instance), worker.address, key, host=worker.actors.keep(key, instance))
