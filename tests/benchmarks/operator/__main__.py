"""Runs the bed's limit, daskfleet's operator and dask-kubernetes' on simulated nodes and prints the table.

usage: python -m tests.benchmarks.operator [--sizes 200 1000] [--rounds 3] [--peer-size 200] [--peer-seconds 120]
                                           [--clusters 100] [--cycles 0] [--keep]

What was tried to come nearer to the limit, by py-spy and by the processes' CPU at 1,000 workers: passes were two thirds
of the operator's 7.5 ms for each worker, up and down, most of it marks of retirement that each pass made anew (12 ms a
pass, now 1.5). Passes that rest, and marks that are made once, left 4.1 ms, beside some 40 of everything else. A pass
that retires 1,000 workers compared each with every other (190 ms, now 1). orjson and uvloop together changed the CPU by
less than the runs differ (2.6 ms up with and without, 2.4 for 2.5 down), for 8 MB less. 96 requests under way in place
of 32 were no quicker. Nor was one request that deletes a whole wave of workers by a label of theirs (500 in 4.8 s, the
script's 500 requests 4.7): the API server takes them one by one there, so where its etcd has a disk to wait for it is
slower. Numbers of workers, written into two statuses four times a second, were 23 requests for 200 workers, each as
dear to the API server as two pods. Once a second, with half as many requests under way, longer rests of passes in a
storm and the token's file read once a minute, a worker cost the API server 18.7 ms until it ran and the operator 2.9,
before 21.0 and 4.0, the script's 15.9, in turns on a busy machine. What a creation costs the API server differed by
less than its runs (2.5 to 6 ms) between an administrator and the ServiceAccount, with and without ownerReferences, with
`fieldValidation=Ignore`, and with answers in protobuf or as PartialObjectMetadata. By py-spy, before that, half of what
the operator did were requests by aiohttp and TLS, JSON and passes a seventh each, kopf a twentieth.

What grows over clusters made and deleted, by the collector's counts and the allocator's: the hashes of the uids of what
is gone, which a late answer must not bring back, 80 bytes each and 6,000 at most. All else that is alive stays as it
was; connections, each with a buffer of 256 KB, come and go between smaller things, so what is free is given back
(`MALLOC_TRIM_THRESHOLD_` in the image).

Each operator runs as its pod on the node from source, with that node's two cores shared by all of Kubernetes. The bed's
limit is a script that posts, and deletes, the same pods and does nothing else. dask-kubernetes' cluster is deleted,
where ours is scaled to none: it asks the scheduler whom to take away, and that knows no simulated worker.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tests.benchmarks import fresh
from tests.benchmarks.kubernetes.peer import install as peer
from tests.benchmarks.kubernetes.table import machine, versions
from tests.cluster import NoKubernetes, find, images, project
from tests.cluster.progress import ClusterError, say, step
from tests.cluster.source_node import SourceNode

from . import bed
from .bed import Scenario, Watched, cpu_of_api_server

OURS = images.IMAGES[0].tag
Row = dict[str, Any]
CYCLED = 50  # clusters at a time


@dataclass(frozen=True)
class Spent:
    """So far: seconds of CPU, and requests of the operator."""

    api_server: float = 0.0
    cpu: float = 0.0
    requests: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.operator", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[200, 1000], help="workers of one DaskCluster")
    parser.add_argument("--rounds", type=int, default=3, help="times that the bed's limit and ours take turns")
    parser.add_argument("--peer-size", type=int, default=200, help="workers for dask-kubernetes; 0 leaves it out")
    parser.add_argument("--peer-seconds", type=float, default=120, help="how long each of its phases may take")
    parser.add_argument("--clusters", type=int, default=100, help="clusters of ten workers at once; 0 leaves them out")
    parser.add_argument("--cycles", type=int, default=0, help="clusters made and deleted, to see what grows")
    parser.add_argument("--keep", action="store_true", help="leave the benchmark's own node running for the next time")
    arguments = parser.parse_args()
    try:
        with _node(arguments.keep) as node, bed.simulated_nodes(node):
            rows = _run(node, arguments)
    except (ClusterError, NoKubernetes) as error:
        say(str(error))
        return 1
    print(_text(rows))
    if grown := _growth(rows):
        print(grown)
    print(f"\ncommand: {' '.join(['python -m tests.benchmarks.operator', *sys.argv[1:]])}")
    print(f"machine: {machine()}; {node.description}, {bed.NODES} nodes simulated by KWOK\nversions: {versions()}")
    return 0


@contextmanager
def _node(keep: bool) -> Iterator[SourceNode]:
    found = find()
    if not isinstance(found, SourceNode):
        raise ClusterError("this benchmark reads processes and adds nodes: it needs the node from source")
    own = "DASKFLEET_NODE" not in os.environ
    node = SourceNode("daskfleet-bench") if own else found
    with node.lock():
        node.up()
    try:
        yield node
    finally:
        if own and not keep:
            with node.lock():
                node.down()


def _run(node: SourceNode, arguments: argparse.Namespace) -> list[Row]:
    with node.lock():
        images.provide(node)
    project.apply_definitions(node)
    project.start_operator(node)
    try:
        ours = Watched(node, project.NAMESPACE, "daskfleet-operator")
        ours.count()
        rows = _turns(node, ours, arguments.sizes, arguments.rounds)
        if arguments.clusters:
            rows.append(_measure(node, "daskfleet", ours, "many", OURS, 10, clusters=arguments.clusters))
        if arguments.cycles:
            rows += _cycles(node, ours, arguments.cycles)
    finally:
        project.remove_operator(node)
        definitions = node.kubectl("get", "customresourcedefinitions", "-o", "name").split()
        if mine := [name for name in definitions if name.endswith(".kubernetes.dask.org")]:
            node.kubectl("delete", "--timeout=60s", *mine)
    if arguments.peer_size:
        try:
            rows.append(_peer(node, arguments.peer_size, arguments.peer_seconds))
        finally:
            peer.uninstall(node)
    return rows


def _turns(node: SourceNode, ours: Watched, sizes: list[int], rounds: int) -> list[Row]:
    """Medians of the bed's limit and of ours. Each comes first every other time, and both on the same warm API server:
    it spends half as much again on a pod once it has seen some thousands."""
    measured: dict[tuple[str, str], list[Row]] = {}
    for number in range(rounds):
        for size in sizes:
            sides = [("the bed's limit", None, "bare"), ("daskfleet", ours, "cluster")]
            for side, watched, what in sides[:: -1 if number % 2 else 1]:
                with _operator(node, running=watched is not None):
                    row = _measure(node, side, watched, what, OURS, size)
                measured.setdefault((side, row["title"]), []).append(row)
    return [rows[0] | _medians(rows) for rows in measured.values()]


@contextmanager
def _operator(node: SourceNode, running: bool) -> Iterator[None]:
    """Pods of the bed's script carry the labels that our operator watches: it is not there meanwhile."""
    if not running:
        project.pause_operator(node)
    yield
    if not running:
        project.start_operator(node)


