"""A cluster that the user has: the context of their kubeconfig that ``KUBECONFIG_CONTEXT`` names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from . import tools
from .base import Cluster
from .kind import load_command
from .progress import ClusterError, run

SHARES_DOCKERS_IMAGES = ("docker-desktop", "orbstack", "rancher-desktop")


class ExistingCluster(Cluster):
    """The user's own cluster. It is neither started nor taken down, and their other contexts are never touched.

    ``down`` takes out the operator and nothing else: to delete our resource definitions would delete every cluster that
    the user made by them.
    """

    builder = "docker"

    def __init__(self, context: str) -> None:
        self.context = context
        self.description = f"the context {context} of your kubeconfig"
        self.kubeconfig = tools.CACHE / "context" / f"{context.replace('/', '_')}.kubeconfig"

    def ready(self) -> bool:
        return self.kubeconfig.exists() and self.answers()

    def up(self) -> None:
        # A copy with this one context, so that whatever reads it cannot reach another cluster.
        view = ["config", "view", "--minify", "--flatten", "--context", self.context]
        config = run(
            [tools.kubectl(), *view], hint=f"KUBECONFIG_CONTEXT={self.context} must name one of your contexts."
        )
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.kubeconfig, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(config)
        self.kubectl("get", "--raw", "/readyz", "--request-timeout=10s")

    def load(self, images: Sequence[str]) -> None:
        for command in self.load_commands(images):
            run(command, timeout=600)

    def load_commands(self, images: Sequence[str]) -> list[list[str]]:
        """How Docker's images get to this cluster, going by its context's name."""
        if self.context.startswith("kind-"):
            return [load_command(tools.kind(), self.context.removeprefix("kind-"), images)]
        if self.context == "minikube":
            return [["minikube", "image", "load", image] for image in images]
        if self.context in SHARES_DOCKERS_IMAGES:
            return []
        raise ClusterError(
            f"there is no known way to load images into {self.description}: push {', '.join(images)} to where its "
            "nodes pull these names from, and set DASKFLEET_IMAGES=present"
        )

    def has(self, image: str, identity: str) -> bool:
        return os.environ.get("DASKFLEET_IMAGES") == "present"

    def execute(self, command: Sequence[str]) -> int:
        return subprocess.run(command, env={**os.environ, "KUBECONFIG": str(self.kubeconfig)}, check=False).returncode

    def down(self) -> None:
        from . import project  # needs PyYAML, which finding a cluster does not

        if self.kubeconfig.exists():
            project.remove_operator(self)
        self.kubeconfig.unlink(missing_ok=True)
