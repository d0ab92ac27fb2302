"""Results on their way from worker to worker, and scattered data."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from daskfleet.comm import Connection
from daskfleet.comm.lending import Lender, Refused, read
from daskfleet.comm.stream import tidy_later
from daskfleet.exceptions import DaskfleetError
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, dumps, dumps_by_value, join, loads, nbytes, refusal
from daskfleet.worker.executor import size_of
from daskfleet.worker.spill import OnDisk

if TYPE_CHECKING:
    from daskfleet.worker.machine import WorkerMachine
    from daskfleet.worker.server import Worker

logger = logging.getLogger(__name__)

#: Values above this many bytes are pickled and unpickled outside of the event loop.
OFFLOAD = 4 << 20


class Data:
    """Fetches from peers, and answers them."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.lender = Lender()
        self._unreadable: set[str] = set()  # addresses of those whose memory the system does not let us read
        worker.handle("get_data", self.get_data)
        worker.handle("put_data", self.put_data)

    async def gather(self, address: str, ids: list[int]) -> None:
        """Fetch these from another worker."""
        worker = self._worker
        found: list[tuple[int, Key, Any, int]] = []
        try:
            if worker.spilling is not None:
                await worker.spilling.settled()  # a disk is slower than most peers
            rows = await self._fetch(address, ids)
            for id, key, size, serialized in rows:
                try:
                    found.append((id, key, await _loads(serialized, size), size))
                except Exception as error:
                    reason = TypeError(f"the input {key!r} could not be brought here: {error}")
                    worker.machine.refused(id, dumps_by_value(reason), str(reason))
        except (OSError, TimeoutError, DaskfleetError) as error:
            logger.warning("could not fetch %d keys from %s: %s", len(ids), address, error)
        except Exception:
            logger.exception("could not read %d keys from %s", len(ids), address)
        worker.machine.arrived(address, ids, found)
        worker._advance()

    async def _fetch(self, address: str, ids: list[int]) -> Sequence[Any]:
        """The rows of `get_data`, the shortest way."""
        worker = self._worker
        connection = await worker._pool.get(address)
        if connection.neighbour is not None and address not in self._unreadable:
            try:
                return await self._borrow(connection, connection.neighbour, ids)
            except Refused as error:
                logger.info("cannot read the memory of the worker at %s: %s", address, error)
                self._unreadable.add(address)
        rows: Sequence[Any] = await connection.call("get_data", worker.scheduler_id, ids, timeout=300)
        return rows

    async def _borrow(self, connection: Connection, pid: int, ids: list[int]) -> Sequence[Any]:
        number, mark, rows = await connection.call("lend_data", self._worker.scheduler_id, ids, timeout=300)
        if not number:
            return list(rows)

        def copy() -> list[Any]:
            return [(id, key, size, read(pid, mark, value)) for id, key, size, value in rows]

        tidy_later(self._worker.loop)
        try:
            copies = await asyncio.to_thread(copy)
        except Refused:
            await connection.call("take_back", number, timeout=300)
            raise
        if not await connection.call("take_back", number, timeout=300):
            raise Refused("it has not kept what it has lent")
        return copies

    async def lend_data(self, connection: Connection, scheduler_id: str, ids: Sequence[int]) -> tuple[Any, ...]:
        """`get_data` for a peer on this machine: ``(number, mark, rows)`` (`Lender.lend`)."""
        rows = await self.get_data(scheduler_id, ids)
        number, mark, values = self.lender.lend(connection, [row[3] for row in rows])
        return number, mark, [(*row[:3], value) for row, value in zip(rows, values, strict=True)]

    async def take_back(self, connection: Connection, number: int) -> bool:
        """The peer has read it; whether it was there until now."""
        return self.lender.take_back(connection, number)

    async def get_data(self, scheduler_id: str, ids: Sequence[int]) -> list[Any]:
        """``(id, key, nbytes, value)`` of those that are here; an id means nothing to another scheduler's workers."""
        worker = self._worker
        if scheduler_id != worker.scheduler_id:
            return []
        machine, rows = worker.machine, []
        for id in ids:
            if id in machine.data:
                size, key = machine.sizes[id], machine.keys[id]
                try:
                    value = await _dumps(machine.data[id], size)
                except TypeError as error:
                    value = refusal(error)
                rows.append((id, key, size, value))
        return rows

    async def put_data(
        self, scheduler_id: str, rows: Sequence[tuple[int, Key, Serialized]]
    ) -> list[tuple[int, int, str]]:
        """Keep scattered data; answers with ``(id, nbytes, type name)``. The ids mean nothing to us before we have
        joined that scheduler, which we have asked to when it knows our address."""
        worker = self._worker
        values = [await _loads(serialized, nbytes(serialized)) for *_, serialized in rows]
        async with asyncio.timeout(10):
            await worker._joined.wait()
        if worker.scheduler_id != scheduler_id:
            raise ValueError("this worker has joined another scheduler")
        kept = []
        for (id, key, _), value in zip(rows, values, strict=True):
            size = size_of(value)
            worker.machine.put(id, key, value, size)
            kept.append((id, size, type(value).__name__))
        if worker.spilling is not None:
            await worker.spilling.settled()
        return kept


class Holdings(Mapping[Key, Any]):
    """What a worker holds, by key, for users' functions (``dask_worker.data``); from any thread."""

    def __init__(self, machine: WorkerMachine) -> None:
        self._machine = machine

    def __getitem__(self, key: Key) -> Any:
        for id, name in list(self._machine.keys.items()):
            if name == key:
                value = self._machine.data[id]
                return value.load() if type(value) is OnDisk else value
        raise KeyError(key)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._machine.keys.values()))

    def __len__(self) -> int:
        return len(self._machine.keys)

    def __repr__(self) -> str:
        return f"<{len(self)} results: {', '.join(map(str, self))}>"


async def _dumps(value: Any, size: int) -> Serialized:
    if type(value) is OnDisk:
        return join(value.serialized())
    return await asyncio.to_thread(dumps, value) if size > OFFLOAD else dumps(value)


async def _loads(serialized: Serialized, size: int) -> Any:
    return await asyncio.to_thread(loads, serialized) if size > OFFLOAD else loads(serialized)
