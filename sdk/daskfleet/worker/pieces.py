"""Results in pieces: a task leaves a file of numbered pieces on its worker, others read a piece of many such files.

This is what a shuffle is made of (`daskfleet.shuffle`), and all that the runtime knows of one. A task that calls
`write` returns `Pieces`, which live as long as its result does. To any other worker that result is a `Card`: where the
file is. `read` gets one piece of each of many: straight from the file where both workers see the same file system,
else from its worker, in portions. So nothing is sent that nobody has asked for: what is in memory at any time is the
pieces of the tasks that run, at either end, and needs no buffers that fill up.

A file is written once, under a name that is never used again, so what is read is whole and is what was meant, or is not
there. Then `PiecesLost` goes up through the task that wanted it to the scheduler, which makes the file anew. A worker
that its nanny starts in a dead one's place goes on in its folder and offers the scheduler what it finds (`inherit`).
"""

from __future__ import annotations

import array
import asyncio
import bisect
import contextlib
import errno
import functools
import os
import pickle
import struct
import tempfile
import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from daskfleet.comm import parse_address
from daskfleet.exceptions import DaskfleetError, Reschedule
from daskfleet.protocol.frames import Buffer
from daskfleet.worker.context import context

if TYPE_CHECKING:
    from daskfleet.worker.server import Worker

#: Seconds for an answer.
PATIENCE = 300.0
#: Times that a task is tried before it is given up for pieces that cannot be had.
ATTEMPTS = 100
#: Whether pieces of other workers are looked for in the file system first.
SAME_FILES = True
#: Indices of other workers' files that are remembered.
INDICES = 4096
#: Parts that the system takes in one call.
PARTS = 1000
#: Of a file's name when it is complete.
SUFFIX = ".pieces"
#: At the end of a file: how many pieces there are, and the size of what says whose they are.
_TAIL = struct.Struct("<2Q")


class PiecesLost(Exception):
    """Pieces cannot be had.

    Attributes
    ----------
    copies
        Whose, as ``(the task's id, its worker's address)``.
    """

    def __init__(self, cards: Iterable[Card]) -> None:
        self.copies = [(card.id, card.address) for card in cards]
        super().__init__(f"pieces of {len(self.copies)} tasks cannot be had")


class Card(NamedTuple):
    """Where pieces are: the task that made them, by its scheduler's id; its worker; the file, whose name is unique."""

    id: int
    address: str
    path: str


class Index(NamedTuple):
    """Which pieces a file has, in ascending order, and where each begins; the last one's end as well."""

    numbers: array.array[int]
    starts: array.array[int]

    def find(self, number: int) -> tuple[int, int]:
        """Start and size of a piece; 0 bytes if it is not there."""
        at = bisect.bisect_left(self.numbers, number)
        if at == len(self.numbers) or self.numbers[at] != number:
            return 0, 0
        return self.starts[at], self.starts[at + 1] - self.starts[at]


class Pieces:
    """A task's result on its own worker; elsewhere, its `Card`. The file goes when it goes."""

    __daskfleet_pinned__ = True  # it is never spilled: it is small, and its file would go

    def __init__(self, card: Card, index: Index) -> None:
        self.card, self.index = card, index
        self.lent: Any = None  # what has to live as long, where there is no scheduler of ours to see to that

    def __repr__(self) -> str:
        return f"<{len(self.index.numbers)} pieces, {self.index.starts[-1]:,} bytes in {self.card.path}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Card, tuple(self.card)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.card.path)


def card_of(value: Pieces | Card) -> Card:
    """Of what a task is given as the result of another."""
    return value.card if isinstance(value, Pieces) else value


# Writing ------------------------------------------------------------------------------------------------------------


