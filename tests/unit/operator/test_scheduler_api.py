"""scheduler_api.py: which pod a worker runs in; the routes themselves are tested with real schedulers in tests/e2e."""

from __future__ import annotations

from daskfleet_operator.scheduler_api import pods_of
from operator_builders import pod

FIRST, SECOND = pod("w-1", ip="10.0.0.1"), pod("w-2", ip="10.0.0.2")


def test_by_address_whatever_the_worker_is_called() -> None:
    worker = {"name": "named-by-hand", "address": "tcp://10.0.0.2:40001"}
    assert pods_of([worker], [FIRST, SECOND]) == [SECOND]


def test_by_name_when_the_address_says_nothing() -> None:
    assert pods_of([{"name": "w-1", "address": "tls://worker.example:1"}], [FIRST, SECOND]) == [FIRST]


def test_several_workers_of_a_pod_are_one_pod() -> None:
    workers = [{"name": f"w-1-{n}", "address": f"tcp://10.0.0.1:{n}"} for n in range(3)]
    assert pods_of(workers, [FIRST, SECOND]) == [FIRST]


def test_strangers_are_nobodys() -> None:
    assert pods_of([{"name": "x", "address": "tcp://192.0.2.1:1"}], [FIRST, SECOND]) == []
