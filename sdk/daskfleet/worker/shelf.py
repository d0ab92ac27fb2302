"""What a worker has stored in pieces, and its answers to those who ask for some: `Shelf`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Sequence
from typing import Any

from daskfleet.comm import Connection
from daskfleet.protocol.frames import Raw
from daskfleet.worker.pieces import Pieces, read_range

#: Bytes of pieces in an answer (or one piece that is larger), and answers that a worker has on their way at a time.
PORTION, PORTIONS = 16 << 20, 4
#: Seconds for a connection to take an answer, before the next one is given anyway.
STUCK = 30.0


class Shelf:
    """A worker's `Pieces` by path, as long as they live, and the answers to those who ask for some."""

    def __init__(self) -> None:
        self._pieces: weakref.WeakValueDictionary[str, Pieces] = weakref.WeakValueDictionary()
        self._portions = asyncio.Semaphore(PORTIONS)
        self._releasing: set[asyncio.Task[None]] = set()

    def __setitem__(self, path: str, pieces: Pieces) -> None:
        self._pieces[path] = pieces

    def get(self, path: str) -> Pieces | None:
        return self._pieces.get(path)

    async def portion(self, connection: Connection, paths: Sequence[str], number: int) -> list[Any]:
        """Piece `number` of the first few of `paths`, of at least one; None for what is not here.

        Whoever asks waits until there is room: an answer counts until the connection has taken all of it.
        """
        await self._portions.acquire()
        try:
            pieces = await asyncio.to_thread(self._portion, paths, number)
        finally:
            releasing = asyncio.ensure_future(self._release(connection))
            self._releasing.add(releasing)
            releasing.add_done_callback(self._releasing.discard)
        return pieces

    async def _release(self, connection: Connection) -> None:
        with contextlib.suppress(TimeoutError):  # others are not to wait for one that has been stopped
            async with asyncio.timeout(STUCK):
                await connection.drain()
        self._portions.release()

    def _portion(self, paths: Sequence[str], number: int) -> list[Any]:
        portion: list[Any] = []
        total = 0
        for path in paths:
            held = self._pieces.get(path)
            start, size = held.index.find(number) if held is not None else (0, 0)
            if portion and total + size > PORTION:
                break
            total += size
            portion.append(None if held is None else _from_file(path, start, size))
        return portion


def _from_file(path: str, start: int, size: int) -> Any:
    if not size:
        return b""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # whoever removed it has removed the pieces
        return None
    try:
        return Raw(read_range(descriptor, start, size))
    finally:
        os.close(descriptor)
