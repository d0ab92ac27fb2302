"""Counters and histograms in Prometheus' text format."""

from __future__ import annotations

import resource
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

Labels = tuple[tuple[str, str], ...]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def _text(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{text}"' for key, text in labels)
    number = repr(float(value)).removesuffix(".0")  # all digits: a counter of millions still grows by one
    return f"{name}{{{inner}}} {number}" if inner else f"{name} {number}"


def labels_of(labels: dict[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


class Counter:
    """A number that only grows, per set of labels."""

    def __init__(self, name: str, help: str) -> None:
        self.name, self.help = name, help
        self._values: dict[Labels, float] = defaultdict(float)

    def add(self, amount: float = 1, **labels: str) -> None:
        self._values[labels_of(labels)] += amount

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} counter"
        for labels, value in sorted(self._values.items()):
            yield _text(self.name, labels, value)


class Histogram:
    """How often something took how many seconds."""

    def __init__(self, name: str, help: str) -> None:
        self.name, self.help = name, help
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} histogram"
        total = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self._counts, strict=True):
            total += count
            yield _text(f"{self.name}_bucket", (("le", bound),), total)
        yield _text(f"{self.name}_sum", (), self._sum)
        yield _text(f"{self.name}_count", (), total)


def gauge(name: str, help: str, values: dict[Labels, float]) -> Iterator[str]:
    """A number as it is now, per set of labels."""
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} gauge"
    for labels, value in sorted(values.items()):
        yield _text(name, labels, value)


def process_lines() -> Iterator[str]:
    """What this process uses, by the names that dashboards know."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    yield from gauge("process_resident_memory_bytes", "Memory in use.", {(): float(pages * resource.getpagesize())})
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = Counter("process_cpu_seconds_total", "Processor time used.")
    seconds.add(used.ru_utime + used.ru_stime)
    yield from seconds.lines()


class Metrics:
    """What the operator counts."""

    def __init__(self) -> None:
        self.requests = Counter("daskfleet_operator_api_requests_total", "Requests to the Kubernetes API.")
        self.passes = Histogram("daskfleet_operator_reconcile_seconds", "Duration of one reconcile pass.")
        self.waits = Histogram("daskfleet_operator_queue_seconds", "Time between a wake and its pass.")
        self.errors = Counter("daskfleet_operator_reconcile_errors_total", "Passes that raised.")
        self.actions = Counter("daskfleet_operator_actions_total", "Actions applied, by kind.")

    def request(self, method: str, plural: str, status: int) -> None:
        """Count one API request."""
        self.requests.add(method=method, resource=plural, status=str(status))

    def lines(self) -> Iterator[str]:
        for metric in (self.requests, self.passes, self.waits, self.errors, self.actions):
            yield from metric.lines()
