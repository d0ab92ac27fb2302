"""The same work for every engine, each in an environment of its own: prints one JSON line per figure.

usage: python workloads.py daskfleet|distributed|ray|pool [figure ...]

Every engine gets two workers of one thread. Figures are medians of several rounds unless they are one long round.
Tenths of a millisecond are mostly waiting for processors to wake up, which may take three times as long in one second
as in the next: of those figures the quietest of several bursts counts, for each engine and for the limit.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CLOCK = time.perf_counter


def identity(x: Any) -> Any:
    return x


def add(*values: int) -> int:
    return sum(values)


def plus(x: Any, y: Any) -> Any:
    return x + y


class Dask:
    """daskfleet and distributed have the same API: that is the point of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def modules(self) -> Any:
        if self.name == "daskfleet":
            import daskfleet as engine
        else:
            import distributed as engine
        return engine

    @contextmanager
    def cluster(self, n: int = 2, **more: Any) -> Iterator[Any]:
        engine = self.modules()
        options = {"n_workers": n, "threads_per_worker": 1, "dashboard_address": None, **more}
        if self.name == "distributed":
            options["dashboard_address"] = ":0"  # it has no way to do without
        with engine.LocalCluster(**options) as cluster, engine.Client(cluster) as client:
            client.wait_for_workers(n)
            yield client

    def map_gather(self, client: Any, n: int) -> None:
        futures = client.map(identity, range(n), pure=False)
        assert client.gather(futures) == list(range(n))

    def submit(self, client: Any, value: int) -> None:
        assert client.submit(identity, value, pure=False).result() == value

    def chain(self, client: Any, n: int) -> None:
        future = client.submit(operator.add, 0, 0, pure=False)
        for _ in range(n):
            future = client.submit(operator.add, future, 1, pure=False)
        assert future.result() == n

    def tree(self, client: Any, n: int) -> None:
        level = client.map(identity, range(n), pure=False)
        while len(level) > 1:
            level = [client.submit(add, *level[i : i + 8], pure=False) for i in range(0, len(level), 8)]
        assert level[0].result() == n * (n - 1) // 2

    def big(self, client: Any, data: Any) -> None:
        future = client.scatter(data)
        assert len(client.submit(operator.add, future, 1, pure=False).result()) == len(data)


