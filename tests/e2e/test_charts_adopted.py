"""A release of the fixed cluster's chart whose workers an operator scales: from a notebook, and when that is gone."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daskfleet import KubeCluster
from daskfleet.deploy.discovery import list_clusters
from helm_bed import CHARTS, Helm, Jupyter, left_in, port_forward

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from operator_bed import Json, Namespace, eventually

CHART = str(CHARTS / "daskfleet")
SMALL = {"requests": {"cpu": "20m", "memory": "128Mi"}}
VALUES = {
    "scheduler": {"resources": SMALL},
    "worker": {"replicas": 2, "resources": SMALL, "threads_per_worker": 1},
    "jupyter": {"resources": SMALL},
}
BRISK = {"spec": {"scaleDownDelaySeconds": 1, "cooldownSeconds": 0, "scaleDownPercent": 100}}
slowly = lambda item: time.sleep(0.2) or item  # noqa: E731  a lambda travels whole, pods do not have this module
ADOPTED = "kubernetes.dask.org/adopted-by"

pytestmark = pytest.mark.timeout(240)


class Release(Namespace):
    """The release ``rel``."""

    helm: Helm

    def worker(self) -> Json:
        return self.get("deployment", "rel-worker")

    def replicas(self) -> int:
        return int(self.worker()["spec"]["replicas"])

    def workers_there(self) -> set[str]:
        pods = self.items("pods", "release=rel,component=worker")
        return {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


@pytest.fixture(scope="module")
def release(helm: str, operator_in_cluster: Any, notebook_image: str, module_namespace: str) -> Iterator[Release]:
    made = Release(operator_in_cluster, module_namespace)
    made.helm = Helm(helm, operator_in_cluster, module_namespace)
    made.helm("install", "rel", CHART, "--wait", "--timeout=150s", values=VALUES)
    yield made


async def test_what_a_notebook_begins_goes_on_without_it(release: Release) -> None:
    secret = json.loads(release.kubectl("get", "secret", "rel-jupyter", "-o", "json"))
    token = base64.b64decode(secret["data"]["token"]).decode()
    cell = "from daskfleet import KubeCluster\nprint(KubeCluster(name='rel').adapt(minimum=1, maximum=4))"
    with port_forward(release.cluster, release.name, "service/rel-jupyter", 80) as url:
        async with Jupyter.at(url, token) as jupyter:
            assert await jupyter.run_notebook("adapt.ipynb", [cell]) == ["None\n"]  # no Adaptive: not the session's
    release.kubectl("patch", "daskautoscaler", "rel", "--type=merge", "-p", json.dumps(BRISK))
    adopted = release.worker()
    assert adopted["metadata"]["annotations"][ADOPTED] == "rel"
    for name in ("rel-worker", "rel-scheduler"):
        assert "ownerReferences" not in release.get("deployment", name)["metadata"]
    eventually(lambda: release.replicas() == 1, "one worker, as nothing is to do")
    assert [found.made_by for found in list_clusters(namespace=release.name)] == ["Helm"]  # one, not two


def test_it_follows_the_load_and_loses_nothing(release: Release) -> None:
    with KubeCluster.from_name(f"{release.name}/rel") as cluster, cluster.get_client() as client:
        futures = client.map(slowly, range(80), pure=False)
        eventually(lambda: release.replicas() == 4, "four workers")
        cluster.wait_for_workers(4, timeout=60)
        kept = client.scatter([[item] for item in range(40)])  # nothing could compute these again
        assert client.gather(futures) == list(range(80))
        del futures
        before = release.workers_there()
        eventually(lambda: len(release.workers_there()) == 1, "one worker")
        assert release.workers_there() < before  # none was made anew for it
        assert client.gather(kept) == [[item] for item in range(40)]


def test_scale_under_load_moves_what_the_workers_hold(release: Release) -> None:
    with KubeCluster.from_name(f"{release.name}/rel") as cluster, cluster.get_client() as client:
        cluster.scale(4)  # ends adaptive scaling, and is the operator's work all the same
        eventually(lambda: release.replicas() == 4, "four workers")
        cluster.wait_for_workers(4, timeout=60)
        kept = client.scatter([[item] for item in range(40)])
        futures = client.map(slowly, range(40), pure=False)
        cluster.scale(1)
        eventually(lambda: len(release.workers_there()) == 1, "one worker")
        assert client.gather(kept) == [[item] for item in range(40)]
        assert client.gather(futures) == list(range(40))
    group = release.get("daskworkergroup", "rel-default")
    assert (group["spec"]["worker"]["replicas"], group["status"]["replicas"]) == (1, 1)
    assert not release.get("daskautoscaler", "rel")


def test_an_upgrade_leaves_the_number_alone_until_the_workers_are_given_back(release: Release) -> None:
    release.helm("upgrade", "rel", CHART, values=VALUES)
    assert release.replicas() == 1
    release.kubectl("scale", "daskcluster", "rel", "--replicas=3")
    eventually(lambda: release.replicas() == 3, "three workers")
    before = eventually(lambda: len(found := release.workers_there()) == 3 and found, "three workers' pods")
    with KubeCluster.from_name(f"{release.name}/rel") as cluster:
        cluster.adapt(enabled=False)
    assert ADOPTED not in (release.worker()["metadata"].get("annotations") or {})
    assert not release.items("daskclusters")
    assert (release.replicas(), release.workers_there()) == (3, before)
    release.helm("upgrade", "rel", CHART, values=VALUES)
    assert release.replicas() == 2


def test_uninstall_takes_the_adoption_along(release: Release) -> None:
    with KubeCluster.from_name(f"{release.name}/rel") as cluster:
        cluster.adapt(minimum=1, maximum=2)
    release.helm("uninstall", "rel", "--wait", "--timeout=90s")
    release.kubectl("wait", "--for=delete", "pods", "--all", "--timeout=90s")
    eventually(lambda: left_in(release.cluster, release.name) == set(), "nothing left")
