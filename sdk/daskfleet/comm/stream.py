"""Connections over sockets.

Writing goes round asyncio's transport, which copies whatever the socket does not take at once and shifts that copy with
each further write. We keep what is to be written as the pieces it came in and give the socket as many as it takes
(`sendmsg`), on a duplicate of its descriptor, since the loop watches the original for the transport. Reading goes
through the transport until a large frame comes: then we read on by ourselves, straight into the memory where it will
stay, for as long as the socket has something. Encrypted connections have to use the transport, in chunks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections import deque
from typing import Any

from daskfleet.comm import lending, unix
from daskfleet.comm.connection import Connection, dump_error
from daskfleet.protocol import buffers
from daskfleet.protocol.frames import Buffer, FrameReader, ProtocolError, encode
from daskfleet.protocol.handshake import LIMIT

logger = logging.getLogger(__name__)

#: Bytes given to an encrypted transport at a time.
CHUNK = 1 << 20
#: Pieces given to a socket at a time.
PARTS = 256
#: Bytes of a large frame that are read before others on the loop have their turn.
GULP = 8 << 20


class StreamConnection(Connection, asyncio.BufferedProtocol):
    """A connection over a socket: TCP, TLS or Unix."""

    def __init__(self) -> None:
        super().__init__()
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader(limit=LIMIT)
        self._codec: str | None = None
        self._backlog: deque[Buffer] = deque()
        self._closing = False
        self._out: socket.socket | None = None
        self._drained = asyncio.Event()
        self._drained.set()

    @property
    def options_socket(self) -> Any:
        """The socket, for its options; None once it is closed."""
        return self._transport.get_extra_info("socket") if self._transport is not None else None

    def _transmit(self, messages: list[Any]) -> None:
        if self._transport is None:
            return
        try:
            parts = encode(messages, self._codec)
        except Exception:  # one of them cannot be said: the others are not to suffer
            parts = [part for message in messages for part in self._encode_alone(message)]
        self._backlog.extend(part for part in parts if len(part))
        self._write()

    def _encode_alone(self, message: Any) -> list[Buffer]:
        """The parts of a frame of this message only; if it cannot be encoded, that is its sender's failure."""
        try:
            return encode([message], self._codec)
        except Exception as error:
            match message:
                case ("call", number, *_):
                    if (answer := self._calls.get(number)) and not answer.done():
                        answer.set_exception(error)
                case ("reply", number, _):
                    return encode([("error", number, type(error).__name__, str(error), dump_error(error))])
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
            self._loop.call_soon(self.fail, error)  # whoever sends is in the midst of something
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

    def open_up(self, limit: int, codec: str | None = None) -> None:
        """Accept frames of up to `limit` bytes from now on, since the peer has proved itself; compress by `codec`."""
        self._reader.limit, self._reader.compressed, self._codec = limit, codec is not None, codec

    # asyncio.BufferedProtocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.peer = _endpoint(transport.get_extra_info("peername"))
        self.local = _endpoint(transport.get_extra_info("sockname"))
        transport.set_write_buffer_limits(high=CHUNK)  # type: ignore[attr-defined]
        if transport.get_extra_info("ssl_object") is None:
            self._out = transport.get_extra_info("socket").dup()
            self._out.setblocking(False)
            if self._out.family == socket.AF_UNIX and lending.AVAILABLE:
                self.neighbour = unix.process(self._out)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for messages in self._reader.received(nbytes):
                self._dispatch(messages)
            if self._reader.large:
                tidy_later(self._loop)
                if self._out is not None:
                    self._read_on(self._out)
        except ProtocolError as error:
            self.fail(error)

    def _read_on(self, source: socket.socket) -> None:
        """Take what there is of a large frame, without a turn of the loop for each piece."""
        left = GULP
        try:
            while self._reader.large and left > 0 and not self.closed:
                n = source.recv_into(self._reader.buffer())
                if not n:
                    return  # the transport sees the end as well
                left -= n
                for messages in self._reader.received(n):
                    self._dispatch(messages)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
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
        self._drained.set()
        self._backlog.clear()
        if self._out is not None:
            self._loop.remove_writer(self._out)
            self._out.close()
            self._out = None
        super()._finish(error)


_tidying: set[asyncio.AbstractEventLoop] = set()


def tidy_later(loop: asyncio.AbstractEventLoop) -> None:
    """Have memory that large frames leave behind given back in a while."""
    if loop not in _tidying:
        _tidying.add(loop)
        loop.call_later(buffers.SECONDS, _tidy, loop)


def _tidy(loop: asyncio.AbstractEventLoop) -> None:
    _tidying.discard(loop)
    if buffers.expire():
        tidy_later(loop)


def _endpoint(name: Any) -> str:
    match name:
        case (str(host), int(port), *_):
            host = host.removeprefix("::ffff:")  # an IPv4 peer on a socket for both families
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(name or "")