class Ray:
    name = "ray"

    @contextmanager
    def cluster(self, n: int = 2) -> Iterator[Any]:
        import logging

        import ray

        ray.init(num_cpus=n, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        try:
            run = ray.remote(identity)
            ray.get([run.remote(i) for i in range(2)])
            yield ray
        finally:
            ray.shutdown()

    def map_gather(self, ray: Any, n: int) -> None:
        run = ray.remote(identity)
        assert ray.get([run.remote(i) for i in range(n)]) == list(range(n))

    def submit(self, ray: Any, value: int) -> None:
        run = ray.remote(identity)
        assert ray.get(run.remote(value)) == value

    def chain(self, ray: Any, n: int) -> None:
        run = ray.remote(add)
        future = run.remote(0)
        for _ in range(n):
            future = run.remote(future, 1)
        assert ray.get(future) == n

    def tree(self, ray: Any, n: int) -> None:
        leaf, node = ray.remote(identity), ray.remote(add)
        level = [leaf.remote(i) for i in range(n)]
        while len(level) > 1:
            level = [node.remote(*level[i : i + 8]) for i in range(0, len(level), 8)]
        assert ray.get(level[0]) == n * (n - 1) // 2

    def big(self, ray: Any, data: Any) -> None:
        run = ray.remote(plus)  # it takes no builtin ones
        assert len(ray.get(run.remote(ray.put(data), 1))) == len(data)


class Pool:
    name = "pool"

    @contextmanager
    def cluster(self, n: int = 2) -> Iterator[Any]:
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(n) as pool:
            list(pool.map(identity, range(2)))
            yield pool

    def map_gather(self, pool: Any, n: int) -> None:
        assert list(pool.map(identity, range(n))) == list(range(n))

    def submit(self, pool: Any, value: int) -> None:
        assert pool.submit(identity, value).result() == value


def report(figure: str, value: float) -> None:
    print(json.dumps({"figure": figure, "value": value}), flush=True)


def timed(function: Callable[[], Any]) -> float:
    start = CLOCK()
    function()
    return CLOCK() - start


def median(function: Callable[[], Any], rounds: int) -> float:
    return statistics.median(timed(function) for _ in range(rounds))


def quietest(burst: Callable[[], float]) -> float:
    """The least of several, half a second apart."""
    found = []
    for _ in range(8):
        found.append(burst())
        time.sleep(0.5)
    return min(found)


def up(engine: Any, n: int) -> float:
    """Seconds until the workers of a cluster are there; everything is imported before."""
    if isinstance(engine, Dask):
        engine.modules().LocalCluster  # noqa: B018 - ours is imported when it is asked for
        engine.modules().Client  # noqa: B018
    start = CLOCK()
    with engine.cluster(n):
        return CLOCK() - start


def figures(engine: Any, wanted: set[str]) -> None:
    def want(name: str) -> bool:
        return not wanted or name in wanted

    if want("import") and engine.name != "pool":
        module = {"daskfleet": "daskfleet", "distributed": "distributed", "ray": "ray"}[engine.name]
        code = f"from {module} import Client" if engine.name != "ray" else "import ray"
        # Installed packages have bytecode, so ours must be allowed to write some.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

        def python(code: str) -> float:
            return median(lambda: subprocess.run([sys.executable, "-c", code], check=True, env=environment), 5)

        report("import, s", python(code) - python("pass"))
    if want("up"):
        report("cluster of 2 up, s", statistics.median(up(engine, 2) for _ in range(3)))
    if want("up30") and isinstance(engine, Dask):
        report("cluster of 30 up, s", up(engine, 30))
    if want("idle") and isinstance(engine, Dask):
        idle(engine)
    with engine.cluster() as client:
        engine.map_gather(client, 100)
        if want("map"):
            for n in (10_000, 200_000) if engine.name in ("daskfleet", "pool") else (10_000,):
                report(f"map+gather of {n:,}, tasks/s", n / median(lambda n=n: engine.map_gather(client, n), 3))
        if want("submit"):
            seconds = quietest(lambda: median(lambda: engine.submit(client, 7), 200))
            report("submit to result, ms", 1e3 * seconds)
        if engine.name == "pool":
            return
        if want("chain"):
            report("chain, ms a hop", 1e3 * quietest(lambda: timed(lambda: engine.chain(client, 200))) / 200)
        if want("tree"):
            report("tree of 4,096 by 8, s", median(lambda: engine.tree(client, 4096), 3))
        if want("big"):
            import numpy

            data = numpy.arange(8 << 20)
            report("64 MiB scatter + op + gather, s", median(lambda: engine.big(client, data), 3))
        if isinstance(engine, Dask):
            collections(engine, client, want)
    if isinstance(engine, Dask):
        shuffle(engine, want)


def shuffle(engine: Dask, want: Callable[[str], bool]) -> None:
    """2 GB through two workers that may use 1 GB each."""
    import dask.dataframe
    import numpy
    import pandas

    if not want("shuffle"):
        return
    rows, parts = 1 << 20, 64

    def part(n: int) -> Any:
        rng = numpy.random.default_rng(n)
        columns = {name: rng.random(rows) for name in "xyz"}
        return pandas.DataFrame({"key": rng.integers(0, 1 << 40, rows), **columns})

    def look(frame: Any) -> Any:
        return pandas.DataFrame(
            {"rows": [len(frame)], "keys": [frame.key.sum()], "largest": [frame.memory_usage().sum()]}
        )

    with engine.cluster(memory_limit="1GB") as client:
        client.wait_for_workers(2)
        frame = dask.dataframe.from_map(part, range(parts))
        meta = look(part(0))
        frame.partitions[:2].shuffle("key").map_partitions(look, meta=meta).compute()  # imports

        def job() -> None:
            found = frame.shuffle("key").map_partitions(look, meta=meta).compute()
            assert found.rows.sum() == rows * parts and len(found) == parts

        report("shuffle of 2 GB, workers of 1 GB, s", median(job, 3 if engine.name == "daskfleet" else 1))


def collections(engine: Dask, client: Any, want: Callable[[str], bool]) -> None:
    import dask.array
    import dask.bag
    import dask.dataframe
    import numpy
    import pandas

    if want("transfer"):

        def transfer() -> float:
            first, second = sorted(client.scheduler_info()["workers"])
            data = client.submit(numpy.ones, 32 << 20, "u1", workers=[first], pure=False)
            data.result()
            return timed(lambda: client.submit(len, data, workers=[second], pure=False).result())

        report("worker to worker, MB/s", 33.5 / statistics.median(transfer() for _ in range(5)))
    if want("array"):
        x = dask.array.random.random((4000, 4000), chunks=(250, 250))
        report("(x + x.T).mean(), 256 chunks, s", median((x + x.T).mean().compute, 3))
    if want("dataframe"):
        n = 400_000
        rng = numpy.random.default_rng(0)
        frame = pandas.DataFrame({"key": rng.integers(0, 1000, n), "id": rng.permutation(n), "value": rng.random(n)})
        parts = dask.dataframe.from_pandas(frame, npartitions=16)

        def job() -> None:
            parts.groupby("key").value.mean(split_out=4).compute()
            assert len(parts.set_index("id").map_partitions(len).compute()) > 0

        report("groupby(split_out=4) + set_index of 400k rows, s", median(job, 3))
    n = 100_000 if engine.name == "daskfleet" else 10_000

    def rate(name: str, collection: Any, tasks: int | None = None) -> None:
        """Tasks a second, of those that are left after dask's optimisation; making the graph is part of it."""
        if tasks is None:
            tasks = len(dict(dask.base.collections_to_expr([collection]).optimize().__dask_graph__()))
        seconds = timed(lambda: dask.compute(collection))
        report(f"{name} of 100,000 pieces (distributed: 10,000), tasks/s", tasks / seconds)

    if want("bag"):
        rate("bag", dask.bag.from_sequence(range(n), npartitions=n).map(identity).fold(operator.add, split_every=16))
    if want("delayed"):
        level = [dask.delayed(identity, pure=False)(i) for i in range(n)]
        tasks = n  # counted here: dask's own way through this graph takes time with the square of it
        while len(level) > 1:
            level = [dask.delayed(add)(*level[i : i + 16]) for i in range(0, len(level), 16)]
            tasks += len(level)
        rate("delayed", level[0], tasks)
    if want("graph"):
        rate("array", dask.array.ones(n, chunks=1).map_blocks(identity).sum(split_every=16))
    if want("loaded"):
        report("worker after all that, MB private", private(client))


def idle(engine: Dask) -> None:
    """What workers cost that have run a few tasks and wait for more."""
    import psutil

    with engine.cluster() as client:
        engine.map_gather(client, 100)
        processes = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
        before = [sum(process.cpu_times()[:2]) for process in processes]
        time.sleep(30)  # of which the system counts hundredths of a second
        used = [sum(process.cpu_times()[:2]) - start for process, start in zip(processes, before, strict=True)]
        report("idle worker, % of a core", 100 * max(used) / 30)
        report("idle worker, MB private", private(client))


def private(client: Any) -> float:
    import psutil

    return max(psutil.Process(pid).memory_full_info().uss for pid in client.run(os.getpid).values()) / 1e6


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=["daskfleet", "distributed", "ray", "pool"])
    parser.add_argument("figures", nargs="*")
    arguments = parser.parse_args()
    engines = {"ray": Ray, "pool": Pool}
    figures(
        engines[arguments.engine]() if arguments.engine in engines else Dask(arguments.engine), set(arguments.figures)
    )
