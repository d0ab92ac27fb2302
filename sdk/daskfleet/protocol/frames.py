"""Batches of messages as bytes, and bytes as batches of messages.

A frame carries one msgpack array of messages and, behind it, the large buffers those messages mention::

    u32 header length | u32 number of buffers | u64 length of each buffer | header | buffers

Buffers stay outside the msgpack part so that they are never copied into it: on the way out each is handed to the socket
as it is, and on the way in a frame that is larger than the scratch buffer is received straight into the memory that the
unpickled array will use. Small frames, the common case, cost one `unpackb` on the scratch buffer and nothing else.
Both lengths are checked before any memory is taken for them, so a stranger can make us allocate `limit` bytes at most:
a few kilobytes until it has authenticated (`handshake`), and what the operator of the cluster allows afterwards.
"""

from __future__ import annotations

import numbers
import struct
from collections.abc import Iterator
from typing import Any

import msgpack

HEAD = struct.Struct("<II")
SCRATCH = 256 * 1024
#: From this size on a buffer travels beside the msgpack header instead of inside it.
OUT_OF_BAND = 16 * 1024
MAX_FRAME = 1 << 40
#: So many buffers a frame may have at most: their table of lengths must fit into the scratch buffer.
MAX_BUFFERS = 16 * 1024

Message = tuple[Any, ...]
Buffer = bytes | bytearray | memoryview

_EXT_BUFFER = 1
_EXT_INLINE = 2


class ProtocolError(ConnectionError):
    """The peer sent something that is not a frame, or a larger one than it may."""


class Raw:
    """Marks a buffer that should travel beside the header; the receiver sees a `memoryview` in its place."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer


def encode(messages: list[Message]) -> list[Buffer]:
    """The parts of one frame, in order, to be written one after the other.

    Raises
    ------
    TypeError
        If a message holds something that msgpack cannot say.
    """
    buffers: list[memoryview] = []

    def default(value: Any) -> Any:
        if type(value) is Raw:
            view = memoryview(value.buffer).cast("B")
            if len(buffers) == MAX_BUFFERS:
                return msgpack.ExtType(_EXT_INLINE, view.tobytes())
            buffers.append(view)
            return msgpack.ExtType(_EXT_BUFFER, struct.pack("<I", len(buffers) - 1))
        if isinstance(value, numbers.Number) and hasattr(value, "item"):
            return value.item()  # a numpy number, as keys of arrays have them
        raise TypeError(f"cannot send {type(value).__name__} in a message: {value!r:.100}")

    header: bytes = msgpack.packb(messages, default=default)
    if not buffers:
        return [HEAD.pack(len(header), 0) + header]
    sizes = struct.pack(f"<{len(buffers)}Q", *[len(buffer) for buffer in buffers])
    return [HEAD.pack(len(header), len(buffers)) + sizes + header, *buffers]


def _decode(header: memoryview, buffers: list[memoryview]) -> list[Message]:
    def ext_hook(code: int, data: bytes) -> Any:
        if code == _EXT_BUFFER:
            return buffers[struct.unpack("<I", data)[0]]
        if code == _EXT_INLINE:
            return memoryview(bytearray(data))
        raise ProtocolError(f"unknown extension {code} in a message")

    try:
        messages = msgpack.unpackb(header, use_list=False, strict_map_key=False, ext_hook=ext_hook)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a frame that is not msgpack ({error})") from None
    if type(messages) is not tuple:
        raise ProtocolError("a frame that is not a list of messages")
    return list(messages)


class FrameReader:
    """Bytes in, batches of messages out. Ask `buffer()` where to write, say `received(n)`, and iterate what is
    complete.

    Parameters
    ----------
    limit
        Bytes, the largest frame that is accepted; it may be changed between frames.
    """

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.limit = limit
        self._scratch = memoryview(bytearray(SCRATCH))
        self._start = self._end = 0  # what of the scratch is received and not yet read
        self._large: memoryview | None = None  # the rest of a frame that the scratch cannot hold
        self._filled = 0
        self._sizes: tuple[int, ...] = ()
        self._header_size = 0

    def buffer(self) -> memoryview:
        """Where the next bytes of the stream belong; never empty."""
        if self._large is not None:
            return self._large[self._filled :]
        return self._scratch[self._end :]

    def received(self, n: int) -> Iterator[list[Message]]:
        """Note that `n` bytes were written to `buffer()`; yields every batch that is complete now.

        Raises
        ------
        ProtocolError
            The stream is not ours, or a frame is over the limit. Nothing more can be read from it.
        """
        if self._large is not None:
            self._filled += n
            if self._filled < len(self._large):
                return
            body, self._large = self._large, None
            yield self._split(body)
            return
        self._end += n
        while (messages := self._next()) is not None:
            yield messages
        if self._start == self._end:
            self._start = self._end = 0
        elif self._large is None and self._end == SCRATCH:
            rest = bytes(self._scratch[self._start : self._end])
            self._scratch[: len(rest)] = rest
            self._start, self._end = 0, len(rest)

    def _next(self) -> list[Message] | None:
        available = self._end - self._start
        if available < HEAD.size:
            return None
        header_size, count = HEAD.unpack_from(self._scratch, self._start)
        if header_size > self.limit or count > MAX_BUFFERS or 8 * count > self.limit:
            raise ProtocolError(f"not a frame of ours, or one over the limit of {self.limit:,} bytes")
        prefix = HEAD.size + 8 * count
        if available < prefix:
            if prefix > SCRATCH - self._start:
                self._compact()
            return None
        sizes = struct.unpack_from(f"<{count}Q", self._scratch, self._start + HEAD.size)
        total = header_size + sum(sizes)
        if total > self.limit:
            raise ProtocolError(f"a frame of {total:,} bytes is over the limit of {self.limit:,}")
        body_start = self._start + prefix
        self._header_size, self._sizes = header_size, sizes
        if available >= prefix + total:
            self._start = body_start + total
            body = self._scratch[body_start : self._start]
            # The scratch is written over by the next read, so buffers that outlive this call are copied out of it.
            return self._split(memoryview(bytearray(body)) if count else body)
        if total > SCRATCH // 2:
            large = memoryview(bytearray(total))
            have = self._end - body_start
            large[:have] = self._scratch[body_start : self._end]
            self._large, self._filled = large, have
            self._start = self._end = 0
        return None

    def _compact(self) -> None:
        rest = bytes(self._scratch[self._start : self._end])
        self._scratch[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def _split(self, body: memoryview) -> list[Message]:
        buffers, at = [], self._header_size
        for size in self._sizes:
            buffers.append(body[at : at + size])
            at += size
        return _decode(body[: self._header_size], buffers)
