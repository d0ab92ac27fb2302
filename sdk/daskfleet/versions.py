"""Versions of what has to fit between client, scheduler and workers, and a table of what does not."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from typing import Any

#: What both sides have to have alike; the others are looked at only where a side has them.
REQUIRED = ("python", "daskfleet", "dask", "cloudpickle", "msgpack")
OPTIONAL = ("numpy", "pandas", "pyarrow")


class VersionMismatchWarning(Warning):
    """Processes of one cluster have different versions of something."""


#: What else a worker tells of: the packages of the environment that it was given.
MORE_VARIABLE = "DASKFLEET_ENVIRONMENT_PACKAGES"


@functools.cache
def versions(more: frozenset[str] = frozenset()) -> dict[str, str | None]:
    """This process's, by name; None for what is not installed.

    Parameters
    ----------
    more
        Further packages; those of this process's environment are added.
    """
    from importlib import metadata  # it takes a while

    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in sorted({*REQUIRED[1:], *OPTIONAL, *os.environ.get(MORE_VARIABLE, "").split(), *more}):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _of_note(name: str, version: str) -> str:
    """The part of a version that has to be alike: code objects differ between Python's feature releases only."""
    return ".".join(version.split(".")[:2]) if name == "python" else version


def mismatches(
    client: Mapping[str, Any], scheduler: Mapping[str, Any], workers: Mapping[str, Mapping[str, Any]]
) -> str:
    """A table of the packages whose versions differ, ``""`` when none does.

    Parameters
    ----------
    client, scheduler
        Versions by package.
    workers
        The same by worker.
    """
    rows = []
    known = (*REQUIRED, *OPTIONAL)
    others = sorted({name for versions in workers.values() for name in versions} - set(known))
    for name in (*known, *others):
        on_workers = sorted({str(versions.get(name)) for versions in workers.values()})
        relevant = [str(client.get(name)), *on_workers]
        if name in REQUIRED:  # the scheduler never loads users' objects, so it may do without their packages
            relevant.append(str(scheduler.get(name)))
        if len({_of_note(name, version) for version in relevant}) > 1:
            rows.append((name, str(client.get(name)), str(scheduler.get(name)), ", ".join(on_workers) or "-"))
    if not rows:
        return ""
    table = [("Package", "Client", "Scheduler", "Workers"), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
