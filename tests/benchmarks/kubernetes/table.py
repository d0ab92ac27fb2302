"""The table that is printed: medians and ranges of both sides, ratios, targets, the floor, and where our seconds go."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tests.cluster import tools

from .peer import install as peer

ROWS = {
    "import": "import",
    "start": "start 2 workers",
    "up": "scale 2→6",
    "down": "scale 6→2",
    "down: pods gone": "  pods gone",
    "close": "close()",
    "close: pods gone": "  pods gone",
}
TARGETS = {"start": 2.5, "up": 1.5, "down": 1.5, "close": 1.0}
"""Seconds."""
OUTSTANDING = 3.0
"""Seconds within which work should bring a worker to a cluster that has none."""
FLOOR = {"ready 1": "a pod Ready", "ready 4": "four pods Ready", "gone 1": "a pod gone", "gone 4": "four pods gone"}
WIDTH = 24


@dataclass
class Results:
    """Seconds by name, of each round of each side."""

    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)
    """What the rounds that failed said."""
    outstanding: list[dict[str, float]] = field(default_factory=list)
    floor: list[dict[str, float]] = field(default_factory=list)


def text(results: Results, command: str, cluster: str) -> str:
    """The whole report."""
    sides = [side for side, rounds in results.rounds.items() if rounds]
    ours = results.rounds.get("daskfleet")
    lines = ["", "seconds, median (min-max)".ljust(WIDTH) + "".join(side.rjust(WIDTH + 6) for side in sides)]
    if ours and len(sides) > 1:
        lines[-1] += "times faster".rjust(WIDTH - 4)
    lines[-1] += "target".rjust(9)
    for name, title in ROWS.items():
        columns = [_range([found[name] for found in results.rounds[side]]).rjust(WIDTH + 6) for side in sides]
        line = title.ljust(WIDTH + 1) + "".join(columns)
        if ours and len(sides) > 1:
            mine = median(found[name] for found in ours)
            others = [median(found[name] for found in results.rounds[side]) for side in sides if side != "daskfleet"]
            line += " / ".join(f"{other / mine:.1f}" for other in others).rjust(WIDTH - 4)
        line += f"{TARGETS[name]:.1f}".rjust(9) if name in TARGETS else ""
        lines.append(line.rstrip())
    for side, said in results.failures.items():
        if said:
            lines += ["", f"{side}: {len(said)} of {len(said) + len(results.rounds.get(side, ()))} rounds failed"]
            lines[-1] += f" and are not in the table, the last with: {said[-1]}"
    if results.outstanding:
        lines += ["", _outstanding(results.outstanding)]
    if results.floor:
        told = [f"{title} {_range([found[name] for found in results.floor])}" for name, title in FLOOR.items()]
        lines += ["", "floor, bare pods of our image: " + "; ".join(told)]
    for side in sides:
        lines += ["", f"on the way, {side}:", *_breakdown(results.rounds[side])]
    lines += ["", f"command: {command}", f"machine: {machine()}; {cluster}", f"versions: {versions()}"]
    return "\n".join(lines)


def _outstanding(tries: list[dict[str, float]]) -> str:
    seconds = [found["first worker"] for found in tries]
    on_time = sum(each <= OUTSTANDING for each in seconds)
    way = [f"{median(found[name] for found in tries):.2f} {name}" for name in ("made", "seen running")]
    return (
        f"ten seconds of work and no workers: the first after {_range(seconds)} s, {on_time} of {len(tries)} times "
        f"within {OUTSTANDING:.0f} s; its pod {' and '.join(way)}"
    )


def _breakdown(rounds: list[dict[str, float]]) -> list[str]:
    lines = []
    for phase in ("start", "up", "down", "close"):
        names = [name for name in rounds[0] if name == phase or name.startswith(f"{phase}: ")]
        events = sorted((median(found[name] for found in rounds), name) for name in names)
        told = [f"{at:.2f} {name.partition(': ')[2] or 'DONE'}" for at, name in events]
        lines.append(f"  {ROWS[phase]}: " + ", ".join(told))
    return lines


def _range(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def machine() -> str:
    """What this ran on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}, {memory:.0f} GiB, load {load}"


def versions() -> str:
    """Of all that took part."""
    return (
        f"daskfleet {version('daskfleet')}, dask-kubernetes and distributed {peer.VERSION}, "
        f"Kubernetes {tools.KUBERNETES}, Python {platform.python_version()}, Linux {platform.release()}"
    )
