"""Figures in Prometheus' text format, version 0.0.4. Forty lines of code; the client library would cost 30 ms."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """Collects metrics; `str` gives the text.

    Parameters
    ----------
    namespace
        What each name starts with, such as ``dask_scheduler``.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._lines: list[str] = []

    def gauge(self, name: str, help: str, value: float) -> None:
        """A number that goes up and down."""
        self._add(f"{self._namespace}_{name}", "gauge", help, [({}, value)])

    def counter(self, name: str, help: str, value: float) -> None:
        """A number that only grows; `name` ends in ``_total``."""
        self._add(f"{self._namespace}_{name}", "counter", help, [({}, value)])

    def gauges(self, name: str, help: str, label: str, values: Mapping[str, float]) -> None:
        """One number for each value of `label`, whose values must be few and fixed."""
        self._add(f"{self._namespace}_{name}", "gauge", help, [({label: key}, value) for key, value in values.items()])

    def counters(self, name: str, help: str, rows: Iterable[tuple[Mapping[str, str], float]]) -> None:
        """A counter for each set of labels."""
        self._add(f"{self._namespace}_{name}", "counter", help, rows)

    def process(self) -> None:
        """This process's memory, CPU time, files and Python, by the names that every client library uses."""
        import psutil

        process = psutil.Process()
        with process.oneshot():
            memory, times = process.memory_info(), process.cpu_times()
            started, files = process.create_time(), process.num_fds() if hasattr(process, "num_fds") else 0
        figures = (
            ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", memory.rss),
            ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", memory.vms),
            ("process_cpu_seconds_total", "counter", "User and system CPU time in seconds.", times.user + times.system),
            ("process_open_fds", "gauge", "Open file descriptors.", files),
            ("process_start_time_seconds", "gauge", "When the process started, since the epoch.", started),
        )
        for name, kind, help, value in figures:
            self._add(name, kind, help, [({}, value)])
        python = {"implementation": sys.implementation.name, "version": sys.version.split()[0]}
        self._add("python_info", "gauge", "The interpreter.", [(python, 1)])

    def _add(self, name: str, kind: str, help: str, rows: Iterable[tuple[Mapping[str, str], float]]) -> None:
        self._lines.append(f"# HELP {name} {help}")
        self._lines.append(f"# TYPE {name} {kind}")
        for labels, value in rows:
            inner = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
            self._lines.append(f"{name}{{{inner}}} {value}" if inner else f"{name} {value}")

    def __str__(self) -> str:
        return "\n".join([*self._lines, ""])


def _escape(text: Any) -> str:
    return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
