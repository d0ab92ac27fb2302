"""Memory for what is received: pieces of a size that was just let go are used again.

Fresh memory is the dearest part of a large transfer: the system clears each page as it is first touched, which takes as
long as copying the data twice. So a large piece that is no longer used waits for a moment for the next of its size. A
piece is lent out (`allocate`) and comes back when the last view of it is gone, whoever holds that: an array, say. What
has waited for `SECONDS` in vain goes back to the system, provided that somebody calls `expire` now and then.
"""

from __future__ import annotations

import ctypes
import mmap
import time
import weakref
from collections import deque

#: From this size on memory is mapped, and lent.
MAPPED = 1 << 20
#: Bytes that wait for use at most, and for how many seconds.
KEEP, SECONDS = 128 << 20, 2.0
#: A piece serves for sizes down to this share of its own.
FIT = 0.8

_waiting: deque[mmap.mmap] = deque()
_last = 0.0  # when anything was lent


def allocate(size: int) -> memoryview:
    """Writable memory of this many bytes; its content is arbitrary."""
    global _last
    if size < MAPPED:
        return memoryview(bytearray(size))
    _last = time.monotonic()
    mapped = _find(size) or _map(size)
    lease = (ctypes.c_ubyte * size).from_buffer(mapped)
    weakref.finalize(lease, _take_back, mapped).atexit = False
    return memoryview(lease).cast("B")


def expire() -> bool:
    """Let go of what waits, if nothing was lent for a while; whether to call this again."""
    if time.monotonic() - _last < SECONDS:
        return True
    _waiting.clear()
    return False


def _map(size: int) -> mmap.mmap:
    # Shared memory, which is the default, takes half as long again to touch; and huge pages are quicker at times only.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _find(size: int) -> mmap.mmap | None:
    for _ in range(len(_waiting)):
        try:
            mapped = _waiting.popleft()
        except IndexError:  # another thread was faster
            return None
        if FIT * len(mapped) <= size <= len(mapped):
            return mapped
        _waiting.append(mapped)
    return None


def _take_back(mapped: mmap.mmap) -> None:
    """Called as a view's memory is freed: in any thread, at any time, so there is no lock here."""
    if time.monotonic() - _last < SECONDS and sum(map(len, list(_waiting))) + len(mapped) <= KEEP:
        _waiting.append(mapped)
