"""One connection: messages in batches, and calls with an answer.

`send` only appends to a list; one callback at the end of the loop's pass hands on whatever has gathered at once. So a
burst of ten thousand messages costs a handful of frames, a lone message waits for no timer, and nobody who sends has to
think about batching. Receiving is the mirror image: a handler gets whole batches and is called straight from the
socket's read callback, no task or future in between.

How a batch gets to the other side is up to the subclass: over a socket (`stream`) or within a process (`inproc`).

Calls ride on the same messages: ``("call", n, method, args)`` is answered by ``("reply", n, value)`` or ``("error", n,
type, text, pickle)``. They are for everything that is not hot. Every waiting call ends when the connection does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
from collections.abc import Awaitable, Callable
from typing import Any

from daskfleet.protocol.frames import Message

logger = logging.getLogger(__name__)

Handler = Callable[["Connection", list[Message]], None]
Caller = Callable[["Connection", str, tuple[Any, ...]], Awaitable[Any]]


class CommClosedError(ConnectionError):
    """The connection is gone; whatever waited for an answer on it gets this."""


class RemoteError(RuntimeError):
    """The peer failed while it answered a call."""


class Connection:
    """A stream of messages with a peer; made by `connect` and `listen`, used on its loop's thread only.

    Attributes
    ----------
    on_messages
        Called with each batch of messages that are not part of a call.
    on_call
        Coroutine function that answers the peer's calls; what it raises travels back.
    on_close
        Called once, when the connection is gone, with the reason or None.
    peer, local
        ``host:port`` of the two ends, as far as known.
    neighbour
        The number of the peer's process, if that is one of this machine and its memory may be read (`lending`).
    inproc
        Whether the peer is on the same loop, where a message for itself costs no more than one of a batch.
    """

    inproc = False

    def __init__(self) -> None:
        self.on_messages: Handler = _ignore
        self.on_call: Caller = _no_calls
        self.on_close: Callable[[Connection, Exception | None], None] = _ignore
        self.closed = False
        self.peer = ""
        self.local = ""
        self.neighbour: int | None = None
        self._loop = asyncio.get_running_loop()
        self._outgoing: list[Any] = []
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._answers: set[asyncio.Task[None]] = set()

    def send(self, message: Message | dict[str, Any]) -> None:
        """Queue `message`; it leaves with this pass of the event loop. Dropped when the connection is closed."""
        if self.closed:
            return
        if not self._outgoing:
            self._loop.call_soon(self.flush)
        self._outgoing.append(message)

    def send_now(self, messages: list[Any]) -> None:
        """Send these after what is queued, without waiting for the end of the loop's pass. It saves a lone message that
        pass. For callbacks of the loop that end here: within a process, the peer hears them before this returns."""
        if not self.closed:
            self._outgoing += messages
            self.flush()

    def flush(self) -> None:
        """Hand on what is queued now."""
        if self._outgoing and not self.closed:
            messages, self._outgoing = self._outgoing, []
            self._transmit(messages)

    def _transmit(self, messages: list[Any]) -> None:
        """Have these reach the other side."""
        raise NotImplementedError

    async def call(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        """Ask the peer and wait for its answer.

        Raises
        ------
        TimeoutError
            No answer within `timeout` seconds.
        CommClosedError
            The connection ended first.
        Exception
            Whatever the peer's method raised, or `RemoteError` with its text when that cannot be rebuilt here.
        """
        if self.closed:
            raise CommClosedError(f"the connection to {self.peer} is closed")
        number = next(self._numbers)
        answer = self._calls[number] = self._loop.create_future()
        self.send(("call", number, method, args))
        try:
            async with asyncio.timeout(timeout) as deadline:  # `wait_for` of 3.11 forgets that it was cancelled
                return await answer
        except TimeoutError:
            if not deadline.expired():
                raise
            raise TimeoutError(f"{self.peer} did not answer {method!r} within {timeout:g} s") from None
        finally:
            self._calls.pop(number, None)

    async def drain(self) -> None:
        """Wait until the peer has taken enough that more may be sent."""
        self.flush()

    def close(self) -> None:
        """Send what is queued, then close."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close at once; what is queued is lost."""
        raise NotImplementedError

    def open_up(self, limit: int, codec: str | None = None) -> None:
        """Accept frames of up to `limit` bytes from now on, since the peer has proved itself; compress by `codec`."""

    def reset_handlers(self) -> None:
        """Forget who listens; what arrives meanwhile is dropped."""
        self.on_messages, self.on_call, self.on_close = _ignore, _no_calls, _ignore

    def fail(self, error: Exception) -> None:
        """Drop the peer because of `error`."""
        self._finish(error)
        self.abort()

    def _finish(self, error: Exception | None) -> None:
        if self.closed:
            return
        self.closed = True
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(CommClosedError(f"the connection to {self.peer} was lost"))
        self.on_close(self, error)

    def _dispatch(self, messages: list[Message]) -> None:
        for message in messages:
            if type(message) is tuple and message and message[0] in _RPC:
                messages = [message for message in messages if not self._is_rpc(message)]
                break
        if messages and not self.closed:
            self.on_messages(self, messages)

    def _is_rpc(self, message: Message) -> bool:
        match message:
            case ("call", number, method, args):
                task = self._loop.create_task(self._answer(number, method, args))
                self._answers.add(task)
                task.add_done_callback(self._answers.discard)
            case ("reply", number, value):
                if (answer := self._calls.get(number)) and not answer.done():
                    answer.set_result(value)
            case ("error", number, name, text, blob):
                if (answer := self._calls.get(number)) and not answer.done():
                    answer.set_exception(_rebuild(name, text, blob))
            case _:
                return False
        return True

    async def _answer(self, number: int, method: str, args: tuple[Any, ...]) -> None:
        try:
            value = await self.on_call(self, method, args)
            self.send(("reply", number, value))
        except Exception as error:
            if not isinstance(error, (OSError, ValueError, KeyError, TimeoutError)):
                logger.exception("answering %s from %s failed", method, self.peer)
            self.send(("error", number, type(error).__name__, str(error), dump_error(error)))


_RPC = frozenset({"call", "reply", "error"})


def _ignore(*_: Any) -> None:
    pass


async def _no_calls(_: Connection, method: str, __: tuple[Any, ...]) -> Any:
    raise ValueError(f"no such method: {method}")


def dump_error(error: Exception) -> bytes:
    try:
        return pickle.dumps(error)
    except Exception:
        return b""


def _rebuild(name: str, text: str, blob: bytes) -> Exception:
    if blob:
        try:
            error = pickle.loads(blob)
            if isinstance(error, Exception):
                return error
        except Exception as reason:
            logger.debug("a %s of the peer could not be rebuilt here: %s", name, reason)
    return RemoteError(f"{name}: {text}")
