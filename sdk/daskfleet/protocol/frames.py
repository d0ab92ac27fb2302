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

from daskfleet.protocol import compression
from daskfleet.protocol.buffers import allocate

HEAD = struct.Struct("<II")
SCRATCH = 256 * 1024
#: From this size on a buffer travels beside the msgpack header instead of inside it.
OUT_OF_BAND = 16 * 1024
MAX_FRAME = 1 << 40
#: So many buffers a frame may have at most: their table of lengths must fit into the scratch buffer.
MAX_BUFFERS = 16 * 1024
#: Bytes of a header at most: its length has 32 bits.
MAX_HEADER = (1 << 32) - 1

Message = tuple[Any, ...]
Buffer = bytes | bytearray | memoryview

_EXT_BUFFER = 1
_EXT_PIECE = 2
_EXT_COMPRESSED = 3
_PIECE = struct.Struct("<QQ")
_COMPRESSED = struct.Struct("<IQ")


class ProtocolError(ConnectionError):
    """The peer sent something that is not a frame, or a larger one than it may."""


class Raw:
    """Marks a buffer that should travel beside the header; the receiver sees a `memoryview` in its place."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer


def encode(messages: list[Message], codec: str | None = None) -> list[Buffer]:
    """The parts of one frame, in order, to be written one after the other.

    Parameters
    ----------
    codec
        Compresses the buffers, as far as that pays.

    Raises
    ------
    TypeError
        If a message holds something that msgpack cannot say.
    OverflowError
        If what is in the header takes more than `MAX_HEADER` bytes.
    """
    buffers: list[memoryview] = []
    rest = bytearray()  # all those over the number that a frame may have

    def default(value: Any) -> Any:
        if type(value) is Raw:
            view = memoryview(value.buffer).cast("B")
            if len(buffers) == MAX_BUFFERS - 1:
                rest.extend(view)
                return msgpack.ExtType(_EXT_PIECE, _PIECE.pack(len(rest) - len(view), len(rest)))
            if codec is not None and (shorter := compression.compress(codec, view)) is not None:
                buffers.append(memoryview(shorter))
                what = _COMPRESSED.pack(len(buffers) - 1, len(view)) + codec.encode()
                return msgpack.ExtType(_EXT_COMPRESSED, what)
            buffers.append(view)
            return msgpack.ExtType(_EXT_BUFFER, struct.pack("<I", len(buffers) - 1))
        if isinstance(value, numbers.Number) and hasattr(value, "item"):
            return value.item()  # a numpy number, as keys of arrays have them
        raise TypeError(f"cannot send {type(value).__name__} in a message: {value!r:.100}")

    header: bytes = msgpack.packb(messages, default=default)
    if len(header) > MAX_HEADER:
        raise OverflowError(
            f"{len(header) / 1e9:.1f} GB in pieces under {OUT_OF_BAND // 1024} KiB are too many for one message: "
            "join them, into one array for instance, or divide them among several tasks"
        )
    if rest:
        buffers.append(memoryview(rest))
    if not buffers:
        return [HEAD.pack(len(header), 0) + header]
    sizes = struct.pack(f"<{len(buffers)}Q", *[len(buffer) for buffer in buffers])
    return [HEAD.pack(len(header), len(buffers)) + sizes + header, *buffers]


def _decode(header: memoryview, buffers: list[memoryview], compressed: bool) -> list[Message]:
    def ext_hook(code: int, data: bytes) -> Any:
        if code == _EXT_BUFFER:
            return buffers[struct.unpack("<I", data)[0]]
        if code == _EXT_PIECE:
            start, end = _PIECE.unpack(data)
            return memoryview(bytearray(buffers[-1][start:end]))
        if code == _EXT_COMPRESSED and compressed:
            index, size = _COMPRESSED.unpack_from(data)
            return compression.restore(data[_COMPRESSED.size :].decode(), buffers[index], size)
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
    """Bytes in, batches of messages out: write where `buffer()` says, tell `received(n)`, iterate what is complete.

    Small frames gather in one scratch buffer. The parts of a large one (header, buffers) are received each into memory
    of its own, so that nothing is copied afterwards and none of them keeps the others alive.

    Parameters
    ----------
    limit
        Bytes, the largest frame that is accepted; it may be changed between frames.
    compressed
        Whether its buffers may be, so that they need more memory than their bytes; that, too, may be changed.
    """

    def __init__(self, limit: int = MAX_FRAME, compressed: bool = False) -> None:
        self.limit, self.compressed = limit, compressed
        self._scratch = memoryview(bytearray(SCRATCH))
        self._start = self._end = 0  # what of the scratch is received and not yet read
        self._parts: list[memoryview] = []  # of a frame that the scratch cannot hold
        self._part = self._filled = 0  # the part being received, and how much of it is there

    @property
    def large(self) -> bool:
        """Whether what comes next belongs to a frame that is received in parts."""
        return bool(self._parts)

    def buffer(self) -> memoryview:
        """Where the next bytes of the stream belong; never empty."""
        if self._parts:
            return self._parts[self._part][self._filled :]
        return self._scratch[self._end :]

    def received(self, n: int) -> Iterator[list[Message]]:
        """Note that `n` bytes were written to `buffer()`; yields every batch that is complete now.

        Raises
        ------
        ProtocolError
            The stream is not ours, or a frame is over the limit. Nothing more can be read from it.
        """
        if self._parts:
            self._filled += n
            self._skip_full()
            if self._part == len(self._parts):
                header, *buffers = self._parts
                self._parts = []
                yield _decode(header, buffers, self.compressed)
            return
        self._end += n
        while (messages := self._next()) is not None:
            yield messages
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == SCRATCH:
            self._compact()

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
        at = self._start + prefix
        if available >= prefix + total:
            self._start = at + total
            return self._in_scratch(at, header_size, sizes)
        if total > SCRATCH // 2:
            self._receive_apart(at, header_size, sizes)
        return None

    def _in_scratch(self, at: int, header_size: int, sizes: tuple[int, ...]) -> list[Message]:
        header = self._scratch[at : at + header_size]
        at += header_size
        buffers = []
        for size in sizes:
            # The next read overwrites the scratch; what outlives this one is copied out of it.
            buffers.append(memoryview(bytearray(self._scratch[at : at + size])))
            at += size
        return _decode(header, buffers, self.compressed)

    def _receive_apart(self, at: int, header_size: int, sizes: tuple[int, ...]) -> None:
        self._parts = [allocate(size) for size in (header_size, *sizes)]
        self._part = self._filled = 0
        while at < self._end:
            target = self._parts[self._part][self._filled :]
            n = min(len(target), self._end - at)
            target[:n] = self._scratch[at : at + n]
            at += n
            self._filled += n
            self._skip_full()
        self._skip_full()
        self._start = self._end = 0

    def _skip_full(self) -> None:
        while self._part < len(self._parts) and self._filled == len(self._parts[self._part]):
            self._part, self._filled = self._part + 1, 0

    def _compact(self) -> None:
        rest = bytes(self._scratch[self._start : self._end])
        self._scratch[: len(rest)] = rest
        self._start, self._end = 0, len(rest)
