"""Runs dask-kubernetes and daskfleet one after the other on one Kubernetes and prints the table.

usage: python -m tests.benchmarks.kubernetes [--rounds 5] [--peer-rounds 2] [--tries 5]
                                             [--only daskfleet] [--keep]

Both serve the same custom resources, so each is installed for its turn and removed after it. Where the tests would use
a node from source, the benchmark starts one of its own beside it, ``daskfleet-bench``, and takes it down at the end.

dask-kubernetes gets fewer rounds, because one takes a minute and a half, and because on a quick API server every second
of its clusters fails: the operator's handler of the scheduler's Service says ``Running``, its handler of the cluster
says ``Pending`` after that, and the client waits for the former until its deadline. Such rounds are counted and told.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.fresh import NAMESPACE, namespace
from tests.cluster import Cluster, NoKubernetes, find, images, project, tools
from tests.cluster.progress import ClusterError, run, say, step
from tests.cluster.source_node import SourceNode

from . import floor, table
from .peer import install as peer

HERE = Path(__file__).parent
FLOOR_ROUNDS = 3
PEER_SECONDS = 150.0
"""No further round of one of the peer's sides is begun when it is likely to end after so long."""
PEER_OPTIONS = {"resource_timeout": 30}
"""Half of its default, and longer than anything of its that succeeds takes: its failures cost less time."""


@dataclass
class Side:
    """One row of the table: a library with its options."""

    title: str
    library: str
    image: str
    options: dict[str, Any] = field(default_factory=dict)


PEER = (
    Side("dask-kubernetes", "dask_kubernetes", peer.IMAGE, PEER_OPTIONS),
    Side(
        "with port_forward_cluster_ip",
        "dask_kubernetes",
        peer.IMAGE,
        {**PEER_OPTIONS, "port_forward_cluster_ip": True},
    ),
)
OURS = Side("daskfleet", "daskfleet", images.IMAGES[0].tag)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.kubernetes", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="clusters made by daskfleet; each in a new process")
    parser.add_argument("--peer-rounds", type=int, default=2, help="clusters made by each side of dask-kubernetes")
    parser.add_argument("--tries", type=int, default=5, help="times that ten seconds of work wait for a first worker")
    parser.add_argument("--only", choices=["dask-kubernetes", "daskfleet"], help="just one side, for profiling")
    parser.add_argument("--keep", action="store_true", help="leave the benchmark's own node running for the next time")
    arguments = parser.parse_args()
    try:
        cluster, own = _cluster()
        try:
            results = _run(cluster, arguments.rounds, arguments.peer_rounds, arguments.tries, arguments.only)
        finally:
            if own and not arguments.keep:
                with cluster.lock():
                    cluster.down()
    except (ClusterError, NoKubernetes) as error:
        say(str(error))
        return 1
    words = ["python -m tests.benchmarks.kubernetes", *sys.argv[1:]]
    print(table.text(results, " ".join(words) if sys.argv[1:] else "make bench-kubernetes", cluster.description))
    return 0


def _cluster() -> tuple[Cluster, bool]:
    """The cluster to use, and whether it is the benchmark's own."""
    cluster = find()
    own = isinstance(cluster, SourceNode) and "DASKFLEET_NODE" not in os.environ
    if own:
        cluster = SourceNode("daskfleet-bench")
    with cluster.lock():
        cluster.up()
    if own:  # what an interrupted run has left
        _remove_ours(cluster)
        cluster.kubectl("delete", "namespace", NAMESPACE, peer.NAMESPACE, "--ignore-not-found", "--timeout=120s")
    elif _definitions(cluster):
        raise ClusterError(
            "this cluster holds resource definitions of kubernetes.dask.org, and perhaps clusters of somebody's: the "
            "benchmark would delete them. Delete them yourself, or let it use another cluster"
        )
    return cluster, own


