"""Memory and threads: what cgroups of both versions allow, and what users write."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from daskfleet import system

GIB = 1 << 30
MACHINE = psutil.virtual_memory().total
OWN_V1 = "5:cpuacct,cpu:/a/b\n4:memory:/a/b\n1:name=systemd:/c\n0::/c"


def v1(memory: int, quota: int, at: str = ".") -> dict[str, str]:
    return {
        f"memory/{at}/memory.limit_in_bytes": str(memory),
        f"cpu/{at}/cpu.cfs_quota_us": str(quota),
        f"cpu/{at}/cpu.cfs_period_us": "100000",
    }


def v2(memory: int | str, cpu: int | str, at: str = ".") -> dict[str, str]:
    return {f"{at}/memory.max": str(memory), f"{at}/cpu.max": f"{cpu} 100000"}


NO_V1 = v1(9223372036854771712, -1)


@pytest.mark.parametrize(
    ("own", "files", "memory", "threads"),
    [
        ("", {}, MACHINE, 16),
        ("0::/", v2("max", "max"), MACHINE, 16),
        ("0::/", v2(GIB >> 2, 250_000), GIB >> 2, 3),
        ("0::/", v2(MACHINE * 2, 10_000), MACHINE, 1),
        ("0::/a/b", v2("max", 450_000, "a/b") | v2(GIB >> 2, "max", "a"), GIB >> 2, 5),
        ("0::/a/b", v2(GIB >> 2, 450_000, "a/b") | v2(GIB >> 1, 150_000, "a"), GIB >> 2, 2),
        ("0::/a/b", v2(GIB >> 2, 250_000, "a/c"), MACHINE, 16),
        ("0::/docker/0123", v2(GIB >> 2, 250_000), GIB >> 2, 3),
        ("0::/../../b", v2(GIB >> 2, 250_000), GIB >> 2, 3),
        (OWN_V1, NO_V1, MACHINE, 16),
        ("", v1(GIB >> 3, 200_000), GIB >> 3, 2),
        (OWN_V1, NO_V1 | v1(GIB >> 2, -1, "a") | v1(GIB >> 1, 200_000, "a/b"), GIB >> 2, 2),
        (OWN_V1, v1(GIB, 300_000) | v1(GIB >> 3, 400_000, "a/b"), GIB >> 3, 3),
        (OWN_V1, NO_V1 | v2(GIB >> 3, 100_000, "unified/c"), GIB >> 3, 1),
    ],
    ids=[
        "none",
        "v2 without limits",
        "v2",
        "v2 more than there is",
        "v2 the one above",
        "v2 its own",
        "v2 another's",
        "v2 a container that sees only its own",
        "v2 as seen from a container beside",
        "v1 without limits",
        "v1",
        "v1 the one above",
        "v1 its own",
        "both",
    ],
)
def test_cgroups(own: str, files: dict[str, str], memory: int, threads: int, tmp_path: Path, monkeypatch) -> None:
    written = {"proc/self/cgroup": own} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    assert system.memory_limit(tmp_path) == memory
    assert system.cpu_count(tmp_path) == threads


@contextlib.contextmanager
def real_cgroups(controller: str, files: tuple[str, str]) -> Iterator[tuple[Path, Path]]:
    """A cgroup and one below it, by the files that limit them: below ours, or where else it may be."""
    made: list[Path] = []
    try:
        for top in reversed([path for path in system._cgroups(controller, system.ROOT) if path.exists()]):
            outer = top / f"daskfleet-test-{uuid.uuid4().hex[:8]}"
            with contextlib.suppress(OSError):
                outer.mkdir()
                made.append(outer)
                with contextlib.suppress(OSError):  # only version 2 has this
                    (outer / "cgroup.subtree_control").write_text(f"+{controller}")
                (outer / "inner").mkdir()
                made.append(outer / "inner")
            for name in files:
                if (outer / "inner" / name).exists():
                    yield outer / name, outer / "inner" / name
                    return
        pytest.skip(f"{controller}: no cgroup can be made and limited here")
    finally:
        for folder in reversed(made):
            folder.rmdir()


def in_cgroup(folder: Path, expression: str) -> int:
    code = (
        "import os; from daskfleet import system\n"
        f"open({str(folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        f"print({expression})"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_a_real_cgroup_above_limits_memory() -> None:
    with real_cgroups("memory", ("memory.max", "memory.limit_in_bytes")) as (outer, inner):
        inner.write_text(str(GIB))
        outer.write_text(str(GIB >> 1))
        assert in_cgroup(inner.parent, "system.memory_limit()") == GIB >> 1
        inner.write_text(str(GIB >> 2))
        assert in_cgroup(inner.parent, "system.parse_memory_limit(0.5, 1)") == GIB >> 3


def test_a_real_cgroup_above_limits_threads() -> None:
    with real_cgroups("cpu", ("cpu.max", "cpu.cfs_quota_us")) as (outer, inner):
        outer.write_text("50000")  # of 100,000 µs
        assert in_cgroup(inner.parent, "system.cpu_count()") == 1


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
