"""metrics.py: Prometheus' text format."""

from __future__ import annotations

from daskfleet_operator.metrics import Metrics, gauge, process_lines


def test_counters_keep_all_their_digits() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.request("POST", "pods", 201)
    metrics.requests.add(1_234_567_890, method="GET", resource="pods", status="200")
    lines = list(metrics.lines())
    name = "daskfleet_operator_api_requests_total"
    assert f'{name}{{method="POST",resource="pods",status="201"}} 3' in lines
    assert f'{name}{{method="GET",resource="pods",status="200"}} 1234567890' in lines
    assert f"# TYPE {name} counter" in lines


def test_histograms_are_cumulative() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.2, 99.0):
        metrics.passes.observe(seconds)
    lines = list(metrics.passes.lines())
    counts = [int(line.rsplit(" ", 1)[1]) for line in lines if "_bucket{" in line]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 3
    assert lines[-1] == "daskfleet_operator_reconcile_seconds_count 3"
    assert lines[-2].startswith("daskfleet_operator_reconcile_seconds_sum 99.2")


def test_what_the_process_uses() -> None:
    values = dict(line.rsplit(" ", 1) for line in process_lines() if not line.startswith("#"))
    assert 1e6 < float(values["process_resident_memory_bytes"]) < 1e10
    assert float(values["process_cpu_seconds_total"]) > 0
    assert list(gauge("x", "help", {(("a", "b"),): 0.5}))[-1] == 'x{a="b"} 0.5'
