"""Which Kubernetes is used, and how those that cannot run here would be driven."""

import os

import pytest

from tests.cluster import NoKubernetes, docker_runs, find
from tests.cluster.existing import ExistingCluster
from tests.cluster.images import build_command
from tests.cluster.kind import KindCluster, create_command, load_command
from tests.cluster.progress import ClusterError
from tests.cluster.source_node import SourceNode


def test_the_users_own_context_comes_first() -> None:
    cluster = find({"KUBECONFIG_CONTEXT": "staging"}, docker=True)
    assert isinstance(cluster, ExistingCluster)
    assert cluster.context == "staging"


def test_docker_means_kind() -> None:
    assert isinstance(find({}, docker=True), KindCluster)


@pytest.mark.skipif(os.geteuid() != 0 or os.uname().sysname != "Linux", reason="needs root on Linux")
def test_root_without_docker_gets_a_node_from_source() -> None:
    assert isinstance(find({}, docker=False), SourceNode)


def test_neither_docker_nor_root_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoKubernetes, match=r"KUBECONFIG_CONTEXT.*Docker does not run.*needs root"):
        find({}, docker=False)


def test_no_docker_client_means_no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert not docker_runs()


def test_kind_commands() -> None:
    created = create_command("kind", "/tmp/kubeconfig")
    assert created[:5] == ["kind", "create", "cluster", "--name", "daskfleet"]
    assert created[created.index("--kubeconfig") + 1] == "/tmp/kubeconfig"
    assert "--wait" in created
    assert load_command("kind", "daskfleet", ["a:1", "b:1"]) == [
        *("kind", "load", "docker-image", "--name", "daskfleet"),
        *("a:1", "b:1"),
    ]


@pytest.mark.parametrize(
    ("context", "commands"),
    [
        ("minikube", [["minikube", "image", "load", "a:1"]]),
        ("docker-desktop", []),
    ],
)
def test_images_reach_local_clusters(context: str, commands: list[list[str]]) -> None:
    assert ExistingCluster(context).load_commands(["a:1"]) == commands


def test_images_reach_the_users_own_kind_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.cluster.tools.kind", lambda: "kind")
    assert ExistingCluster("kind-mine").load_commands(["a:1"]) == [load_command("kind", "mine", ["a:1"])]


def test_a_remote_cluster_has_to_pull() -> None:
    with pytest.raises(ClusterError, match=r"push a:1.*DASKFLEET_IMAGES=present"):
        ExistingCluster("production").load_commands(["a:1"])


def test_both_builders_build_the_folder_they_are_in() -> None:
    for builder in ("docker", "buildah"):
        command = build_command(builder, ["-f", "images/runtime/Containerfile"])
        assert command[0] == builder
        assert command[-3:] == ["-f", "images/runtime/Containerfile", "."]
