"""The C library's heap, tuned for arrays that come and go.

By default glibc maps each array of more than 128 KiB afresh and unmaps it when it is freed, so that a task that makes
one spends most of its time in the system, which clears the pages: twenty times the time of adding two arrays of half a
megabyte. A worker keeps freed memory instead, all in one arena, and gives it back when it has nothing to do, or when
memory runs short. (distributed's nanny sets ``MALLOC_TRIM_THRESHOLD_`` to 64 KiB, which gives it back at once.) Whoever
sets that variable decides himself.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
#: Bytes of freed memory at the heap's end that are kept at most, and their share in the worker's limit.
KEEP, SHARE = 512 << 20, 8

_libc = ctypes.CDLL(None)
_ours = False


def keep_freed_memory(limit: int | None) -> None:
    """Tune this process's heap; `limit` is what the worker may use, in bytes."""
    global _ours
    if not hasattr(_libc, "malloc_trim") or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    _libc.mallopt(_M_ARENA_MAX, 1)
    _libc.mallopt(_M_MMAP_MAX, 0)
    _libc.mallopt(_M_TRIM_THRESHOLD, min(KEEP, (limit or KEEP * SHARE) // SHARE))
    _ours = True


def give_back() -> None:
    """Return freed memory to the system, if this process keeps it."""
    if _ours:
        _libc.malloc_trim(0)
