"""Kubernetes in Docker, by kind."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from . import tools
from .base import Cluster
from .progress import run, step

NAME = "daskfleet"
CONTROL_PLANE = f"{NAME}-control-plane"


class KindCluster(Cluster):
    """A kind cluster named ``daskfleet``."""

    description = "kind, in Docker"
    builder = "docker"

    def __init__(self) -> None:
        self.kubeconfig = tools.CACHE / "kind" / "kubeconfig"

    def ready(self) -> bool:
        return NAME in run([tools.kind(), "get", "clusters"]).split() and self.answers()

    def up(self) -> None:
        if self.ready():
            return
        self.down()
        with step("creating a kind cluster"):
            self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
            run(create_command(tools.kind(), str(self.kubeconfig)), timeout=600)

    def load(self, images: Sequence[str]) -> None:
        run(load_command(tools.kind(), NAME, images), timeout=600)

    def has(self, image: str, identity: str) -> bool:
        # containerd's own id of an image is that of its configuration, as Docker's is (with its classic image store).
        command = [
            "docker",
            "exec",
            CONTROL_PLANE,
            "crictl",
            "inspecti",
            "-o",
            "go-template",
            "--template",
            "{{.status.id}}",
        ]
        said = subprocess.run([*command, image], capture_output=True, text=True, check=False)
        return said.returncode == 0 and said.stdout.strip() == identity

    def execute(self, command: Sequence[str]) -> int:
        return subprocess.run(["docker", "exec", CONTROL_PLANE, *command], check=False).returncode

    def down(self) -> None:
        run([tools.kind(), "delete", "cluster", "--name", NAME, "--kubeconfig", str(self.kubeconfig)], timeout=120)
        self.kubeconfig.unlink(missing_ok=True)


def create_command(kind: str, kubeconfig: str) -> list[str]:
    """How the cluster is created, ready for pods when the command ends."""
    return [kind, "create", "cluster", "--name", NAME, "--kubeconfig", kubeconfig, "--wait", "180s"]


def load_command(kind: str, name: str, images: Sequence[str]) -> list[str]:
    """How images that Docker holds are brought onto the nodes of the kind cluster ``name``."""
    return [kind, "load", "docker-image", "--name", name, *images]
