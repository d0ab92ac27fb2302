"""What a worker does as its memory fills up: distributed's four thresholds.

Up to `target` of the limit, by the sizes of its results, everything stays in memory (`spill`). Above `spill`, by the
process's own memory, more results go to disk. Above `pause` it starts no more tasks. Above `terminate` its nanny ends
it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daskfleet import config


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Shares of the memory limit (``distributed.worker.memory.*``); None or False switches one off."""

    target: float | None = 0.6
    spill: float | None = 0.7
    pause: float | None = 0.8
    terminate: float | None = 0.95

    @classmethod
    def configured(cls) -> Thresholds:
        """From dask's configuration."""

        def read(name: str) -> float | None:
            value = config.get(f"distributed.worker.memory.{name}")
            return None if value is None or value is False else float(value)

        return cls(read("target"), read("spill"), read("pause"), read("terminate"))


class MemoryMonitor:
    """Decides, from the process's memory, when to spill and when to pause. No I/O: call `look` now and then.

    Parameters
    ----------
    limit
        Bytes the worker may use.
    evict
        Moves one result to disk and returns its bytes, 0 when there is none.
    """

    def __init__(self, limit: int, thresholds: Thresholds, evict: Callable[[], int]) -> None:
        self.limit, self.thresholds, self._evict = limit, thresholds, evict
        self.paused = False

    def look(self, resident: int) -> bool:
        """Take note of `resident` bytes in use and spill if that is called for. Returns whether to pause.

        It spills until what was freed should have brought the process below `target`, or below `spill` without one.
        A paused worker resumes as soon as it is below `pause` again.
        """
        spill, pause = self.thresholds.spill, self.thresholds.pause
        if spill is not None and resident > spill * self.limit:
            aim = (self.thresholds.target or spill) * self.limit
            while resident > aim and (freed := self._evict()):
                resident -= freed
        self.paused = pause is not None and resident > pause * self.limit
        return self.paused


_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_memory(pid: int | None = None) -> int:
    """Bytes of physical memory that a process uses; this one by default."""
    try:
        return int(Path(f"/proc/{pid or 'self'}/statm").read_bytes().split()[1]) * _PAGE
    except FileNotFoundError:  # not on Linux
        import psutil

        resident: int = psutil.Process(pid).memory_info().rss
        return resident


def own_memory(pid: int | None = None) -> int:
    """`resident_memory` without pages of mapped files: spilled results, say. The system takes those back when it is
    short of memory, so they count against no limit. Dearer to ask for."""
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_bytes()
        return sum(int(status.split(name, 1)[1].split(None, 1)[0]) for name in (b"RssAnon:", b"RssShmem:")) << 10
    except (FileNotFoundError, IndexError):  # not on Linux
        return resident_memory(pid)
