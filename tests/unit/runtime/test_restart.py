"""A scheduler's process is killed, and another started in its place: what a blocking client had is there again."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from daskfleet import Client, Event, Queue, Variable


def test_a_client_goes_on_with_the_scheduler_in_a_killed_ones_place(command: Any, scheduler: Any) -> None:
    first, address = scheduler
    worker = command("worker", address, "--nthreads", "1", "--name", "one")
    with Client(address) as client:
        client.wait_for_workers(1, timeout=180)
        made, failed = client.submit(bytes, 100_007), client.submit(int, "x")
        Variable("v").set(made)
        Queue("q").put(client.submit(bytes, 100_008))
        Event("e").set()
        client.set_metadata("m", 1)
        client.publish_dataset(d=made)
        with pytest.raises(ValueError, match="invalid literal"):
            failed.result(timeout=180)
        made.result(timeout=180)
        first.stop(signal.SIGKILL)
        command("scheduler", "--port", address.rpartition(":")[2], "--no-dashboard", "--host", "127.0.0.1")
        assert client.submit(len, made).result(timeout=180) == 100_007
        assert len(made.result(timeout=180)) == 100_007 and failed.status == "error"
        assert len(Variable("v").get(timeout=180).result(timeout=180)) == 100_007
        assert len(Queue("q").get(timeout=180).result(timeout=180)) == 100_008
        assert Event("e").is_set()
        assert client.get_metadata("m") == 1
        assert client.list_datasets() == ("d",)
    worker.stop()
