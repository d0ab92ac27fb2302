"""The namespace in which benchmarks on Kubernetes make their clusters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster import Cluster

NAMESPACE = "daskfleet-bench"


@contextmanager
def namespace(cluster: Cluster) -> Iterator[None]:
    """`NAMESPACE`, fresh; gone with all that is in it before the context ends."""
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", NAMESPACE, "--timeout=30s")
    try:
        yield
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=300s", timeout=330)
