"""The worker's HTTP server: a probe, metrics, its log. See `serve`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from daskfleet.http.info import LogsPage
from daskfleet.http.logs import ring
from daskfleet.http.prometheus import CONTENT_TYPE, Exposition
from daskfleet.http.server import Handler, Health, HttpService, Redirect, Refused, Route, Sitemap, start
from daskfleet.worker.machine import EXECUTING, READY, WAITING

if TYPE_CHECKING:
    from daskfleet.worker.server import Worker

#: The port that a worker's dashboard has unless somebody else has it: another worker on this machine, say.
DEFAULT_PORT = 8788
#: Seconds that a scrape waits for the scheduler when it measures the latency.
PATIENCE = 1.0


async def serve(worker: Worker, address: str) -> HttpService:
    """Serve `worker` at `address`, such as ``:8788``; when that port is taken, at any free one, with a warning."""
    ring()
    plain: list[Route] = [
        (r"/health", Health),
        (r"/metrics", Metrics),
        (r"/json/identity\.json", Identity),
        (r"/sitemap\.json", Sitemap),
        (r"/info/main/logs\.html", LogsPage),
    ]
    return await start(
        address,
        [(r"/", Redirect, {"to": "info/main/logs.html"}), *plain],
        usual_port=DEFAULT_PORT,
        security=worker.security,
        worker=worker,
        paths=[route[0].replace("\\", "") for route in plain],
        info_links=[("Metrics", "../../metrics")],
    )


class WorkerHandler(Handler):
    @property
    def worker(self) -> Worker:
        worker: Worker = self.application.settings["worker"]
        return worker


class Identity(WorkerHandler):
    def get(self) -> None:
        if not self.worker.address:
            raise Refused(503, f"not registered yet with the scheduler at {self.worker.scheduler_address}")
        self.write_json(self.worker._identity())


class Metrics(WorkerHandler):
    async def get(self) -> None:
        latency = await measure_latency(self.worker)
        self.set_header("Content-Type", CONTENT_TYPE)
        self.write(str(exposition(self.worker, latency)))


async def measure_latency(worker: Worker) -> float | None:
    """Seconds from a question to the scheduler's answer; None without one within `PATIENCE`."""
    if worker._scheduler is None:
        return None
    asked = time.perf_counter()
    try:
        await worker._scheduler.call("ping", timeout=PATIENCE)
    except (OSError, TimeoutError):
        return None
    return time.perf_counter() - asked


def exposition(worker: Worker, latency: float | None) -> Exposition:
    """distributed's names (its documentation, "Prometheus monitoring") for the figures that this worker has."""
    import psutil

    out = Exposition("dask_worker")
    machine = worker.machine
    states = [task.state for task in machine.tasks.values()]
    tasks = {"executing": EXECUTING, "ready": READY, "waiting": WAITING}
    numbers = {name: states.count(state) for name, state in tasks.items()}
    out.gauges("tasks", "Number of tasks at the worker, by state.", "state", {"memory": len(machine.data)} | numbers)
    out.gauge("threads", "Number of worker threads.", worker.nthreads)
    stored = worker.stored
    managed = stored.memory_bytes if stored is not None else sum(machine.sizes.values())
    memory = {
        "managed": managed,
        "unmanaged": max(psutil.Process().memory_info().rss - managed, 0),
        "spilled": stored.disk_bytes if stored is not None else 0,
    }
    out.gauges("memory_bytes", "Memory of the worker's process, by what it is used for.", "type", memory)
    out.gauge("memory_limit_bytes", "Memory the worker may use; 0 without a limit.", worker.memory_limit or 0)
    out.gauge("transfer_incoming_count", "Number of keys that are being fetched from peers.", len(machine.fetches))
    out.gauge("connected", "Whether the scheduler is reached.", int(worker._scheduler is not None))
    if latency is not None:
        out.gauge("latency_seconds", "Seconds that a question to the scheduler takes, there and back.", latency)
    out.process()
    return out
