"""What people see in a notebook, by a real kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    manager, client = start_new_kernel(startup_timeout=180)
    run(
        client,
        "import time\n"
        "from daskfleet import Client, progress\n"
        "client = Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None)\n"
        "def slow(x):\n    time.sleep(0.3)\n    return x\n",
    )
    yield client
    run(client, "client.close()")
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run(kernel: Any, code: str, until: str = "") -> list[dict[str, Any]]:
    """The pictures that a cell shows, until it is done and one of them has `until` in it."""
    seen: list[dict[str, Any]] = []
    cell = kernel.execute(code)
    idle, deadline = False, time.monotonic() + 180
    while not (idle and (not until or any(until in str(data) for data in seen))):
        assert time.monotonic() < deadline, seen
        message = kernel.get_iopub_msg(timeout=180)
        content = message["content"]
        assert message["msg_type"] != "error", "\n".join(content["traceback"])
        if "data" in content:
            seen.append(content["data"])
        if content.get("execution_state") == "idle" and message["parent_header"].get("msg_id") == cell:
            idle = True
    return seen


def test_progress_fills_while_other_cells_run(kernel: Any) -> None:
    code = "a, b = client.map(slow, range(3)), client.submit(len, [1])\nprogress(a, b)"
    shown = run(kernel, code, until="4 / 4")
    assert "<progress" in shown[0]["text/html"] and "4 / 4" not in shown[0]["text/html"]
    assert "slow" in shown[-1]["text/html"] and "len" in shown[-1]["text/html"]


def test_client_cluster_and_future_are_worth_looking_at(kernel: Any) -> None:
    run(kernel, "from IPython.display import display\ndone = client.submit(len, [])\ndone.result()")
    shown = run(kernel, "display(client, client.cluster, done)")
    client, cluster, future = (data["text/html"] for data in shown)
    assert "Scheduler" in client and "Workers" in cluster and "finished" in future
