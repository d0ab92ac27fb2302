"""A Kubernetes for the tests that need one; ``tests/cluster`` says which.

Starting a cluster and building images takes minutes the first time, so it happens once all tests are collected, outside
of any test's time limit and with its progress on the terminal, and only when a collected test asks for it.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cluster import Cluster, NoKubernetes, find, images, project, tools
from tests.cluster.progress import ClusterError

CLUSTER = pytest.StashKey[Cluster | str]()
"""The cluster, or the reason why there is none."""
HELM = pytest.StashKey[str | ClusterError]()
REQUIRED = os.environ.get("DASKFLEET_REQUIRE_KUBERNETES") == "1"


def pytest_sessionstart() -> None:
    # A shell that runs a command in the background has it ignore Ctrl-C, and so would every process of the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests that want the operator to the end, as it stays once it is there and others want none."""
    items.sort(key=lambda item: "operator_in_cluster" in getattr(item, "fixturenames", ()))


def pytest_collection_finish(session: pytest.Session) -> None:
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    if "helm" in wanted:
        with capture.global_and_fixture_disabled():
            try:
                session.config.stash[HELM] = tools.helm(build=REQUIRED or "kubernetes_api" in wanted)
            except ClusterError as error:
                session.config.stash[HELM] = error
    if "kubernetes_api" not in wanted:
        return
    with capture.global_and_fixture_disabled():
        try:
            cluster = find()
            with cluster.lock():
                cluster.up()
        except (NoKubernetes, ClusterError) as error:
            session.config.stash[CLUSTER] = str(error)
            return
        try:
            with cluster.lock():
                project.apply_definitions(cluster)
                if "cluster_with_images" in wanted:
                    images.provide(cluster, *([images.NOTEBOOK] if "notebook_image" in wanted else []))
        except ClusterError as error:
            raise pytest.UsageError(str(error)) from error
        session.config.stash[CLUSTER] = cluster


@pytest.fixture(scope="session")
def helm(request: pytest.FixtureRequest) -> str:
    """The path of Helm. For tests without Kubernetes it is not built, as that takes minutes: they are skipped."""
    found = request.config.stash[HELM]
    if isinstance(found, ClusterError):
        (pytest.fail if REQUIRED else pytest.skip)(str(found))
    return found


@pytest.fixture(scope="session")
def kubernetes_api(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A running Kubernetes with our resource definitions and without an operator; ``.kubeconfig``, ``.kubectl(...)``.

    An operator that was left there, by the demo for instance, rests until the end.
    """
    cluster = request.config.stash[CLUSTER]
    if isinstance(cluster, str):
        (pytest.fail if REQUIRED else pytest.skip)(cluster)
    left = project.operator_runs(cluster)
    if left:
        project.pause_operator(cluster)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        yield cluster
    if left:
        project.start_operator(cluster)


@pytest.fixture(scope="session")
def cluster_with_images(kubernetes_api: Cluster) -> Cluster:
    """The same cluster, with this working tree's images on it."""
    return kubernetes_api


@pytest.fixture(scope="session")
def notebook_image(cluster_with_images: Cluster) -> str:
    """The image with JupyterLab, built and on the cluster where a test asks for it."""
    return images.NOTEBOOK.tag


@pytest.fixture(scope="session")
def operator_in_cluster(cluster_with_images: Cluster) -> Iterator[Cluster]:
    """The same cluster, with the operator running in it from its own image."""
    project.start_operator(cluster_with_images)
    yield cluster_with_images
    project.remove_operator(cluster_with_images)


@pytest.fixture
def namespace(kubernetes_api: Cluster) -> Iterator[str]:
    """A fresh namespace for one test."""
    yield from _namespace(kubernetes_api)


@pytest.fixture(scope="module")
def module_namespace(kubernetes_api: Cluster) -> Iterator[str]:
    """A fresh namespace for the tests of one module."""
    yield from _namespace(kubernetes_api)


def _namespace(cluster: Cluster) -> Iterator[str]:
    name = f"test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    # Pods are refused until the controllers have made the namespace's account.
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
