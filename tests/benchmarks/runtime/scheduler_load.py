"""What the scheduler itself costs: a ``dask-scheduler`` of its own, workers that are only simulated.

usage: python scheduler_load.py [--workers N]

A simulated worker speaks the real protocol over a real connection (handshake, registration, heartbeats) and says of
each task at once that it is done. So everything that a task costs the scheduler is there, and nothing that it costs a
worker. Workers and client share this process, the scheduler has one of its own: its processor time is what is measured.
Prints one JSON line per figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from daskfleet import Client
from daskfleet.comm import Connection, connect
from daskfleet.protocol.messages import RESTING

NONE = pickle.dumps(None)


class Simulated:
    """A worker that does nothing, very fast."""

    def __init__(self, number: int) -> None:
        self.number, self.pace = number, 1

    async def start(self, address: str) -> None:
        self._connection = await connect(address, setup=self._attach)
        await self._connection.call("register", "worker", self._info(), timeout=60)
        asyncio.get_running_loop().call_later(RESTING * (self.number % 100) / 100, self._beat)

    def _info(self) -> dict[str, Any]:
        return {
            "type": "Worker",
            "address": f"tcp://127.0.0.1:{100_000 + self.number}",
            "name": f"simulated-{self.number}",
            "host": "127.0.0.1",
            "nthreads": 1,
            "memory_limit": 1 << 30,
            "resources": {},
            "services": {},
            "held": [],
        }

    def _attach(self, connection: Connection) -> None:
        connection.on_messages = self._hear

    def _hear(self, connection: Connection, messages: list[Any]) -> None:
        for message in messages:
            if message[0] == "pace":
                self.pace = message[1]
            elif message[0] == "run":
                connection.send(("done", [(row[0], row[1], 16, 1e-5, "NoneType", NONE) for row in message[1]]))

    def _beat(self) -> None:
        metrics = {"memory": 1 << 26, "spilled": 0, "cpu": 0.1, "executing": 0, "ready": 0, "in_memory": 0}
        self._connection.send(("heartbeat", metrics | {"time": time.time()}))
        asyncio.get_running_loop().call_later(RESTING * self.pace, self._beat)


@contextmanager
def scheduler() -> Iterator[tuple[str, psutil.Process]]:
    """A ``dask-scheduler``: its address and its process."""
    command = [sys.executable, "-m", "daskfleet.cli.scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DASK")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        address = next(line.split()[-1] for line in process.stderr if "Scheduler at" in line)
        drain = asyncio.get_running_loop().run_in_executor(None, process.stderr.read)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(10)
        drain.cancel()


def used(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def report(figure: str, value: float) -> None:
    print(json.dumps({"figure": figure, "value": value}), flush=True)


async def measure(workers: int, tasks: int) -> None:
    with scheduler() as (address, process):
        for start in range(0, workers, 100):
            crowd = [Simulated(number) for number in range(start, min(start + 100, workers))]
            await asyncio.gather(*(worker.start(address) for worker in crowd))
        async with Client(address, asynchronous=True) as client:
            await client.gather(client.map(abs, range(1000), pure=False))
            name = f"scheduler with {workers:,} workers"
            if workers > 2:
                await asyncio.sleep(2 * RESTING)
                before, start = used(process), time.perf_counter()
                await asyncio.sleep(10)
                report(f"{name}, idle: % of a core", 100 * (used(process) - before) / (time.perf_counter() - start))
            resident, before, start = process.memory_info().rss, used(process), time.perf_counter()
            futures = client.map(abs, range(tasks), pure=False)
            await client.gather(futures)
            seconds = time.perf_counter() - start
            report(f"{name}: tasks/s", tasks / seconds)
            report(f"{name}: bytes a task held", (process.memory_info().rss - resident) / tasks)
            del futures
            while await client._call("tasks", None):
                await asyncio.sleep(0.05)
            report(f"{name}: CPU, µs a task", 1e6 * (used(process) - before) / tasks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 1000])
    parser.add_argument("--tasks", type=int, default=100_000)
    arguments = parser.parse_args()
    for number in arguments.workers:
        asyncio.run(measure(number, arguments.tasks))
