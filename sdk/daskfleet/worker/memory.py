"""What a worker does as its memory fills up: distributed's four thresholds.

Up to `target` of the limit, by the sizes of its results, everything stays in memory (`spill`). Above `spill`, by the
process's own memory, more results go to disk. Above `pause` it starts no more tasks. Above `terminate` its nanny ends
it.
"""

from __future__ import annotations

import os
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
    """Decides, from the process's memory, how much to spill and when to pause.

    Parameters
    ----------
    limit
        Bytes the worker may use.
    """

    def __init__(self, limit: int, thresholds: Thresholds) -> None:
        self.limit, self.thresholds = limit, thresholds

    def excess(self, resident: int) -> int:
        """Bytes of results to move to disk when `resident` are in use: what should bring the process below `target`, or
        below `spill` without one."""
        spill = self.thresholds.spill
        if spill is None or resident <= spill * self.limit:
            return 0
        return int(resident - (self.thresholds.target or spill) * self.limit)

    def pauses(self, resident: int) -> bool:
        """Whether the worker has to pause; it resumes as soon as it is below that again."""
        pause = self.thresholds.pause
        return pause is not None and resident > pause * self.limit


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
