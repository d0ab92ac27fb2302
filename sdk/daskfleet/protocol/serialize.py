"""Python objects as bytes: pickle where it will do, cloudpickle where it must.

`Serialized` is what travels: one pickle, or a pickle and the out-of-band buffers (PEP 574) that it refers to. C pickle
is tried first since it costs a microsecond where cloudpickle costs twenty. It has one trap: what is defined in
``__main__`` it stores by reference, which means nothing in another process; such a pickle names ``__main__``, so it is
recognised by that and made again with cloudpickle, which stores it by value.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

from daskfleet.protocol.frames import OUT_OF_BAND, Buffer, Raw

PROTOCOL = 5

#: A pickle, or a pickle followed by its buffers.
Serialized = Buffer | tuple[Any, ...]


def dumps(value: Any) -> Serialized:
    """Serialise `value`.

    Raises
    ------
    TypeError
        If neither pickle nor cloudpickle can store it; the message names the type and the reason.
    """
    buffers: list[pickle.PickleBuffer] = []
    if type(value) is bytes and len(value) >= OUT_OF_BAND:
        value = _Bytes(value)
    try:
        blob = pickle.dumps(value, PROTOCOL, buffer_callback=buffers.append)
        by_value = _needs_value(blob)
    except Exception:
        by_value = True
    if by_value:
        buffers.clear()
        blob = _cloudpickle(value, buffers.append)
    if not buffers and len(blob) < OUT_OF_BAND:
        return blob
    return (Raw(blob) if len(blob) >= OUT_OF_BAND else blob, *map(_buffer, buffers))


class _Bytes:
    """Bytes that are not to be copied into the pickle."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (pickle.PickleBuffer(self.value),)


def dumps_by_value(value: Any) -> bytes:
    """One pickle without out-of-band buffers: for functions and exceptions, which are stored and compared as bytes."""
    with contextlib.suppress(Exception):  # cloudpickle is next, and tells what is wrong if it fails as well
        blob = pickle.dumps(value, PROTOCOL)
        if not _needs_value(blob):
            return blob
    return _cloudpickle(value, None)


def _needs_value(blob: bytes) -> bool:
    """Whether a pickle refers to what only this process can import: its main module, or modules that the user has named
    by ``cloudpickle.register_pickle_by_value``."""
    if b"__main__" in blob:
        return True
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is None or not (named := cloudpickle.list_registry_pickle_by_value()):
        return False
    return any(module.encode() in blob for module in named)


def _cloudpickle(value: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None) -> bytes:
    import cloudpickle

    try:
        blob: bytes = cloudpickle.dumps(value, protocol=PROTOCOL, buffer_callback=buffer_callback)
    except Exception as error:
        raise TypeError(f"cannot pickle {_describe(value)}: {type(error).__name__}: {error}") from error
    return blob


def _describe(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return f"{type(value).__name__} {name}" if name else f"an object of type {type(value).__qualname__}"


def _buffer(buffer: pickle.PickleBuffer) -> Buffer | Raw:
    try:
        view = buffer.raw()
    except BufferError:  # neither C- nor F-contiguous
        view = memoryview(memoryview(buffer).tobytes())
    return Raw(view) if view.nbytes >= OUT_OF_BAND else view.tobytes()


def loads(serialized: Serialized) -> Any:
    """The object again. Buffers are used in place where the object allows it, so they stay referenced."""
    if type(serialized) is tuple:
        blob, *parts = flat(serialized)
        buffers = [_writable(part) for part in parts]
    else:
        blob, buffers = _unwrap(serialized), []
    if type(blob) is bytes and blob.find(b".", 0, len(blob) - 1) < 0:  # the last byte of each pickle is a dot
        return pickle.loads(blob, buffers=buffers)
    stream = io.BytesIO(blob) if type(blob) is bytes else _Stream(blob)  # neither copies
    return _Unpickler(stream, buffers=buffers).load()


class _Stream:
    """A buffer as a file. The unpickler reads large strings straight to where they stay, the rest by 64 KiB."""

    def __init__(self, buffer: Buffer) -> None:
        self._rest = memoryview(buffer)

    def read(self, n: int) -> bytes:
        piece, self._rest = self._rest[:n], self._rest[n:]
        return bytes(piece)

    def readinto(self, target: memoryview) -> int:
        n = min(len(target), len(self._rest))
        target[:n], self._rest = self._rest[:n], self._rest[n:]
        return n

    def readline(self) -> bytes:
        raise pickle.UnpicklingError("a pickle of protocol 0, which is none of ours")


class _Unpickler(pickle.Unpickler):
    """Imports packages from the top, so that threads which need one package at once wait for each other.

    Python takes the lock of ``numpy.core`` before that of ``numpy``, but whoever imports ``numpy`` the other way round;
    it then gives one of the two a module that is half there. A microsecond, so only where a dotted name can be.
    """

    def find_class(self, module: str, name: str, /) -> Any:
        if module not in sys.modules and "." in module:
            parts = module.split(".")
            for end in range(1, len(parts)):
                importlib.import_module(".".join(parts[:end]))
        return super().find_class(module, name)


def refusal(reason: Exception) -> bytes:
    """What to send in place of a value that cannot be pickled: whoever reads it gets the reason raised."""
    return pickle.dumps(_Refusal(str(reason)), PROTOCOL)


class _Refusal:
    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, (self.text,)


def _refuse(text: str) -> None:
    raise TypeError(text)


def _unwrap(part: Any) -> Any:
    return part.buffer if type(part) is Raw else part


def _writable(buffer: Buffer) -> Buffer:
    # An array over read-only bytes would be read-only itself, and tasks do write into their inputs' copies.
    return bytearray(buffer) if type(buffer) is bytes else buffer


def nbytes(serialized: Serialized) -> int:
    """Bytes that `serialized` takes on the wire, framing aside."""
    if type(serialized) is bytes:
        return len(serialized)
    return sum(memoryview(part).nbytes for part in flat(serialized))


def flat(serialized: Serialized) -> tuple[Buffer, ...]:
    """The pickle, then its buffers."""
    return tuple(map(_unwrap, serialized)) if type(serialized) is tuple else (_unwrap(serialized),)


def join(parts: Sequence[Any]) -> Serialized:
    """`Serialized` as it came off the wire, ready to be sent on without a copy."""
    return tuple(Raw(part) if type(part) is memoryview else part for part in parts)
