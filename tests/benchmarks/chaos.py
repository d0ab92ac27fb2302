"""``make chaos``: work while workers are killed, against the same work in peace; and a soak of many small tasks.

usage: python -m tests.benchmarks.chaos [--rounds N] [--tasks N] [storm | shuffle | soak ...]

storm    1,500 tasks of 10 ms and their sum, on 4 workers of which one is killed with SIGKILL every 0.3 to 1 s.
shuffle  a dataframe of 64 partitions of 400,000 rows, shuffled and counted by key, under the same.
soak     --tasks no-op tasks through one scheduler, a thousand at a time; memory of the scheduler's process before and
         after, and by task.

Each result is checked. The ratio that counts is chaos over calm, of the same run: it may be 2 at most. Ends with status
1 if a result is wrong or lost, or the ratio is over that.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import logging
import os
import platform
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
from daskfleet import Client, LocalCluster

WORKERS = 4
BETWEEN = (0.3, 1.0)
LIMIT = 2.0


class Killer:
    """Kills a random worker of `cluster` now and then, while it is on."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster, self.kills = cluster, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(random.uniform(*BETWEEN)):
            assert self.cluster.scheduler is not None
            workers = list(self.cluster.scheduler.state.workers.values())
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(workers).info["pid"], signal.SIGKILL)
                    self.kills += 1


def nap(x: int) -> int:
    time.sleep(0.01)
    return x + 1


def storm(client: Client) -> bool:
    futures = client.map(nap, range(1500), pure=False)
    return bool(client.submit(sum, futures, pure=False).result(timeout=300) == sum(range(1, 1501)))


PARTS, ROWS, KEYS = 64, 400_000, 1000


def part(n: int) -> Any:
    import numpy as np
    import pandas as pd

    keys = np.random.default_rng(n).integers(0, KEYS, ROWS)
    return pd.DataFrame({"key": keys, "value": np.arange(ROWS) + n})


@functools.cache
def expected() -> Any:
    import pandas as pd

    counted = (part(n).groupby("key").value.agg(["count", "sum"]) for n in range(PARTS))
    return pd.concat(counted).groupby(level=0).sum()


def shuffle(client: Client) -> bool:
    import dask.dataframe as dd

    frame = dd.from_map(part, range(PARTS))
    counted = frame.shuffle("key").map_partitions(lambda df: df.groupby("key").value.agg(["count", "sum"]))
    found = client.compute(counted, sync=True).sort_index()
    return bool((found == expected()).all(axis=None)) and found.index.is_unique


@contextlib.contextmanager
def cluster() -> Iterator[tuple[LocalCluster, Client]]:
    with LocalCluster(WORKERS, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        client.wait_for_workers(WORKERS, timeout=60)
        yield cluster, client


def timed(work: Callable[[Client], bool], client: Client) -> tuple[float, bool]:
    gc.collect()  # a failed round's futures, and with them its failed tasks
    started = time.perf_counter()
    try:
        right = work(client)
    except BaseException as error:
        print(f"  failed: {type(error).__name__}: {error}", flush=True)
        right = False
    return time.perf_counter() - started, right


def compare(name: str, work: Callable[[Client], bool], rounds: int) -> bool:
    """Rounds in peace and under fire by turns, so that the machine's moods hit both; whether all was well."""
    calm, chaos, kills, right = [], [], 0, 0
    with cluster() as (running, client):
        work(client)
        for n in range(rounds):
            client.wait_for_workers(WORKERS, timeout=60)
            calm.append(timed(work, client)[0])
            with Killer(running) as killer:
                seconds, good = timed(work, client)
            chaos.append(seconds)
            kills += killer.kills
            right += good
            print(f"{name} {n + 1}: calm {calm[-1]:.2f} s, chaos {seconds:.2f} s, {killer.kills} kills", flush=True)
            client.wait_for_workers(WORKERS, timeout=60)
    ratio = statistics.median(chaos) / statistics.median(calm)
    print(
        f"{name}: right {right} of {rounds} times, {kills} workers killed; calm {statistics.median(calm):.2f} s, chaos "
        f"{statistics.median(chaos):.2f} s (worst {max(chaos):.2f} s): ratio {ratio:.2f}, allowed {LIMIT:g}",
        flush=True,
    )
    return right == rounds and ratio <= LIMIT


def soak(tasks: int) -> bool:
    process, batch = psutil.Process(), 1000
    with LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:

        def go(n: int) -> None:
            for _ in range(0, n, batch):
                assert sum(client.gather(client.map(int, range(batch), pure=False))) == sum(range(batch))

        go(20 * batch)
        gc.collect()
        before, started = process.memory_info().rss, time.perf_counter()
        for tenth in range(10):
            go(tasks // 10)
            print(f"soak: {(tenth + 1) * tasks // 10:,} tasks, {process.memory_info().rss / 1e6:.1f} MB", flush=True)
        seconds = time.perf_counter() - started
        gc.collect()
        after = process.memory_info().rss
        assert cluster.scheduler is not None
        left = len(cluster.scheduler.state.tasks)
        workers = [psutil.Process(worker.info["pid"]) for worker in cluster.scheduler.state.workers.values()]
        held = ", ".join(f"{worker.memory_info().rss / 1e6:.1f}" for worker in workers)
    print(
        f"soak: {tasks:,} tasks in {seconds:.0f} s ({tasks / seconds:,.0f}/s); client, scheduler {before / 1e6:.1f} MB "
        f"before, {after / 1e6:.1f} MB after: {(after - before) / tasks:.2f} bytes a task; workers {held} MB; "
        f"{left} tasks still known",
        flush=True,
    )
    return left <= batch and after - before < 50e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("what", nargs="*", default=["storm", "shuffle", "soak"])
    arguments = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, seed {os.environ.get('SEED', 'none')}")
    logging.getLogger("daskfleet").setLevel(logging.ERROR)  # each death is a warning
    random.seed(os.environ.get("SEED"))
    well = True
    for what in arguments.what:
        if what == "soak":
            well &= soak(arguments.tasks)
        else:
            well &= compare(what, {"storm": storm, "shuffle": shuffle}[what], arguments.rounds)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
