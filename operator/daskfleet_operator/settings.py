"""What can be set about the operator: by command line, by environment, nothing by file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The operator's settings; `daskfleet-operator --help` says what each is for."""

    namespaces: tuple[str, ...] = ()
    kubeconfig: str | None = None
    context: str | None = None
    cluster_domain: str = "cluster.local"
    listen: str = "0.0.0.0:8080"
    concurrency: int = 8
    connections: int = 48
    watch_period: float = 60.0
    leader_elect: bool = False
    lease_namespace: str | None = None
    lease_seconds: float = 15.0
    identity: str = ""
    log_level: str = "INFO"
    log_json: bool = False
