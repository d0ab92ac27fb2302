"""Clusters on Kubernetes, by the custom resources that daskfleet's operator reconciles.

Importing this imports neither `kubernetes` nor `aiohttp`; the first `KubeCluster` does.
"""

from daskfleet.deploy.kubernetes.errors import (
    ApiError,
    ClusterExists,
    ClusterNotFound,
    Forbidden,
    InvalidManifest,
    InvalidName,
    KubeConfigError,
    KubernetesError,
    NamespaceNotFound,
    OperatorMissing,
    PortInUse,
    StartFailed,
    StartTimeout,
    Unreachable,
)
from daskfleet.deploy.kubernetes.helm import HelmCluster
from daskfleet.deploy.kubernetes.kubecluster import KubeCluster
from daskfleet.deploy.kubernetes.options import CreateMode
from daskfleet.deploy.kubernetes.spec import make_cluster_spec, make_scheduler_spec, make_worker_spec

__all__ = [
    "ApiError",
    "ClusterExists",
    "ClusterNotFound",
    "CreateMode",
    "Forbidden",
    "HelmCluster",
    "InvalidManifest",
    "InvalidName",
    "KubeCluster",
    "KubeConfigError",
    "KubernetesError",
    "NamespaceNotFound",
    "OperatorMissing",
    "PortInUse",
    "StartFailed",
    "StartTimeout",
    "Unreachable",
    "make_cluster_spec",
    "make_scheduler_spec",
    "make_worker_spec",
]