def _medians(rows: list[Row]) -> Row:
    numbers = (name for name, value in rows[0].items() if isinstance(value, float))
    return {name: statistics.median(row[name] for row in rows) for name in numbers}


def _peer(node: SourceNode, size: int, seconds: float) -> Row:
    """Its row, or that it has none: what was measured before is shown all the same."""
    side = "dask-kubernetes"
    try:
        peer.install(node)
        theirs = Watched(node, peer.NAMESPACE, peer.NAME)
        theirs.count()
        return _measure(node, side, theirs, "deleted", peer.IMAGE, size, deadline=seconds)
    except ClusterError as error:
        say(f"{side}: {error}")
        return {"side": side, "title": f"{size} workers", "failed": str(error)}


def _measure(
    node: SourceNode, side: str, watched: Watched | None, what: str, image: str, workers: int, **more: Any
) -> Row:
    """One scenario in a namespace of its own: seconds, requests, memory and CPU. `more` is `_scenario`'s."""
    clusters = more.get("clusters", 1)
    title = f"{clusters} clusters of {workers}" if clusters > 1 else f"{workers} workers"
    with step(f"{side}: {title}"), _namespace(node) as name:
        row = _scenario(node, name, watched, what, image, workers, **more)
    say(f"{side}: {title}: {_told(row)}; load {os.getloadavg()[0]:.1f}")
    return {"side": side, "title": title} | row