def _definitions(cluster: Cluster) -> list[str]:
    found = cluster.kubectl("get", "customresourcedefinitions", "-o", "name").split()
    return [name for name in found if name.endswith(".kubernetes.dask.org")]


def _run(cluster: Cluster, rounds: int, peer_rounds: int, tries: int, only: str | None) -> table.Results:
    results = table.Results()
    if only != "daskfleet":
        try:
            peer.install(cluster)
            for side in PEER:
                failures = results.failures.setdefault(side.title, [])
                results.rounds[side.title] = _rounds(
                    cluster, side, peer.python(), peer_rounds, failures, seconds=PEER_SECONDS
                )
        finally:
            peer.uninstall(cluster)
    if only != "dask-kubernetes":
        with cluster.lock():
            images.provide(cluster)
        try:
            project.apply_definitions(cluster)
            project.start_operator(cluster)
            results.rounds[OURS.title] = _rounds(
                cluster, OURS, Path(sys.executable), rounds, results.failures.setdefault(OURS.title, [])
            )
            results.outstanding = _outstanding(cluster, tries) if tries else []
        finally:
            _remove_ours(cluster)
        with namespace(cluster):
            results.floor = floor.measure(_kubectl(cluster), NAMESPACE, OURS.image, FLOOR_ROUNDS)
    return results


def _rounds(
    cluster: Cluster, side: Side, python: Path, rounds: int, failures: list[str], seconds: float = math.inf
) -> list[dict[str, float]]:
    """Rounds until as many have succeeded, or twice as many have failed; those that fail are told about and counted."""
    found: list[dict[str, float]] = []
    started, longest = time.monotonic(), 0.0
    with step(f"{side.title}: {rounds} rounds"):
        while len(found) < rounds:
            if found and time.monotonic() + longest > started + seconds:
                say(f"{side.title}: {len(found)} of {rounds} rounds, for another one would take too long")
                break
            begun = time.monotonic()
            command = [python, HERE / "measure.py", side.library, "--name=bench", f"--namespace={NAMESPACE}"]
            command += [f"--image={side.image}", f"--options={json.dumps(side.options)}"]
            command += [f"--kubectl={tools.kubectl()}"]
            with namespace(cluster):
                try:
                    said = run(command, env={"KUBECONFIG": str(cluster.kubeconfig)}, timeout=600)
                except ClusterError as error:
                    failures.append(str(error).strip().splitlines()[-1].strip())
                    say(f"{side.title}: failed: {failures[-1]}")
                    if len(failures) >= 2 * rounds:
                        break
                    continue
            longest = max(longest, time.monotonic() - begun)
            found.append(json.loads(said.splitlines()[-1]))
            told = ", ".join(f"{title.strip()} {found[-1][name]:.2f}" for name, title in table.ROWS.items())
            say(f"{side.title}: {told} s; load {os.getloadavg()[0]:.1f}")
    return found


def _outstanding(cluster: Cluster, tries: int) -> list[dict[str, float]]:
    command = [sys.executable, HERE / "outstanding.py", "--name=bench", f"--namespace={NAMESPACE}"]
    command += [f"--image={OURS.image}", f"--kubectl={tools.kubectl()}", f"--tries={tries}"]
    with step(f"ten seconds of work for no workers, {tries} times"), namespace(cluster):
        said = run(command, env={"KUBECONFIG": str(cluster.kubeconfig)}, timeout=60 + 30 * tries)
    found: list[dict[str, float]] = json.loads(said.splitlines()[-1])
    return found


def _remove_ours(cluster: Cluster) -> None:
    with step("removing daskfleet's operator"):
        project.remove_operator(cluster)
        if definitions := _definitions(cluster):
            cluster.kubectl("delete", "--timeout=60s", *definitions)


def _kubectl(cluster: Cluster) -> list[str]:
    return [tools.kubectl(), f"--kubeconfig={cluster.kubeconfig}"]


if __name__ == "__main__":
    sys.exit(main())
