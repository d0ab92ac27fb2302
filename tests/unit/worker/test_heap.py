"""The heap of a worker's process: it keeps what is freed until it is told to give it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from daskfleet.worker import heap

SCRIPT = """
import json
from daskfleet.worker import heap
from daskfleet.worker.memory import resident_memory

def grown():
    return (resident_memory() - start) >> 20

heap.keep_freed_memory({limit})
start = resident_memory()
hole = bytearray(1 << 20)
data = bytearray(b"x") * (100 << 20)
del hole  # for what reading the figures takes: behind the data it would hold the heap's end
full = grown()
del data
freed = grown()
heap.give_back()
print(json.dumps([full, freed, grown()]))
"""


def megabytes(limit: int | None, **env: str) -> list[int]:
    """What a process has more than at its start: with 100 MB in use, with those freed, and given back."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC")}
    command = [sys.executable, "-c", SCRIPT.format(limit=limit)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=180, env=kept | env, check=True)
    return list(json.loads(told.stdout))


@pytest.mark.skipif(not hasattr(heap._libc, "malloc_trim"), reason="the C library is another than glibc")
def test_freed_memory_is_kept_and_given_back() -> None:
    full, freed, given_back = megabytes(None)
    assert full >= 95 and freed >= 95 and given_back <= 10


def test_a_small_worker_keeps_little() -> None:
    full, freed, _ = megabytes(80 << 20)  # an eighth of it
    assert full >= 95 and freed <= 15


def test_whoever_has_set_the_threshold_decides_himself() -> None:
    full, freed, given_back = megabytes(None, MALLOC_TRIM_THRESHOLD_="65536")
    assert full >= 95 and freed <= 10 and given_back <= 10
