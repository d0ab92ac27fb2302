"""Where a scheduler can be reached from here. Pure, so that deciding costs nothing: no look-up is tried to see it fail.

Inside the same Kubernetes cluster it is the name of the scheduler's Service. Outside it is the LoadBalancer's address,
else a node's address and NodePort, else a port-forward of ours. "Inside" means that this process is in a pod (the
kubelet sets ``KUBERNETES_SERVICE_HOST``) *and* talks to the API server of that pod's cluster: a pod may as well hold
the kubeconfig of another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from daskfleet.deploy.kubernetes.spec import COMM_PORT, HTTP_PORT


@dataclass(frozen=True)
class Endpoint:
    """Host and ports of a scheduler."""

    host: str
    comm_port: int
    http_port: int


def inside(
    environment: Mapping[str, str],
    *,
    api_host: str,
    in_cluster_credentials: bool,
    ca: bytes | None = None,
    pod_ca: bytes | None = None,
) -> bool:
    """Whether this process can use the cluster's Service names.

    Parameters
    ----------
    environment
        Environment variables of this process.
    api_host
        URL of the API server in use.
    in_cluster_credentials
        Whether the credentials in use are those of this pod's service account.
    ca, pod_ca
        The API server's certificate authority as the kubeconfig and as the pod's service account have it.
    """
    service_host = environment.get("KUBERNETES_SERVICE_HOST")
    if not service_host:
        return False
    if in_cluster_credentials:
        return True
    host = urlsplit(api_host).hostname or ""
    if host in (service_host, "kubernetes") or host.startswith("kubernetes.default"):
        return True
    return bool(ca and pod_ca and ca.strip() == pod_ca.strip())


def read(path: str | Path | None) -> bytes | None:
    """The bytes of a small file, None when there is none."""
    try:
        return Path(path).read_bytes() if path else None
    except OSError:
        return None


def in_cluster_endpoint(service: str, namespace: str) -> Endpoint:
    """The Service's name, short enough to be right under any cluster domain."""
    return Endpoint(f"{service}.{namespace}.svc", COMM_PORT, HTTP_PORT)


def outside_endpoint(service: Mapping[str, Any], nodes: Iterable[Mapping[str, Any]]) -> Endpoint | None:
    """The address that `service` has outside the cluster, or None if it has none (yet).

    Parameters
    ----------
    service
        A Service object of type LoadBalancer or NodePort.
    nodes
        The Node objects; looked at for a NodePort only. A Ready node's external address goes before an internal one.
    """
    ports = {port["name"]: port for port in service["spec"].get("ports") or [] if port.get("name")}
    comm, http = ports.get("tcp-comm", {}), ports.get("http-dashboard", {})
    kind = service["spec"].get("type")
    if kind == "LoadBalancer":
        for entry in ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []:
            if host := entry.get("hostname") or entry.get("ip"):
                return Endpoint(host, int(comm.get("port", COMM_PORT)), int(http.get("port", HTTP_PORT)))
    if kind == "NodePort" and comm.get("nodePort") and (host := _node_address(nodes)):
        return Endpoint(host, int(comm["nodePort"]), int(http.get("nodePort", 0)))
    return None


def _node_address(nodes: Iterable[Mapping[str, Any]]) -> str | None:
    found: dict[str, str] = {}
    for node in nodes:
        status = node.get("status") or {}
        if any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or []):
            for address in status.get("addresses") or []:
                found.setdefault(address["type"], address["address"])
    return found.get("ExternalIP") or found.get("InternalIP")