def write(pieces: Iterable[tuple[int, Sequence[Buffer]]]) -> Pieces:
    """Store pieces, as ``(number, parts)`` with ascending numbers; called from a task, and returned by it.

    Raises
    ------
    OSError
        The disk is full, among others.
    """
    worker, task = _running()
    folder = str(worker.local_directory)
    path = os.path.join(folder, f"{uuid.uuid4().hex}{SUFFIX}")
    unfinished = path + ".part"
    origin = pickle.dumps((worker.scheduler_id, task.id, task.key))
    index = Index(array.array("Q"), array.array("Q", [0]))
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write(descriptor, pieces, index, origin)
        finally:
            os.close(descriptor)
        os.rename(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"no room left in {folder} for what is shuffled: free some, or have workers use another disk "
                "(--local-directory, or temporary-directory in dask's configuration)",
            ) from error
        raise
    result = Pieces(Card(task.id, worker.address, path), index)
    worker.pieces[path] = result
    return result


def _write(descriptor: int, pieces: Iterable[tuple[int, Sequence[Buffer]]], index: Index, origin: bytes) -> None:
    at, batch = 0, list[memoryview]()
    for number, parts in pieces:
        views = [memoryview(part).cast("B") for part in parts]
        batch.extend(view for view in views if len(view))
        at += sum(map(len, views))
        index.numbers.append(number)
        index.starts.append(at)
        if len(batch) >= PARTS:
            _write_all(descriptor, batch)
            batch = []
    tail = [origin, index.numbers.tobytes(), index.starts.tobytes(), _TAIL.pack(len(index.numbers), len(origin))]
    _write_all(descriptor, [*batch, *(memoryview(part) for part in tail)])


def _write_all(descriptor: int, parts: list[memoryview]) -> None:
    for start in range(0, len(parts), PARTS):
        batch = parts[start : start + PARTS]
        while batch:
            written = os.writev(descriptor, batch)
            while batch and written >= len(batch[0]):
                written -= len(batch.pop(0))
            if written:
                batch[0] = batch[0][written:]


# Reading ------------------------------------------------------------------------------------------------------------


def read(cards: Sequence[Card], number: int) -> list[Buffer]:
    """Piece `number` of each, in that order, without those that have none; called from a task.

    Raises
    ------
    PiecesLost
        To be let through to whoever runs the task: it is run again when the pieces have been made anew.
    """
    worker, task = _running()
    if task.attempt > ATTEMPTS:
        raise RuntimeError(f"given up after {ATTEMPTS} attempts: what other workers have stored could not be read")
    found: dict[int, Buffer] = {}
    elsewhere: dict[str, list[int]] = {}
    for at, card in enumerate(cards):
        piece = _read_here(worker, card, number)
        if piece is None:
            elsewhere.setdefault(card.address, []).append(at)
        elif len(piece):
            found[at] = piece
    if elsewhere and worker is _here:
        raise RuntimeError(
            "a p2p shuffle runs on a cluster or in one process, not in dask's pool of processes; for that choose "
            "another method: dask.config.set({'dataframe.shuffle.method': 'disk', 'array.rechunk.method': 'tasks'})"
        )
    if elsewhere:
        asked = asyncio.run_coroutine_threadsafe(_ask_all(worker, cards, elsewhere, number), worker.loop)
        found.update(asked.result())
    return [found[at] for at in sorted(found)]


def _read_here(worker: Any, card: Card, number: int) -> Buffer | None:
    """The piece, empty if there is none of that number, or None if the file is not here."""
    own = worker.pieces.get(card.path)
    elsewhere = worker is not _here and not (SAME_FILES and _host(card.address) == _host(worker.address))
    if own is None and elsewhere:
        return None
    try:
        descriptor = os.open(card.path, os.O_RDONLY)
    except OSError:
        return None
    try:
        start, size = (own.index if own is not None else _index(card.path, descriptor)).find(number)
        return read_range(descriptor, start, size)
    finally:
        os.close(descriptor)


@functools.lru_cache(4096)
def _host(address: str) -> str:
    return parse_address(address).host


