"""The images and the cluster do what the tests and the demo build on."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, images
from tests.cluster.machine import KERNEL_SETTINGS
from tests.cluster.node_config import PAUSE
from tests.cluster.source_node import SourceNode
from tests.eventual import eventually


def test_images_that_are_there_are_neither_built_nor_loaded_again(
    cluster_with_images: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    with cluster_with_images.lock():
        images.provide(cluster_with_images)
        capsys.readouterr()
        images.provide(cluster_with_images)
        assert capsys.readouterr().err == ""
    for image in images.IMAGES:
        found = images.inspect(image.tag, cluster_with_images.builder)
        assert found is not None
        assert cluster_with_images.has(image.tag, found["id"])
        assert not cluster_with_images.has(image.tag, "sha256:another")


def test_a_runtime_pod(cluster_with_images: Cluster, namespace: str) -> None:
    """It is nobody special, can write where programs do, has the commands, and finds services by name."""
    script = """
import json, os, pathlib, shutil, socket, sys
for folder in (pathlib.Path.home(), pathlib.Path("."), pathlib.Path("/tmp")):
    (folder / "written").write_text("")
import dask.array, dask.dataframe, daskfleet, kubernetes, pyarrow
print(json.dumps({
    "uid": os.getuid(),
    "python": sys.version_info[:2],
    "commands": [bool(shutil.which(name)) for name in ("dask-scheduler", "dask-worker", "dask")],
    "api": socket.gethostbyname("kubernetes.default.svc.cluster.local"),
}))
"""
    said = _run_pod(cluster_with_images, namespace, images.IMAGES[0].tag, script)
    assert said["uid"] != 0
    assert ".".join(map(str, said["python"])) == images.environment()[0]
    assert said["commands"] == [True, True, True]
    assert said["api"]


def test_an_operator_pod_has_no_kubernetes_package(cluster_with_images: Cluster, namespace: str) -> None:
    script = """
import importlib.util, json, os
print(json.dumps({
    "uid": os.getuid(),
    "found": [name for name in ("kopf", "daskfleet_operator", "kubernetes") if importlib.util.find_spec(name)],
}))
"""
    said = _run_pod(cluster_with_images, namespace, images.IMAGES[1].tag, script)
    assert said["uid"] != 0
    assert said["found"] == ["kopf", "daskfleet_operator"]


def _run_pod(cluster: Cluster, namespace: str, image: str, script: str) -> dict[str, object]:
    container = {"name": "main", "image": image, "command": ["python", "-c", script]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "trial"},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(pod))

    def ended() -> str:
        phase = cluster.kubectl("get", "-n", namespace, "pod", "trial", "-o", "jsonpath={.status.phase}")
        return phase if phase in ("Succeeded", "Failed") else ""

    phase = eventually(ended, 240, lambda: cluster.kubectl("describe", "-n", namespace, "pod", "trial"))
    log = cluster.kubectl("logs", "-n", namespace, "trial")
    assert phase == "Succeeded", log
    return dict(json.loads(log.strip().splitlines()[-1]))


@pytest.fixture
def second_node(cluster_with_images: Cluster) -> Iterator[SourceNode]:
    if not isinstance(cluster_with_images, SourceNode):
        pytest.skip(f"the cluster is {cluster_with_images.description}")
    node = SourceNode("daskfleet-trial", port=16443)
    yield node
    node.purge()


def test_a_node_comes_up_twice_and_leaves_nothing_behind(second_node: SourceNode) -> None:
    settings = [(Path("/proc/sys") / name).read_text() for name in KERNEL_SETTINGS]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "trial"},
        "spec": {"containers": [{"name": "main", "image": PAUSE}]},
    }
    for _ in range(2):
        second_node.up()
        assert second_node.ready()
        second_node.kubectl("apply", "-f", "-", input=json.dumps(pod))
        second_node.kubectl("wait", "--for=condition=Ready", "pod/trial", "--timeout=240s")
        assert _traces(second_node.name)
        second_node.down()
        assert not second_node.ready()
        assert _traces(second_node.name) == []
    assert [(Path("/proc/sys") / name).read_text() for name in KERNEL_SETTINGS] == settings


def _traces(name: str) -> list[str]:
    """Processes, mounts, folders and control groups that belong to a node."""
    found = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if name in line]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if name in command and int(process.parent.name) != os.getpid():
            found.append(command)
    for folder in ("/run", "/run/netns", "/sys/fs/cgroup", "/var/lib/cni/results", "/var/log/containers"):
        found += map(str, (*Path(folder).glob(f"*{name}*"), *Path(folder).glob(f"*/{name}")))
    return found
