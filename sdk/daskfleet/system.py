"""What this machine or container allows us: memory and threads, cgroup limits counted in."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: Open files that are enough for a scheduler of tens of thousands of workers. Not what the system allows at most: that
#: may be a billion, and there are programs that close each number that could be a file before they start another.
FILES = 1 << 16

ROOT = Path("/")


def allow_many_files() -> None:
    """Raise this process's soft limit of open files, which is often 1,024, to `FILES` or the hard limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        aim = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < aim:
            resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))


@functools.cache
def memory_limit(root: Path = ROOT) -> int:
    """Bytes of memory this process may use: the machine's, or less if a cgroup (v1 or v2) above it says so."""
    import psutil

    limit: int = psutil.virtual_memory().total
    for folder in _cgroups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            if text.isdecimal() and 0 < int(text) < limit:
                limit = int(text)
    return limit


@functools.cache
def cpu_count(root: Path = ROOT) -> int:
    """Threads worth starting: the processors we may run on, or fewer if a cgroup's quota says so; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups("cpu", root):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            count = min(count, math.ceil(int(quota) / int(period)))
    return max(count, 1)


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Where this process's cgroup and all above it are, whichever of these can be seen: each sets a limit. A container
    mostly sees its own as the topmost, by another path than the one it is told."""
    own = {"": "/", controller: "/"}  # of version 2, and of version 1
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own |= {name: path for name in controllers.split(",") if name in own}
    mounted = root / "sys/fs/cgroup"
    for top, path in ((mounted, own[""]), (mounted / "unified", own[""]), (mounted / controller, own[controller])):
        folder = top
        yield folder
        for part in PurePosixPath(path).parts[1:]:
            if part != "..":  # of a parent that cannot be seen from here
                folder = folder / part
                yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def parse_memory_limit(given: str | float | None, nthreads: int, total_threads: int | None = None) -> int | None:
    """Bytes for one worker, from what users write.

    Parameters
    ----------
    given
        ``"auto"`` (the share of its threads in the machine), a fraction of the memory, a number of bytes, a text such
        as ``"5GB"``, or 0 or None for no limit.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    total = memory_limit()
    if given in (None, 0, "0", "None"):
        return None
    if given == "auto":
        return int(total * min(1, nthreads / (total_threads or cpu_count())))
    try:
        number = float(given)
    except ValueError:
        from dask.utils import parse_bytes

        try:
            number = float(parse_bytes(given))
        except ValueError:
            raise ValueError(f'memory limit {given!r}: expected something like "5GB", 0.5, auto or 0') from None
        return min(int(number), total)
    if 0 < number <= 1 and isinstance(given, (float, str)) and "." in str(given):
        return int(number * total)
    return min(int(number), total)
