"""Memory and threads: what cgroups of both versions allow, and what users write."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from daskfleet import system

GIB = 1 << 30
MACHINE = psutil.virtual_memory().total
V1 = {"memory/memory.limit_in_bytes": "9223372036854771712", "cpu/cpu.cfs_quota_us": "-1"}


@pytest.mark.parametrize(
    ("files", "memory", "threads"),
    [
        ({}, MACHINE, 16),
        ({"memory.max": "max", "cpu.max": "max 100000"}, MACHINE, 16),
        ({"memory.max": str(GIB >> 2), "cpu.max": "250000 100000"}, GIB >> 2, 3),
        ({"memory.max": str(MACHINE * 2), "cpu.max": "10000 100000"}, MACHINE, 1),
        (V1, MACHINE, 16),
        (
            {
                "memory/memory.limit_in_bytes": str(GIB >> 3),
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            GIB >> 3,
            2,
        ),
    ],
    ids=["none", "v2 without limits", "v2", "v2 more than there is", "v1 without limits", "v1"],
)
def test_cgroups(files: dict[str, str], memory: int, threads: int, tmp_path: Path, monkeypatch) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    read = system._read
    monkeypatch.setattr(system, "_read", lambda path: read(path.replace("/sys/fs/cgroup", str(tmp_path))))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    assert system.memory_limit.__wrapped__() == memory
    assert system.cpu_count.__wrapped__() == threads


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        (None, None),
        (0, None),
        ("0", None),
        ("auto", 2 * GIB),
        (0.25, 2 * GIB),
        ("0.5", 4 * GIB),
        (1.0, 8 * GIB),
        (1_000_000, 1_000_000),
        ("1000000", 1_000_000),
        ("5GB", 5_000_000_000),
        ("2 GiB", 2 * GIB),
        ("100 GiB", 8 * GIB),
    ],
)
def test_memory_limits(given: str | float | None, limit: int | None, monkeypatch) -> None:
    monkeypatch.setattr(system, "memory_limit", lambda: 8 * GIB)
    assert system.parse_memory_limit(given, nthreads=1, total_threads=4) == limit


def test_a_memory_limit_that_is_none() -> None:
    with pytest.raises(ValueError, match="memory limit 'lots': expected something like"):
        system.parse_memory_limit("lots", 1)
