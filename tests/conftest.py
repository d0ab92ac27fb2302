"""A Kubernetes for the tests that need one; ``tests/cluster`` says which.

Starting a cluster and building images takes minutes the first time, so it happens just before the first test that asks
for it, outside of any test's time limit and with its progress on the terminal.

``make test`` runs three processes (pytest-xdist), as most tests wait more than they compute. The tests on Kubernetes
are two groups, those with the operator in the cluster and those that want none there, and each is for one process. On a
node from source each has a node of its own; a Kubernetes that we did not make is one, so its tests are one group there.
The second group takes as long as the first because it ends with some that want the operator after all.
The other tests are for whichever process is free, so they run while the node and the images are built.

A machine on which Python starts in three times its usual time runs two processes and one node: a second one, though
idle, would take half of it, and what is waited for would not come in time. With ``DASKFLEET_TESTS_END`` (seconds since
the epoch) no test begins later than that; those not run are skipped, and the summary says how many.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cluster import Cluster, NoKubernetes, find, images, project, tools
from tests.cluster.progress import ClusterError
from tests.cluster.reader import path_of, reader
from tests.cluster.source_node import SourceNode
from tests.eventual import eventually

CLUSTER = pytest.StashKey[Cluster | str]()
"""The cluster, or the reason why there is none."""
HELM = pytest.StashKey[str | ClusterError]()
SECOND = pytest.StashKey[bool]()
"""Whether the cluster is a node beside the one that ``make kubernetes`` starts."""
REQUIRED = os.environ.get("DASKFLEET_REQUIRE_KUBERNETES") == "1"
GROUP_WITH_OPERATOR, GROUP_WITHOUT = "operator", "kubernetes"
END = float(os.environ.get("DASKFLEET_TESTS_END", "inf"))
SLOW = 0.2
"""Seconds for Python to start that are too many for a second node."""
AT_THE_END = ("test_kubecluster_dask", "test_operator_dask_kubernetes")
"""Modules on upstream's engine, which want the operator, and are the last of the group without it."""


# Whether a test passes is not to depend on how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None and session.config.getoption("numprocesses"):
        reporter.showfspath = False  # as xdist has it of pytest's own reporter, which instafail takes the place of
    # A shell that runs a command in the background has it ignore Ctrl-C, and so would every process of the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """How many processes: three, or two on a slow machine."""
    # A new process touches memory that nobody had, which is what costs a slow machine most; arithmetic may be as usual.
    begun = time.monotonic()
    for _ in range(5):
        subprocess.run([sys.executable, "-c", "import asyncio"], check=True)
    return 2 if time.monotonic() - begun > 5 * SLOW else 3


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests that want the operator to the end, as it stays once it is there and others want none."""
    items.sort(key=lambda item: "operator_in_cluster" in _fixtures(item))
    two = _nodes_of_ones_own()
    for item in items:
        if "kubernetes_api" in _fixtures(item):
            # The notebook's image, most of a gigabyte, is loaded onto one node alone.
            wants = not {"operator_in_cluster", "notebook_image"}.isdisjoint(_fixtures(item))
            first = not two or (wants and item.path.stem not in AT_THE_END)
            item.add_marker(pytest.mark.xdist_group(GROUP_WITH_OPERATOR if first else GROUP_WITHOUT))


def _fixtures(item: pytest.Item) -> frozenset[str]:
    return frozenset(getattr(item, "fixturenames", ()))


def _group(item: pytest.Item) -> str | None:
    mark = item.get_closest_marker("xdist_group")
    return mark.args[0] if mark else None


def _nodes_of_ones_own() -> bool:
    """Whether each of the two groups runs in a process of its own, on a node of its own."""
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) < 3:
        return False
    try:
        return isinstance(find(), SourceNode)
    except NoKubernetes:
        return False


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Provide what the session's later fixtures hand out, before the time limit of the first test begins."""
    if time.time() > END:
        item.add_marker(pytest.mark.skip("not run: the time for this run was up"))
        return (yield)
    wanted, stash = _fixtures(item), item.config.stash
    helm, cluster = "helm" in wanted and HELM not in stash, "kubernetes_api" in wanted and CLUSTER not in stash
    if helm or cluster:
        with item.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            if helm:
                cluster_tests = any("kubernetes_api" in _fixtures(other) for other in item.session.items)
                stash[HELM] = _helm(build=REQUIRED or cluster_tests)
            if cluster:
                group = [_fixtures(other) for other in item.session.items if _group(other) == _group(item)]
                stash[SECOND] = _group(item) == GROUP_WITHOUT
                stash[CLUSTER] = _cluster(stash[SECOND], frozenset().union(*group))
    result = yield
    if stash.get(SECOND, False) and _group(item) and not (nextitem and _group(nextitem)):
        _take_down(stash[CLUSTER])  # before the end of the session, which tests without Kubernetes may go on for
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure that the operator may have to do with comes what has become of it."""
    report = yield
    cluster = item.config.stash.get(CLUSTER, "")
    if report.failed and isinstance(cluster, Cluster) and "operator_in_cluster" in _fixtures(item):
        report.sections.append(("the operator", project.operator_story(cluster)))
    return report


def _helm(build: bool) -> str | ClusterError:
    try:
        return tools.helm(build=build)
    except ClusterError as error:
        return error


def _cluster(second: bool, wanted: frozenset[str]) -> Cluster | str:
    """The cluster, running and with what these fixtures stand for; or the reason why there is none."""
    if second:
        os.environ["DASKFLEET_NODE"] = os.environ.get("DASKFLEET_NODE", "daskfleet-node") + "-2"
    try:
        cluster = find()
        with cluster.lock():
            cluster.up()
    except (NoKubernetes, ClusterError) as error:
        return str(error)
    try:
        with cluster.lock():
            project.apply_definitions(cluster)
            if "cluster_with_images" in wanted:
                images.provide(cluster, *([images.NOTEBOOK] if "notebook_image" in wanted else []))
    except ClusterError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    return cluster


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
    if request.config.stash[SECOND]:
        _take_down(cluster)


def _take_down(cluster: Cluster | str) -> None:
    if isinstance(cluster, Cluster):
        with cluster.lock():
            cluster.down()


@pytest.fixture(scope="session")
def cluster_with_images(kubernetes_api: Cluster) -> Cluster:
    """The same cluster, with this working tree's images on it."""
    return kubernetes_api


@pytest.fixture(scope="session")
def notebook_image(cluster_with_images: Cluster) -> str:
    """The image with JupyterLab, built and on the cluster where a test asks for it."""
    return images.NOTEBOOK.tag


@pytest.fixture(scope="session")
def operator_in_cluster(request: pytest.FixtureRequest, cluster_with_images: Cluster) -> Iterator[Cluster]:
    """The same cluster, with the operator running in it from its own image."""
    project.start_operator(cluster_with_images)
    yield cluster_with_images
    if not request.config.stash[SECOND]:
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
    api = reader(cluster.kubeconfig)
    status, said = api.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    assert status == 201, said
    # Pods are refused until the controllers have made the namespace's account.
    account = path_of(name, "serviceaccount") + "/default"
    eventually(lambda: api.get(account)[0] == 200, 120, lambda: f"no service account in the new namespace {name}")
    yield name
    status, said = api.ask("DELETE", f"/api/v1/namespaces/{name}")
    assert status in (200, 202), said
