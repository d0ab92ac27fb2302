"""Results in memory, and on disk when there is too little of it.

A mapping that the worker's machine uses like a dict. What was used least recently goes to disk first, as the very bytes
that would travel to another worker: so they can be sent on from there without being read into objects. A value that is
on disk stays there when it is used; a task maps its file instead of reading it, and the system's page cache does the
rest. A disk that is full, or a value that cannot be pickled, costs nothing but the memory it was to save.

Gigabytes take a disk seconds, in which the worker has others to answer. So the mapping itself writes nothing:
`Spilling` has a thread do it, a batch at a time, while the values are still there to be used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import mmap
import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from daskfleet.protocol.frames import Raw
from daskfleet.protocol.serialize import Serialized, dumps, loads
from daskfleet.worker import heap

logger = logging.getLogger(__name__)

#: Bytes of values that a thread writes before it is seen whether they are enough.
BATCH = 16 << 20
#: Bytes that are written at a time: to stop in between when the worker ends.
PIECE = 16 << 20
_COUNT = struct.Struct("<I")

#: A value on its way to disk: its id, it, and its bytes.
Row = tuple[int, Any, int]


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
    """Values by id: in memory, until others are written to `folder` for them (`Spilling`).

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
        self._complained = self._in_vain = False
        self.closed = False  # when the worker ends, `write` gives up as soon as it can
        self.memory_bytes = self.disk_bytes = 0

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
        self._in_vain = False
        self.memory_bytes += self._sizes[id]
        if hasattr(type(value), "__daskfleet_pinned__"):
            self._stuck.add(id)

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

    @property
    def excess(self) -> int:
        """Bytes in memory above the target, 0 if to write them has been tried in vain since the last one came."""
        return 0 if self._in_vain or self.closed else max(0, self.memory_bytes - self._target)

    def oldest(self, nbytes: int) -> list[Row]:
        """The values used least recently, as many as hold `nbytes`; none if none may leave the memory."""
        found: list[Row] = []
        for id, value in self._fast.items():
            if nbytes <= 0:
                break
            if id not in self._stuck:
                found.append((id, value, self._sizes[id]))
                nbytes -= self._sizes[id]
        self._in_vain = not found
        return found

    def write(self, rows: Sequence[Row]) -> list[OnDisk | Exception]:
        """Files of `rows`, or what is wrong with one: an OSError that it and those after it have no room, another that
        it cannot be pickled. In any thread, one call at a time."""
        written: list[OnDisk | Exception] = []
        used = self.disk_bytes
        for _, value, size in rows:
            path = self._folder / f"{next(self._names)}.spill"
            try:
                self._check_room(size)  # before a pickle, which may cost as much memory again
                file = OnDisk(path, self._write(path, dumps(value), used))
            except OSError as error:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                written.append(error)
                break
            except Exception as error:  # code of the user's may run here
                written.append(error)
                continue
            written.append(file)
            used += file.nbytes
        return written

    def moved(self, rows: Sequence[Row], written: Sequence[OnDisk | Exception]) -> int:
        """`write` has returned: what is still here of `rows` is on disk from now on.

        Returns
        -------
        int
            Bytes of memory that they took.
        """
        freed = 0
        for (id, value, size), file in zip(rows, written, strict=False):
            if isinstance(file, OSError):
                if not self._complained and not self.closed:
                    logger.warning("cannot spill to %s: %s; what is in memory stays there", self._folder, file)
                self._complained = self._in_vain = True
            elif self._fast.get(id, self) is not value:
                continue  # freed meanwhile, and its file with it
            elif isinstance(file, OnDisk):
                del self[id]
                self[id] = file
                self._complained = False
                freed += max(size, 1)
            else:
                logger.info("%s: it stays in memory", file)
                self._stuck.add(id)
        return freed

    def _check_room(self, nbytes: int) -> None:
        disk = os.statvfs(self._folder)
        if nbytes > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write(self, path: Path, serialized: Serialized, used: int) -> int:
        parts = serialized if type(serialized) is tuple else (serialized,)
        views = [memoryview(part.buffer if type(part) is Raw else part).cast("B") for part in parts]
        head = _COUNT.pack(len(views)) + struct.pack(f"<{len(views)}Q", *map(len, views))
        total = len(head) + sum(map(len, views))
        if self._max_spill is not None and used + total > self._max_spill:
            raise OSError(f"the limit of {self._max_spill:,} bytes for spilled data is reached")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb", buffering=0) as stream:
            for view in (memoryview(head), *views):
                while len(view):
                    if self.closed:
                        raise OSError("the worker ends")
                    view = view[stream.write(view[:PIECE]) :]
        return total


class Spilling:
    """Has a thread write what `buffer` has too much of; everything here is called on the event loop.

    Parameters
    ----------
    done
        Called when tasks may go on (`holds_up`).
    """

    def __init__(self, buffer: SpillBuffer, done: Callable[[], None]) -> None:
        self._buffer, self._done = buffer, done
        self._task: asyncio.Task[None] | None = None
        self._thread: asyncio.Future[list[OnDisk | Exception]] | None = None

    def holds_up(self) -> bool:
        """Whether results are being written, as they are when there are more than the target. No task should start
        meanwhile: tasks make results faster than a disk can take them."""
        if self._task is None and self._buffer.excess:
            self._start(0)
        return self._task is not None

    async def settled(self) -> None:
        """Return when nothing is being written, and nothing has to be."""
        while self.holds_up():
            assert self._task is not None
            await asyncio.wait([self._task])

    async def free(self, nbytes: int) -> None:
        """Move results to disk until they took that much memory, if there are as many."""
        await self.settled()
        await asyncio.wait([self._start(nbytes)])

    def _start(self, nbytes: int) -> asyncio.Task[None]:
        self._task = asyncio.get_running_loop().create_task(self._write(nbytes))
        return self._task

    async def _write(self, nbytes: int) -> None:
        buffer, loop = self._buffer, asyncio.get_running_loop()
        try:
            while (wanted := max(nbytes, buffer.excess)) > 0 and (rows := buffer.oldest(min(wanted, BATCH))):
                self._thread = loop.run_in_executor(None, buffer.write, rows)
                written = await asyncio.shield(self._thread)
                self._thread = None
                nbytes -= buffer.moved(rows, written)
                failed = isinstance(written[-1], OSError)
                del written  # or the file of what was freed meanwhile would stay
                await loop.run_in_executor(None, _let_go, rows)
                if failed:
                    break
        finally:
            self._task = None
            if not buffer.closed:
                self._done()

    async def close(self) -> None:
        """Stop writing, so that the folder can be removed."""
        self._buffer.closed = True
        if self._task is not None:
            self._task.cancel()
        if self._thread is not None:
            await asyncio.wait([self._thread], timeout=5)


def _let_go(rows: list[Row]) -> None:
    """To free gigabytes takes long, too. What was freed would stay with the heap, and count against the limit."""
    freed = sum(size for *_, size in rows)
    rows.clear()
    if freed >= BATCH:
        heap.give_back()
