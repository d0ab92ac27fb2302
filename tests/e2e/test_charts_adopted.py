"""A release of the fixed cluster's chart beside an operator: what its Jupyter makes, and how its workers are scaled."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from daskfleet import KubeCluster
from daskfleet.cli.clusters import main as daskfleet_main
from daskfleet.deploy.discovery import list_clusters
from helm_bed import CHARTS, Helm, Jupyter, left_in, port_forward
from operator_bed import Json, Namespace, eventually

CHART = str(CHARTS / "daskfleet")
SMALL = {"requests": {"cpu": "20m", "memory": "128Mi"}}
LABEXTENSION = "7.0.0"  # of dask-labextension, which runs in the release's Jupyter
PANEL = """
import sys
import dask
import daskfleet
daskfleet.as_distributed()  # this image has no distributed
sys.path.append("/opt/labextension")
dask.config.set({
    "labextension.factory": {"module": "daskfleet", "class": "KubeCluster", "args": [], "kwargs": {"name": "panel"}},
    "distributed.dashboard.link": "{protocol}://{host}:{port}/status",  # this server fetches it; browsers get a proxy
})
c.ServerApp.jpserver_extensions = {"dask_labextension": True}
"""
VALUES = {
    "scheduler": {"resources": SMALL},
    "worker": {"replicas": 2, "resources": SMALL, "threads_per_worker": 1},
    "jupyter": {
        "resources": SMALL,
        "extraConfig": PANEL,
        "mounts": {
            "volumes": [{"name": "labextension", "configMap": {"name": "labextension"}}],
            "volumeMounts": [{"name": "labextension", "mountPath": "/opt/labextension/dask_labextension"}],
        },
    },
}
BRISK = {"spec": {"scaleDownDelaySeconds": 1, "cooldownSeconds": 0, "scaleDownPercent": 100}}
slowly = lambda item: time.sleep(0.2) or item  # noqa: E731  a lambda travels whole, pods do not have this module
ADOPTED = "kubernetes.dask.org/adopted-by"


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


def daskfleet_command(*words: str) -> str:
    """What ``daskfleet`` prints."""
    result = CliRunner().invoke(daskfleet_main, words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def labextension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python files of dask-labextension."""
    folder = tmp_path_factory.mktemp("labextension")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    subprocess.run([*pip, "--dest", folder, f"dask-labextension=={LABEXTENSION}"], check=True, timeout=300)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith("dask_labextension/")])
    return folder / "dask_labextension"


@pytest.fixture(scope="module")
def release(
    helm: str, operator_in_cluster: Any, notebook_image: str, module_namespace: str, labextension: Path
) -> Iterator[Release]:
    made = Release(operator_in_cluster, module_namespace)
    made.kubectl("create", "configmap", "labextension", f"--from-file={labextension}")
    made.helm = Helm(helm, operator_in_cluster, module_namespace)
    made.helm("install", "rel", CHART, "--wait", "--timeout=400s", values=VALUES)
    yield made


@pytest.fixture
async def jupyter(release: Release) -> AsyncIterator[Jupyter]:
    """A client of the release's Jupyter."""
    secret = json.loads(release.kubectl("get", "secret", "rel-jupyter", "-o", "json"))
    token = base64.b64decode(secret["data"]["token"]).decode()
    with port_forward(release.cluster, release.name, "service/rel-jupyter", 80) as url:
        async with Jupyter.at(url, token) as jupyter:
            yield jupyter


async def test_dask_labextensions_panel_makes_scales_adapts_and_ends_clusters(
    release: Release, jupyter: Jupyter
) -> None:
    """By the HTTP API of its extension of Jupyter's server, which is what its panel in JupyterLab speaks."""
    path = f"/dask/clusters/{uuid.uuid4()}"

    async def until(look: Callable[[Json], bool]) -> Json:
        async with asyncio.timeout(180):
            while not look(model := await jupyter.ask("GET", path)):
                await asyncio.sleep(0.05)
        return model

    made = await jupyter.ask("PUT", path)
    assert made["name"] == "KubeCluster 1"
    assert made["scheduler_address"] == f"tls://panel-scheduler.{release.name}.svc:8786"
    link = quote(made["dashboard_link"], safe="")
    checked = await jupyter.ask("GET", f"/dask/dashboard-check/{link}")
    assert checked["isActive"] and "/individual-task-stream" in checked["plots"].values()  # the panel's buttons
    await jupyter.ask("PATCH", path, {"workers": 2})
    assert (await until(lambda model: model["workers"] == 2))["cores"] >= 2
    adapted = await jupyter.ask("PATCH", path, {"adapt": {"minimum": 0, "maximum": 3}})
    assert adapted["adapt"] == {"minimum": 0, "maximum": 3}
    eventually(lambda: release.get("daskautoscaler", "panel"), "an autoscaler")
    assert [model["id"] for model in await jupyter.ask("GET", "/dask/clusters/")] == [path.rpartition("/")[2]]
    await jupyter.ask("DELETE", path)
    assert await jupyter.ask("GET", "/dask/clusters/") == []
    assert release.items("daskclusters") == []