def read_range(descriptor: int, start: int, size: int) -> bytes:
    """All of these bytes of a file."""
    piece = os.pread(descriptor, size, start)
    if len(piece) == size:
        return piece
    parts = [piece]
    while (left := size - sum(map(len, parts))) and (piece := os.pread(descriptor, left, start + size - left)):
        parts.append(piece)
    if left:
        raise OSError(errno.EIO, "a file of pieces is shorter than it was")
    return b"".join(parts)


_indices: OrderedDict[str, Index] = OrderedDict()
_indices_lock = threading.Lock()


def _index(path: str, descriptor: int) -> Index:
    """Of another worker's file."""
    with _indices_lock:
        known = _indices.get(path)
        if known is not None:
            _indices.move_to_end(path)
            return known
    index, _ = _read_end(descriptor)
    with _indices_lock:
        _indices[path] = index
        while len(_indices) > INDICES:
            _indices.popitem(last=False)
    return index


def _read_end(descriptor: int) -> tuple[Index, bytes]:
    """The index, and whose the pieces are."""
    end = os.fstat(descriptor).st_size - _TAIL.size
    count, length = _TAIL.unpack(read_range(descriptor, end, _TAIL.size))
    size = 8 * (2 * count + 1)
    raw = read_range(descriptor, end - size - length, size + length)
    origin, numbers, starts = raw[:length], raw[length : length + 8 * count], raw[length + 8 * count :]
    return Index(array.array("Q", numbers), array.array("Q", starts)), origin


def inherit(worker: Worker) -> list[tuple[str, int, Any, Pieces]]:
    """What a worker that has died has left in the folder that is ours now: ``(scheduler's id, task's id, key,
    pieces)``."""
    found = []
    for path in Path(worker.local_directory or "").glob(f"*{SUFFIX}"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            index, origin = _read_end(descriptor)
        finally:
            os.close(descriptor)
        scheduler_id, id, key = pickle.loads(origin)
        pieces = worker.pieces[str(path)] = Pieces(Card(id, worker.address, str(path)), index)
        found.append((scheduler_id, id, key, pieces))
    return found


async def _ask_all(
    worker: Worker, cards: Sequence[Card], wanted: dict[str, list[int]], number: int
) -> dict[int, Buffer]:
    """From the workers that have them, all at once."""
    answers = await asyncio.gather(
        *(_ask(worker, address, [(at, cards[at].path) for at in places], number) for address, places in wanted.items())
    )
    found = {at: piece for answer in answers for at, piece in answer.items() if piece is not None and len(piece)}
    lost = [cards[at] for answer in answers for at, piece in answer.items() if piece is None]
    if lost:
        if worker.status != "running":  # the others may well be there: it is we who leave
            raise Reschedule
        raise PiecesLost(lost)
    return found


async def _ask(worker: Worker, address: str, wanted: list[tuple[int, str]], number: int) -> dict[int, Buffer | None]:
    """From one worker, a portion at a time; None stands for what cannot be had."""
    got: dict[int, Buffer | None] = {}
    while wanted:
        try:
            portion = await worker._pool.call(address, "pieces", [path for _, path in wanted], number, timeout=PATIENCE)
        except (OSError, TimeoutError, DaskfleetError):
            return got | {at: None for at, _ in wanted}
        got.update({at: piece for (at, _), piece in zip(wanted, portion, strict=False)})
        wanted = wanted[len(portion) :]
    return got


class _Here:
    """Stands for a worker and its task where there are none: with one of dask's schedulers for a single process."""

    address, scheduler_id, id, key, attempt, loop, status = "", "", 0, "", 0, None, "running"

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self.pieces: weakref.WeakValueDictionary[str, Pieces] = weakref.WeakValueDictionary()

    @property
    def local_directory(self) -> str:
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="daskfleet-shuffle-", ignore_cleanup_errors=True)
            return self._folder.name


_here = _Here()


def _running() -> tuple[Any, Any]:
    return (context.worker, context.task) if context.task is not None else (_here, _here)
