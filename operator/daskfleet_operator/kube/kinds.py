"""The kinds the operator reads and writes, and where the API server keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daskfleet_operator import names

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource of the Kubernetes API: ``Kind("Pod", "v1", "pods")``."""

    name: str
    api_version: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection, an object or its subresource; every namespace when `namespace` is None."""
        root = "/api" if "/" not in self.api_version else "/apis"
        parts = [root, self.api_version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


_CUSTOM = f"{names.GROUP}/{names.VERSION}"

CLUSTER = Kind("DaskCluster", _CUSTOM, "daskclusters")
WORKERGROUP = Kind("DaskWorkerGroup", _CUSTOM, "daskworkergroups")
AUTOSCALER = Kind("DaskAutoscaler", _CUSTOM, "daskautoscalers")
JOB = Kind("DaskJob", _CUSTOM, "daskjobs")
POD = Kind("Pod", "v1", "pods")
SERVICE = Kind("Service", "v1", "services")
SECRET = Kind("Secret", "v1", "secrets")
EVENT = Kind("Event", "v1", "events")
DEPLOYMENT = Kind("Deployment", "apps/v1", "deployments")
BUDGET = Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases")

CUSTOM_KINDS = (CLUSTER, WORKERGROUP, AUTOSCALER, JOB)