STARTING = """
from daskfleet import KubeCluster
try:
    KubeCluster(name="c", image="nosuch/image:1", resource_timeout=20)
except Exception as error:
    print(error)
"""


async def test_a_kernel_shows_pods_their_phases_and_reasons_while_a_cluster_starts(jupyter: Jupyter) -> None:
    [said] = await jupyter.run_notebook("start.ipynb", [STARTING], shown := [])
    assert "'nosuch/image:1' cannot be pulled" in said
    first, *later = [data["text/html"] for data in shown]
    assert "<th>Pod</th><th>Status</th><th>Reason</th>" in first
    assert any(
        re.search("<td>c-scheduler-.*<td>(ErrImagePull|ImagePullBackOff)</td><td>.*nosuch", page) for page in later
    )
    assert later[-1] == ""  # it is taken away when it is over


async def test_what_a_notebook_begins_goes_on_without_it(release: Release, jupyter: Jupyter) -> None:
    cell = "from daskfleet import KubeCluster\nprint(KubeCluster(name='rel').adapt(minimum=1, maximum=4))"
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

        def enough() -> bool:  # on a machine that is busy all may be done before the last of them is there
            return len(cluster.scheduler_info["workers"]) == 4 or all(future.done() for future in futures)

        eventually(enough, "four workers at work", seconds=180)
        kept = client.scatter([[item] for item in range(40)])  # nothing could compute these again
        assert client.gather(futures) == list(range(80))
        futures.clear()
        before = release.workers_there()
        eventually(lambda: len(release.workers_there()) == 1, "one worker")
        assert release.workers_there() <= before  # none was made anew for it
        assert client.gather(kept) == [[item] for item in range(40)]


def test_scale_under_load_moves_what_the_workers_hold(release: Release) -> None:
    with KubeCluster.from_name(f"{release.name}/rel") as cluster, cluster.get_client() as client:
        cluster.scale(4)  # ends adaptive scaling, and is the operator's work all the same
        eventually(lambda: release.replicas() == 4, "four workers")
        cluster.wait_for_workers(4, timeout=180)
        kept = client.scatter([[item] for item in range(40)])
        futures = client.map(slowly, range(40), pure=False)
        cluster.scale(1)
        eventually(lambda: len(release.workers_there()) == 1, "one worker")
        assert client.gather(kept) == [[item] for item in range(40)]
        assert client.gather(futures) == list(range(40))

    def counts() -> tuple[int, int]:
        group = release.get("daskworkergroup", "rel-default")
        return group["spec"]["worker"]["replicas"], group["status"]["replicas"]

    eventually(lambda: counts() == (1, 1), "the status to say so")
    assert not release.get("daskautoscaler", "rel")


def test_an_upgrade_leaves_the_number_alone_until_the_workers_are_given_back(release: Release) -> None:
    release.helm("upgrade", "rel", CHART, values=VALUES)
    assert release.replicas() == 1
    release.kubectl("scale", "daskcluster", "rel", "--replicas=3")
    eventually(lambda: release.replicas() == 3, "three workers")
    before = eventually(lambda: len(found := release.workers_there()) == 3 and found, "three workers' pods")
    assert daskfleet_command("adapt", "rel", "--off") == f"{release.name}/rel is adapted no more\n"
    assert ADOPTED not in (release.worker()["metadata"].get("annotations") or {})
    assert not release.items("daskclusters")
    assert (release.replicas(), release.workers_there()) == (3, before)
    release.helm("upgrade", "rel", CHART, values=VALUES)
    assert release.replicas() == 2


def test_uninstall_takes_the_adoption_along(release: Release) -> None:
    said = daskfleet_command("adapt", f"{release.name}/rel", "--minimum", "1", "--maximum", "2")
    assert said == f"{release.name}/rel adapts: 1 to 2 workers\n"  # and the command is over: the operator does it
    assert release.get("daskautoscaler", "rel")["spec"].items() >= {"minimum": 1, "maximum": 2}.items()
    release.kubectl("delete", "configmap", "labextension")
    release.helm("uninstall", "rel", "--wait", "--timeout=240s")
    release.kubectl("wait", "--for=delete", "pods", "--all", "--timeout=240s")
    eventually(lambda: left_in(release.cluster, release.name) == set(), "nothing left")
