"""`daskfleet-operator`: the command line. Each option is also an environment variable, for manifests."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from datetime import UTC, datetime

import click

from daskfleet_operator.app import run
from daskfleet_operator.kube.client import ApiError
from daskfleet_operator.kube.config import ConfigError
from daskfleet_operator.kube.lease import LeadershipLost
from daskfleet_operator.settings import Settings

DEFAULTS = Settings()


class JsonLines(logging.Formatter):
    """One JSON object a line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(level: str, as_json: bool) -> None:
    """Log to stderr; kopf only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if as_json else plain)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("kopf", "aiohttp"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


@click.command(context_settings={"auto_envvar_prefix": "DASKFLEET_OPERATOR", "show_default": True})
@click.option("--namespace", "-n", "namespaces", multiple=True, help="Serve only this namespace; repeatable. [all]")
@click.option("--kubeconfig", help="kubeconfig file. [the ServiceAccount, $KUBECONFIG, ~/.kube/config]")
@click.option("--context", help="Context in the kubeconfig. [its current one]")
@click.option("--cluster-domain", default=DEFAULTS.cluster_domain, help="DNS domain of the Kubernetes cluster.")
@click.option("--listen", default=DEFAULTS.listen, help="host:port for /healthz, /readyz and /metrics.")
@click.option("--concurrency", default=DEFAULTS.concurrency, help="Dask clusters worked on at once.")
@click.option("--connections", default=DEFAULTS.connections, help="Connections to the API server, watches aside.")
@click.option("--watch-period", default=DEFAULTS.watch_period, help="Seconds in which a healthy watch shows life.")
@click.option("--leader-elect/--no-leader-elect", default=False, help="Work only while holding a Lease.")
@click.option("--lease-namespace", help="Namespace of the Lease. [the operator's own]")
@click.option("--lease-seconds", default=DEFAULTS.lease_seconds, help="Silence after which another replica takes over.")
@click.option("--log-level", default=DEFAULTS.log_level, type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))
@click.option("--log-json/--log-text", default=False, help="One JSON object a line.")
def main(
    namespaces: tuple[str, ...],
    kubeconfig: str | None,
    context: str | None,
    cluster_domain: str,
    listen: str,
    concurrency: int,
    connections: int,
    watch_period: float,
    leader_elect: bool,
    lease_namespace: str | None,
    lease_seconds: float,
    log_level: str,
    log_json: bool,
) -> None:
    """Run the operator for DaskCluster, DaskWorkerGroup, DaskAutoscaler and DaskJob resources.

    In a pod it uses the pod's ServiceAccount, elsewhere a kubeconfig. Every option can be given as an environment
    variable: DASKFLEET_OPERATOR_NAMESPACES, DASKFLEET_OPERATOR_LEADER_ELECT and so on.
    """
    configure_logging(log_level, log_json)
    settings = Settings(
        namespaces=namespaces,
        kubeconfig=kubeconfig,
        context=context,
        cluster_domain=cluster_domain,
        listen=listen,
        concurrency=concurrency,
        connections=connections,
        watch_period=watch_period,
        leader_elect=leader_elect,
        lease_namespace=lease_namespace,
        lease_seconds=lease_seconds,
        identity=f"{os.environ.get('HOSTNAME') or socket.gethostname()}-{os.getpid()}",
        log_level=log_level,
        log_json=log_json,
    )
    try:
        asyncio.run(run(settings))
    except (ConfigError, ApiError, LeadershipLost, OSError) as error:
        raise click.ClickException(str(error)) from error
