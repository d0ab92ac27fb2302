"""Where the tests, the demo and the benchmarks get a Kubernetes from; ``python -m tests.cluster --help``.

Three kinds behind one interface, the first that fits: the context that ``KUBECONFIG_CONTEXT`` names in the user's own
kubeconfig; kind, when Docker runs; else a single node built from source, for root on Linux. All of them get the images
of ``images/`` under the same names, and each picks up where it was: what is built, loaded or running is not done again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress

from .base import Cluster, NoKubernetes
from .existing import ExistingCluster
from .kind import KindCluster
from .source_node import SourceNode

__all__ = ["Cluster", "NoKubernetes", "docker_runs", "find"]


def docker_runs() -> bool:
    """Whether a Docker daemon answers."""
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode == 0
    return False


def find(environment: Mapping[str, str] = os.environ, docker: bool | None = None) -> Cluster:
    """The cluster to use on this machine; it may not run yet.

    Parameters
    ----------
    environment:
        Where ``KUBECONFIG_CONTEXT`` is looked up, and ``DASKFLEET_NODE``: the name of a node from source, so that
        several can run side by side.
    docker:
        Whether Docker runs; asked of Docker when None.

    Raises
    ------
    NoKubernetes
        When none of the three can be had here, with the reason.
    """
    context = environment.get("KUBECONFIG_CONTEXT")
    if context:
        return ExistingCluster(context)
    if docker_runs() if docker is None else docker:
        return KindCluster()
    lacking = SourceNode.lacking()
    if lacking:
        raise NoKubernetes(f"no Kubernetes: KUBECONFIG_CONTEXT names none, Docker does not run, and {lacking}.")
    return SourceNode(environment.get("DASKFLEET_NODE") or "daskfleet-node")
