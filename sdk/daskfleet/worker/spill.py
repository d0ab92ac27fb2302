"""Results in memory, and on disk when there is too little of it.

A mapping that the worker's machine uses like a dict. What was used least recently goes to disk first, as the very bytes
that would travel to another worker: so they can be sent on from there without being read into objects. A value that is
on disk stays there when it is used; a task maps its file instead of reading it, and the system's page cache does the
rest. A disk that is full, or a value that cannot be pickled, costs nothing but the memory it was to save.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import mmap
import os
import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from daskfleet.protocol.frames import Raw
from daskfleet.protocol.serialize import Serialized, dumps, loads
from daskfleet.worker import heap

logger = logging.getLogger(__name__)

#: Bytes that are spilled before the heap is asked to return what it can.
GIVE_BACK = 16 << 20
_COUNT = struct.Struct("<I")


class OnDisk:
    """A spilled value: `load` gives the object, `serialized` the bytes that travel. Its file goes when it goes."""

    __slots__ = ("nbytes", "path")

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path, self.nbytes = path, nbytes

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()  # whoever has it mapped keeps it

    def serialized(self) -> Serialized:
        """The value as it would travel; large parts are views of the file."""
        with self.path.open("rb") as stream:
            (count,) = _COUNT.unpack(stream.read(_COUNT.size))
            sizes = struct.unpack(f"<{count}Q", stream.read(8 * count))
            view = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY))
        at, parts = _COUNT.size + 8 * count, []
        for size in sizes:
            parts.append(view[at : at + size])
            at += size
        return tuple(parts)

    def load(self) -> Any:
        """The object; arrays in it are private, writable views of the file."""
        return loads(self.serialized())


class SpillBuffer(MutableMapping[int, Any]):
    """Values by id, in memory up to `target` bytes, the rest in `folder`.

    Parameters
    ----------
    folder
        Where files go; it must exist, and is emptied by whoever made it.
    target
        Bytes of values to keep in memory.
    sizes
        Bytes of each value, by id: known before the value is stored.
    max_spill
        Bytes on disk at most; None for no limit.
    """

    def __init__(self, folder: Path, target: int, sizes: Mapping[int, int], max_spill: int | None = None) -> None:
        self._folder, self._target, self._sizes, self._max_spill = folder, target, sizes, max_spill
        self._fast: OrderedDict[int, Any] = OrderedDict()
        self._slow: dict[int, OnDisk] = {}
        self._stuck: set[int] = set()  # in memory for good: they cannot be pickled, or are pinned
        self._names = itertools.count()
        self._complained = False
        self.memory_bytes = self.disk_bytes = 0
        self._freed = 0

    def __repr__(self) -> str:
        return f"<SpillBuffer {self.memory_bytes:,} bytes in memory, {self.disk_bytes:,} on disk>"

    def __setitem__(self, id: int, value: Any) -> None:
        if id in self:
            del self[id]
        if type(value) is OnDisk:  # it was taken out under another id
            self._slow[id] = value
            self.disk_bytes += value.nbytes
            return
        self._fast[id] = value
        self.memory_bytes += self._sizes[id]
        if hasattr(type(value), "__daskfleet_pinned__"):
            self._stuck.add(id)
        while self.memory_bytes > self._target and self.evict():
            pass

    def __getitem__(self, id: int) -> Any:
        """The value, or the `OnDisk` that stands for it."""
        if id in self._fast:
            self._fast.move_to_end(id)
            return self._fast[id]
        return self._slow[id]

    def __delitem__(self, id: int) -> None:
        if id in self._fast:
            del self._fast[id]
            self._stuck.discard(id)
            self.memory_bytes -= self._sizes[id]
            return
        self.disk_bytes -= self._slow.pop(id).nbytes

    def __contains__(self, id: object) -> bool:
        return id in self._fast or id in self._slow

    def __iter__(self) -> Iterator[int]:
        return itertools.chain(self._fast, self._slow)

    def __len__(self) -> int:
        return len(self._fast) + len(self._slow)

    def evict(self) -> int:
        """Move the value used least recently to disk.

        Returns
        -------
        int
            Bytes of memory that its value took; 0 when nothing can be moved.
        """
        for id in self._fast:
            if id not in self._stuck:
                break
        else:
            return 0
        path = self._folder / f"{next(self._names)}.spill"
        try:
            self._check_room(self._sizes[id])  # before a pickle, which may cost as much memory again
            written = self._write(path, dumps(self._fast[id]))
        except TypeError as error:
            logger.info("%s: it stays in memory", error)
            self._stuck.add(id)
            return self.evict()
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            if not self._complained:
                logger.warning("cannot spill to %s: %s; what is in memory stays there", self._folder, error)
            self._complained = True
            return 0
        self._complained = False
        del self._fast[id]
        self._slow[id] = OnDisk(path, written)
        self.memory_bytes -= self._sizes[id]
        self.disk_bytes += written
        self._freed += self._sizes[id]
        if self._freed >= GIVE_BACK:  # or what was freed would stay with the heap, and count against the limit
            self._freed = 0
            heap.give_back()
        return max(self._sizes[id], 1)

    def _check_room(self, nbytes: int) -> None:
        disk = os.statvfs(self._folder)
        if nbytes > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write(self, path: Path, serialized: Serialized) -> int:
        parts = serialized if type(serialized) is tuple else (serialized,)
        views = [memoryview(part.buffer if type(part) is Raw else part).cast("B") for part in parts]
        head = _COUNT.pack(len(views)) + struct.pack(f"<{len(views)}Q", *map(len, views))
        total = len(head) + sum(map(len, views))
        if self._max_spill is not None and self.disk_bytes + total > self._max_spill:
            raise OSError(f"the limit of {self._max_spill:,} bytes for spilled data is reached")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb", buffering=0) as stream:
            for view in (memoryview(head), *views):
                while len(view):
                    view = view[stream.write(view) :]
        return total
