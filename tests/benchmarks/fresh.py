"""The namespace in which benchmarks on Kubernetes make their clusters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster import Cluster

NAMESPACE = "daskfleet-bench"


@contextmanager
def namespace(cluster: Cluster, name: str = NAMESPACE) -> Iterator[str]:
    """A fresh namespace; gone with all that is in it before the context ends."""
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--timeout=300s", timeout=330)
