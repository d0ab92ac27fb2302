"""A cluster whose every part is a process of this machine."""

from __future__ import annotations

import os
import sys

import psutil
import pytest
from daskfleet import Client, SubprocessCluster
from daskfleet.deploy.session import LOG_LENGTH
from daskfleet.exceptions import DaskfleetError

from tests.eventual import eventually


def test_scheduler_and_workers_are_processes_that_end_with_it() -> None:
    def print_much(megabytes: int) -> None:
        for end in ("\n", ""):
            for _ in range(megabytes):
                sys.stdout.write("x" * (1 << 20) + end)

    limited = {"memory_limit": "500MB"}
    cluster = SubprocessCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, worker_kwargs=limited)
    with cluster, Client(cluster) as client:
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        assert client.run_on_scheduler(os.getppid) == os.getpid()
        client.submit(print_much, 30).result(timeout=180)
        assert client.submit(print, "the end").result(timeout=60) is None
        log = cluster.get_logs()["0"]
        assert "the end" in log and len(log) <= LOG_LENGTH, "however much tasks print, without an end of a line even"
        with SubprocessCluster.from_name(cluster.name) as same, Client(same, set_as_default=False) as other:
            assert other.submit(sum, [2, 3]).result(timeout=60) == 5 and same.observed == {"0"}
            with pytest.raises(ValueError, match=rf"only by the program that made it, process {os.getpid()} on "):
                same.scale(2)
        cluster.scale(memory="1GB")
        client.wait_for_workers(2, timeout=90)
        assert set(client.nthreads().values()) == {2}
        pids = [worker["pid"] for worker in client.scheduler_info()["workers"].values()]
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_what_keeps_the_scheduler_from_starting_is_said() -> None:
    with pytest.raises(DaskfleetError, match=r"(?s)here: .*no_such_option"):
        SubprocessCluster(n_workers=1, scheduler_kwargs={"no_such_option": 1}, dashboard_address=None)
