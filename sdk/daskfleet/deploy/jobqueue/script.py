"""What goes into a job: pure functions from what the user wrote to the text of a script. No I/O."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Share of the walltime, and bounds in seconds, that are left for handing over data before the queue ends the job.
MARGIN, MARGIN_MIN, MARGIN_MAX = 0.05, 30.0, 300.0


@dataclass(frozen=True)
class Resources:
    """What a job asks its queue for.

    Attributes
    ----------
    cores, memory
        Threads of all workers of the job together, and bytes.
    walltime
        As the user wrote it, None for the queue's own limit.
    queue, account
        Where it runs and who pays: partition, project …
    resource_spec
        The system's own way to say cores and memory, instead of ours.
    log_directory
        Folder for the output of jobs.
    disk
        Bytes, None for the queue's own.
    memory_unit
        In which the queue counts memory, where that differs from site to site: ``"KB"``, ``"MB"`` …
    memory_property
        What the queue calls the memory of a core, where nodes are chosen by such properties.
    extra
        More directives, and `skip`: texts; directives that contain one of them are left out.
    """

    job_name: str
    cores: int
    memory: int
    walltime: str | None
    queue: str | None
    account: str | None
    log_directory: str
    resource_spec: str | None = None
    job_cpu: int | None = None
    job_mem: str | None = None
    disk: int | None = None
    memory_unit: str = "MB"
    memory_property: str | None = None
    extra: Sequence[str] = field(default_factory=tuple)
    skip: Sequence[str] = field(default_factory=tuple)


def directives(marker: str, lines: Sequence[str], resources: Resources) -> list[str]:
    """The lines behind `marker`, with the user's own, without those to skip."""
    every = [*lines, *resources.extra]
    return [f"{marker} {line}" for line in every if not any(skip in line for skip in resources.skip)]


def assemble(
    shebang: str, header: Sequence[str], prologue: Sequence[str], command: str, epilogue: Sequence[str]
) -> str:
    """The whole script."""
    return "\n".join([shebang, "", *header, *prologue, command, *epilogue, ""])


def split(cores: int) -> int:
    """Processes to cut a job of so many cores into: about the square root, and a divisor, as distributed does it."""
    if cores <= 4:
        return cores
    return min(factor for factor in range(1, cores + 1) if cores % factor == 0 and factor >= math.sqrt(cores))


def seconds(walltime: str | None, *, unit: int = 60) -> float | None:
    """Seconds of a walltime: ``D-HH:MM:SS``, ``HH:MM:SS``, ``HH:MM`` (``MM:SS`` if `unit` is 1), or a number of `unit`.

    Raises
    ------
    ValueError
        It is none of these.
    """
    if not walltime:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(walltime).strip())
    if match is None:
        raise ValueError(f'walltime {walltime!r}: expected something like "01:30:00"')
    days, first, second, third = (int(group) if group else None for group in match.groups())
    if third is not None:
        rest = (first or 0) * 3600 + (second or 0) * 60 + third
    elif second is not None:
        rest = ((first or 0) * 60 + second) * unit
    else:
        rest = (first or 0) * (3600 if days is not None else unit)
    return float((days or 0) * 86400 + rest)


def lifetime(walltime: float | None) -> float | None:
    """Seconds after which a worker should retire, so that it is gone before its walltime is up; None for never."""
    if not walltime:
        return None
    margin = min(max(MARGIN * walltime, MARGIN_MIN), MARGIN_MAX, walltime / 2)
    return walltime - margin


def in_units(n: int, unit: str) -> int:
    """Bytes in a unit (``KB``, ``MB``, ``GB`` of 1000, ``KiB`` … of 1024), rounded up."""
    power: int = "KMGTPEZ".index(unit[0]) + 1
    size: int = (1024 if "i" in unit else 1000) ** power
    return -(-n // size)


def quote(argument: str) -> str:
    """For the shell; variables of the queue (``$SLURM_ARRAY_TASK_ID``) stay ones."""
    return argument if re.fullmatch(r"[\w.:/=@%+,${}-]+", argument) else shlex.quote(argument)
