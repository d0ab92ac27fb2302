"""How fast the workers' disks, memories and network are: what `Client.benchmark_hardware` runs on them."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

from daskfleet.protocol.serialize import dumps

#: Sizes that are tried, in bytes, by their names in the result.
DISK = {"1 kiB": 1 << 10, "100 kiB": 100 << 10, "1 MiB": 1 << 20, "10 MiB": 10 << 20, "100 MiB": 100 << 20}
MEMORY = {"2 kiB": 2 << 10, "10 kiB": 10 << 10, "100 kiB": 100 << 10, "1 MiB": 1 << 20, "10 MiB": 10 << 20}
NETWORK = {"1 kiB": 1 << 10, "10 kiB": 10 << 10, "100 kiB": 100 << 10, "1 MiB": 1 << 20, "10 MiB": 10 << 20}


def _rate(step: Callable[[], int], seconds: float) -> float:
    """Bytes a second of a step that tells how many it moved, over about so many seconds."""
    moved, started = 0, time.perf_counter()
    while True:
        moved += step()
        if (passed := time.perf_counter() - started) >= seconds:
            return moved / passed


def disk(seconds: float, dask_worker: Any = None) -> dict[str, float]:
    """Writing to the worker's own folder and on to the device."""
    import tempfile

    rates = {}
    for name, size in DISK.items():
        block = os.urandom(size)
        with tempfile.TemporaryFile(dir=dask_worker.local_directory) as file:

            def write(block: bytes = block, file: Any = file) -> int:
                file.seek(0)
                file.write(block)
                file.flush()
                os.fsync(file.fileno())
                return len(block)

            rates[name] = _rate(write, seconds / len(DISK))
    return rates


def memory(seconds: float) -> dict[str, float]:
    """Copying."""
    rates = {}
    for name, size in MEMORY.items():
        block = bytearray(size)

        def copy(block: bytearray = block) -> int:
            return len(bytes(block))

        rates[name] = _rate(copy, seconds / len(MEMORY))
    return rates


def block(size: int) -> pickle.PickleBuffer:
    """What a peer sends."""
    return pickle.PickleBuffer(bytearray(size))


async def network(peers: Sequence[str], seconds: float, dask_worker: Any = None) -> dict[str, float]:
    """Fetching from one other worker after the other."""
    rates = {}
    for name, size in NETWORK.items():
        moved, started, turn = 0, time.perf_counter(), 0
        ask = dumps((block, (size,), {}))
        while (passed := time.perf_counter() - started) < seconds / len(NETWORK) or not moved:
            await dask_worker._pool.call(peers[turn % len(peers)], "run", ask, True)
            moved, turn = moved + size, turn + 1
        rates[name] = moved / passed
    return rates
