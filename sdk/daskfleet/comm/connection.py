"""One connection: messages in batches, and calls with an answer.

`send` only appends to a list; one callback at the end of the loop's pass encodes whatever has gathered and writes it as
a single frame. So a burst of ten thousand messages costs a handful of frames, a lone message waits for no timer, and
nobody who sends has to think about batching. Receiving is the mirror image: a handler gets whole batches and is called
straight from the socket's read callback, no task or future in between.

Writing goes round asyncio's transport, which copies whatever the socket does not take at once and shifts that copy with
each further write. We keep what is to be written as the pieces it came in and give the socket as many as it takes
(`sendmsg`), on a duplicate of its descriptor, since the loop watches the original for the transport. Encrypted
connections have to use the transport, in chunks.

Calls ride on the same messages: ``("call", n, method, args)`` is answered by ``("reply", n, value)`` or ``("error", n,
type, text, pickle)``. They are for everything that is not hot. Every waiting call ends when the connection does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from daskfleet.protocol.frames import Buffer, FrameReader, Message, ProtocolError, encode
from daskfleet.protocol.handshake import LIMIT

logger = logging.getLogger(__name__)

#: Bytes given to an encrypted transport at a time.
CHUNK = 1 << 20
#: Pieces given to a socket at a time.
PARTS = 256

Handler = Callable[["Connection", list[Message]], None]
Caller = Callable[["Connection", str, tuple[Any, ...]], Awaitable[Any]]


class CommClosedError(ConnectionError):
    """The connection is gone; whatever waited for an answer on it gets this."""


class RemoteError(RuntimeError):
    """The peer failed while it answered a call."""


class Connection(asyncio.BufferedProtocol):
    """A stream of messages with a peer; made by `connect` and `listen`, used on its loop's thread only.

    Attributes
    ----------
    on_messages
        Called with each batch of messages that are not part of a call.
    on_call
        Coroutine function that answers the peer's calls; what it raises travels back.
    on_close
        Called once, when the connection is gone, with the reason or None.
    """

    def __init__(self) -> None:
        self.on_messages: Handler = _ignore
        self.on_call: Caller = _no_calls
        self.on_close: Callable[[Connection, Exception | None], None] = _ignore
        self.closed = False
        self.peer = ""
        self.local = ""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader(limit=LIMIT)
        self._outgoing: list[Any] = []
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._answers: set[asyncio.Task[None]] = set()
        self._backlog: deque[Buffer] = deque()
        self._closing = False
        self._out: socket.socket | None = None
        self._drained = asyncio.Event()
        self._drained.set()

    @property
    def options_socket(self) -> Any:
        """The socket, for its options; None once it is closed."""
        return self._transport.get_extra_info("socket") if self._transport is not None else None

    def send(self, message: Message | dict[str, Any]) -> None:
        """Queue `message`; it leaves with this pass of the event loop. Dropped when the connection is closed."""
        if self.closed:
            return
        if not self._outgoing:
            self._loop.call_soon(self.flush)
        self._outgoing.append(message)

    def flush(self) -> None:
        """Write what is queued now."""
        if not self._outgoing or self.closed or self._transport is None:
            return
        messages, self._outgoing = self._outgoing, []
        try:
            parts = encode(messages)
        except Exception:  # one of them cannot be said: the others are not to suffer
            parts = [part for message in messages for part in self._encode_alone(message)]
        self._backlog.extend(part for part in parts if len(part))
        self._write()

    def _encode_alone(self, message: Any) -> list[Buffer]:
        """The parts of a frame of this message only; if it cannot be encoded, that is its sender's failure."""
        try:
            return encode([message])
        except Exception as error:
            match message:
                case ("call", number, *_):
                    if (answer := self._calls.get(number)) and not answer.done():
                        answer.set_exception(error)
                case ("reply", number, _):
                    return encode([("error", number, type(error).__name__, str(error), _dump(error))])
                case _:
                    logger.error("a message to %s cannot be sent: %s", self.peer, error)
        return []

    def _write(self) -> None:
        """Write as much as the connection takes now; the rest when it is ready for more."""
        if self._out is None:
            self._write_encrypted()
        else:
            self._write_plain(self._out)
        if self._closing and not self._backlog and self._transport is not None:
            self._transport.close()

    def _write_plain(self, out: socket.socket) -> None:
        backlog = self._backlog
        try:
            while backlog:
                sent = out.sendmsg(list(itertools.islice(backlog, PARTS)))
                while sent:
                    part = backlog[0]
                    if sent < len(part):
                        backlog[0] = memoryview(part)[sent:]
                        break
                    sent -= len(part)
                    backlog.popleft()
        except (BlockingIOError, InterruptedError):
            if self._drained.is_set():
                self._drained.clear()
                self._loop.add_writer(out, self._write)
            return
        except OSError as error:
            self.fail(error)
            return
        if not self._drained.is_set():
            self._drained.set()
            self._loop.remove_writer(out)

    def _write_encrypted(self) -> None:
        while self._backlog and self._drained.is_set() and self._transport is not None:
            part = self._backlog.popleft()
            if len(part) > CHUNK:
                view = memoryview(part)
                self._backlog.appendleft(view[CHUNK:])
                part = view[:CHUNK]
            self._transport.write(part)

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
            return await asyncio.wait_for(answer, timeout)
        except TimeoutError:
            if answer.done() and not answer.cancelled():
                raise
            raise TimeoutError(f"{self.peer} did not answer {method!r} within {timeout:g} s") from None
        finally:
            self._calls.pop(number, None)

    async def drain(self) -> None:
        """Wait until the socket has taken enough that more may be written."""
        self.flush()
        await self._drained.wait()

    def close(self) -> None:
        """Send what is queued, then close."""
        if self._transport is not None and not self.closed:
            self.flush()
            self._closing = True
            self._write()

    def abort(self) -> None:
        """Close at once; what is queued is lost."""
        if self._transport is not None:
            self._transport.abort()

    def open_up(self, limit: int) -> None:
        """Accept frames of up to `limit` bytes from now on: the peer has proved itself."""
        self._reader.limit = limit

    def reset_handlers(self) -> None:
        """Forget who listens; what arrives meanwhile is dropped."""
        self.on_messages, self.on_call, self.on_close = _ignore, _no_calls, _ignore

    def fail(self, error: Exception) -> None:
        """Drop the peer because of `error`."""
        self._finish(error)
        self.abort()

    # asyncio.BufferedProtocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.peer = _endpoint(transport.get_extra_info("peername"))
        self.local = _endpoint(transport.get_extra_info("sockname"))
        transport.set_write_buffer_limits(high=CHUNK)  # type: ignore[attr-defined]
        if transport.get_extra_info("ssl_object") is None:
            self._out = transport.get_extra_info("socket").dup()
            self._out.setblocking(False)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for messages in self._reader.received(nbytes):
                self._dispatch(messages)
        except ProtocolError as error:
            self.fail(error)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(exc)

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()
        self._write()

    # ---------------------------------------------------------------------------------------------------------------

    def _finish(self, error: Exception | None) -> None:
        if self.closed:
            return
        self.closed = True
        self._drained.set()
        self._backlog.clear()
        if self._out is not None:
            self._loop.remove_writer(self._out)
            self._out.close()
            self._out = None
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(CommClosedError(f"the connection to {self.peer} was lost"))
        self.on_close(self, error)

    def _dispatch(self, messages: list[Message]) -> None:
        plain = messages
        if any(type(message) is tuple and message and message[0] in _RPC for message in messages):
            plain = [message for message in messages if not self._is_rpc(message)]
        if plain and not self.closed:
            self.on_messages(self, plain)

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
            self.send(("error", number, type(error).__name__, str(error), _dump(error)))


_RPC = frozenset({"call", "reply", "error"})


def _ignore(*_: Any) -> None:
    pass


async def _no_calls(_: Connection, method: str, __: tuple[Any, ...]) -> Any:
    raise ValueError(f"no such method: {method}")


def _endpoint(name: Any) -> str:
    match name:
        case (str(host), int(port), *_):
            host = host.removeprefix("::ffff:")  # an IPv4 peer on a socket for both families
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(name or "")


def _dump(error: Exception) -> bytes:
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
