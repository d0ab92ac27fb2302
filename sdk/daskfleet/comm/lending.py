"""Large buffers between processes of one machine: whoever wants them reads them from where they are.

A Unix socket copies everything twice, and on a busy machine its two ends wait for one another. The system can also copy
from one process's memory to another's, once, without the first doing anything (`process_vm_readv`). So the owner only
says where its buffers are, and keeps them until it is told that they have been read (`Lender`). Two things make that
safe. The owner also says where in its memory a random mark is, so that nobody reads another process that has its number
by now, or in another namespace. And what was read counts only if the owner says, afterwards, that it still kept it.

The system may refuse: the other user's process, a container's seccomp profile, Yama. Then they travel as all else does.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import secrets
from collections.abc import Sequence
from typing import Any

from daskfleet.comm.connection import CommClosedError, Connection
from daskfleet.protocol.buffers import allocate
from daskfleet.protocol.frames import Raw
from daskfleet.protocol.serialize import Serialized

#: Bytes from which on a buffer is lent: below, the answer that it was read costs more than sending it.
LENT = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
AVAILABLE = hasattr(_libc, "process_vm_readv")
_mark = ctypes.create_string_buffer(secrets.token_bytes(16), 16)

#: Where the owner's mark is, and what it is.
Mark = tuple[int, bytes]


class Refused(Exception):
    """Memory of another process cannot be read, or is not its own any more."""


class _Part(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _View(ctypes.Structure):
    """CPython's Py_buffer."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("owner", ctypes.py_object),
        ("size", ctypes.c_ssize_t),
        ("rest", ctypes.c_void_p * 10),
    )


if AVAILABLE:
    _libc.process_vm_readv.restype = ctypes.c_ssize_t
    _libc.process_vm_readv.argtypes = (
        ctypes.c_int,
        ctypes.POINTER(_Part),
        ctypes.c_ulong,
        ctypes.POINTER(_Part),
        ctypes.c_ulong,
        ctypes.c_ulong,
    )


class Lender:
    """What is lent, by connection and number; gone with the connection (`forget`)."""

    def __init__(self) -> None:
        self._lent: dict[Connection, dict[int, list[memoryview]]] = {}
        self._numbers = itertools.count(1)

    def lend(self, connection: Connection, values: Sequence[Serialized]) -> tuple[int, Mark, list[Any]]:
        """Keep the large buffers of `values` for the peer: a number for `take_back`, our mark, and the values with
        ``(address, size)`` in place of those buffers. The number is 0 if there are none."""
        if connection.closed:
            raise CommClosedError(f"the connection to {connection.peer} is closed")
        kept: list[memoryview] = []
        shown = [_show(value, kept) for value in values]
        number = next(self._numbers) if kept else 0
        if kept:
            self._lent.setdefault(connection, {})[number] = kept
        return number, (ctypes.addressof(_mark), _mark.raw), shown

    def take_back(self, connection: Connection, number: int) -> bool:
        """Keep these no longer; whether they were kept until now."""
        return self._lent.get(connection, {}).pop(number, None) is not None

    def forget(self, connection: Connection) -> None:
        """The peer is gone."""
        self._lent.pop(connection, None)


def _show(value: Serialized, kept: list[memoryview]) -> Any:
    if type(value) is not tuple:
        return value
    shown: list[Any] = [value[0]]  # the pickle itself always travels: nothing is executed that was read elsewhere
    for part in value[1:]:
        view = memoryview(part.buffer).cast("B") if type(part) is Raw else None
        if view is None or len(view) < LENT:
            shown.append(part)
        else:
            kept.append(view)
            shown.append((_address(view), len(view)))
    return tuple(shown)


def _address(view: memoryview) -> int:
    """Where it is; ctypes' own way wants writable memory."""
    found = _View()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(found), 0)
    address: int = found.address
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(found))
    return address


def read(pid: int, mark: Mark, value: Any) -> Serialized:
    """`value` with copies of what was lent; blocks, in any thread.

    Raises
    ------
    Refused
    """
    if type(value) is not tuple:
        plain: Serialized = value
        return plain
    parts: list[Any] = []
    for part in value:
        if type(part) is tuple:
            address, size = part
            target = allocate(size)
            _copy(pid, mark[0], probe := memoryview(bytearray(len(mark[1]))))
            if probe != mark[1]:
                raise Refused(f"process {pid} is not the one that lends")
            _copy(pid, address, target)
            part = target
        parts.append(part)
    return tuple(parts)


def _copy(pid: int, address: int, target: memoryview) -> None:
    base, done = ctypes.addressof(ctypes.c_char.from_buffer(target)), 0
    while done < len(target):
        here, there = _Part(base + done, len(target) - done), _Part(address + done, len(target) - done)
        copied = _libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
        if copied <= 0:
            raise Refused(f"process {pid}: {os.strerror(ctypes.get_errno())}")
        done += copied