def _namespace(node: SourceNode) -> AbstractContextManager[str]:
    """One by a new name. For half a minute after a namespace is deleted the API server looks it up in etcd at each
    write to one of that name: a quarter of a pod's cost, and it falls on whichever side comes soonest."""
    return fresh.namespace(node, f"{fresh.NAMESPACE}-{secrets.token_hex(3)}")


def _scenario(
    node: SourceNode,
    namespace: str,
    watched: Watched | None,
    what: str,
    image: str,
    workers: int,
    clusters: int = 1,
    first: int = 0,
    deadline: float | None = None,
) -> Row:
    total = workers * clusters
    row: Row = {"total": total}
    words = [what, f"--image={image}", f"--workers={workers}", f"--clusters={clusters}", f"--first={first}"]
    words += [f"--deadline={deadline}"] if deadline else []
    before = Spent()
    for found in Scenario(node, namespace, *words).phases():
        row |= found
        phase, memory, after = found["phase"], 0.0, Spent(cpu_of_api_server(node))
        if watched is not None:
            memory, cpu = watched.process()
            after = replace(after, cpu=cpu, requests=watched.requests())
        if phase != "ready":
            row[f"API server {phase}"] = (after.api_server - before.api_server) / total * 1000
            if watched is not None:
                row[f"memory {phase}"] = memory
                row[f"cpu {phase}"] = (after.cpu - before.cpu) / total * 1000
                row[f"requests {phase}"] = (after.requests - before.requests) / total
        before = replace(after, api_server=cpu_of_api_server(node))  # the questions above cost it something, too
    return row


def _cycles(node: SourceNode, ours: Watched, cycles: int) -> list[Row]:
    """Clusters of two workers, some at a time, until so many have come and gone."""
    rows = []
    with step(f"daskfleet: {cycles} clusters that come and go"), _namespace(node) as name:
        for first in range(0, cycles, CYCLED):
            row = _scenario(node, name, ours, "many", OURS, 2, clusters=CYCLED, first=first)
            cycled = first + CYCLED
            say(f"after {cycled} clusters: {row['memory down']:.1f} MB")
            rows.append({"side": "daskfleet", "title": f"after {cycled} clusters", "cycled": cycled} | row)
    return rows


def _growth(rows: list[Row]) -> str:
    """What grows over clusters made and deleted: the slope of the memory, the first third of them left out."""
    cycled = [(row["cycled"], row["memory down"]) for row in rows if "cycled" in row]
    settled = cycled[len(cycled) // 3 :]
    if len(settled) < 3:
        return ""
    slope, _ = statistics.linear_regression(*zip(*settled, strict=True))
    (first, early), (last, late) = cycled[0], cycled[-1]
    growth = f"{slope * 1000:+.1f} MB for 1,000 more, by the last two thirds"
    return f"resident after {first} clusters {early:.1f} MB, after {last} {late:.1f} MB; {growth}"


def _told(row: Row) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in row.items() if isinstance(value, float))


def _text(rows: list[Row]) -> str:
    """The table; ratios are to the bed's limit of the same size, requests and CPU (of the operator, of the API
    server) for each worker."""
    limits = {row["title"]: row for row in rows if row["side"] == "the bed's limit"}
    heads = ["", "made/s", "Running/s", "of limit", "to 0, s", "x limit", "requests up", "down"]
    heads += ["CPU ms up", "down", "API's up", "down", "RSS MB"]
    lines = [heads[0].ljust(36) + "".join(head.rjust(12) for head in heads[1:])]
    for row in rows:
        if "cycled" in row:
            continue
        if "failed" in row:
            lines.append(f"{row['side']}, {row['title']}".ljust(36) + f"    not done: {row['failed']}")
            continue
        limit = limits.get(row["title"])
        cells = [f"{row['total'] / row['made']:.0f}", f"{row['total'] / row['running']:.1f}"]
        cells.append(f"{limit['running'] / row['running']:.2f}" if limit else "")
        cells.append(f"{row['gone']:.1f}")
        cells.append(f"{row['gone'] / limit['gone']:.2f}" if limit else "")
        told = [f"{what} {phase}" for what in ("requests", "cpu", "API server") for phase in ("up", "down")]
        cells += [f"{row[name]:.2f}" if name in row else "" for name in told]
        cells.append(f"{row['memory up']:.0f}" if "memory up" in row else "")
        lines.append(f"{row['side']}, {row['title']}".ljust(36) + "".join(cell.rjust(12) for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
