"""What the three kinds of cluster have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import tools
from .progress import ClusterError, run


class NoKubernetes(Exception):
    """No Kubernetes can be had on this machine; the message is the reason."""


class Cluster(ABC):
    """A Kubernetes that can be started, given images and taken down."""

    description: str
    builder: str
    """What builds its images: ``buildah`` or ``docker``."""
    kubeconfig: Path

    @abstractmethod
    def ready(self) -> bool:
        """Whether it runs and its API answers."""

    @abstractmethod
    def up(self) -> None:
        """Start it unless it runs; pods can be made on return."""

    @abstractmethod
    def load(self, images: Sequence[str]) -> None:
        """Bring images that the builder holds onto its nodes."""

    @abstractmethod
    def has(self, image: str, identity: str) -> bool:
        """Whether its nodes hold this very build of an image."""

    @abstractmethod
    def execute(self, command: Sequence[str]) -> int:
        """Run a command from where pods' addresses can be reached; its exit status."""

    @abstractmethod
    def down(self) -> None:
        """Take it down; only caches stay."""

    def purge(self) -> None:
        """Take it down and remove its caches."""
        self.down()

    def kubectl(self, *words: str, input: str | None = None, timeout: float = 120) -> str:
        """Run kubectl against it and return what it prints."""
        command = [tools.kubectl(), f"--kubeconfig={self.kubeconfig}", *words]
        return run(command, input=input, timeout=timeout)

    def answers(self) -> bool:
        """Whether its API says that it is ready."""
        try:
            self.kubectl("get", "--raw", "/readyz", "--request-timeout=5s")
        except ClusterError:
            return False
        return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep others from starting, loading or ending it at the same time."""
        with tools.locked("lock", "another command that works on the cluster"):
            yield
