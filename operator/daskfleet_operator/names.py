"""Names shared with dask-kubernetes and with the runtime: changing one breaks users' selectors and scripts."""

from __future__ import annotations

GROUP = "kubernetes.dask.org"
VERSION = "v1"

CLUSTER_LABEL = "dask.org/cluster-name"
GROUP_LABEL = "dask.org/workergroup-name"
COMPONENT_LABEL = "dask.org/component"
SCHEDULER = "scheduler"
WORKER = "worker"
WORKERGROUP = "workergroup"
AUTOSCALER = "autoscaler"
JOB_RUNNER = "job-runner"

# Bookkeeping of ours on objects; never handed down to the objects made from them.
OURS = GROUP + "/"
TEMPLATE = OURS + "template-hash"
REPLICAS = OURS + "cluster-replicas"
WAVE = OURS + "wave"  # on worker pods, see `plan.waves`
RETIRING = OURS + "Retiring"  # a condition of pods
RETIRING_SINCE = OURS + "retiring-since"  # on adopted pods
ADOPTED_BY = OURS + "adopted-by"  # on Deployments; daskfleet's chart reads it
ROTATE_TLS = OURS + "rotate-tls"  # on DaskClusters, by users: each new value makes new certificates
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
ISTIO = "sidecar.istio.io/inject"
NOT_HANDED_DOWN = ("kopf.zalando.org", "kubectl.kubernetes.io", OURS)

TLS_AUTHORITY_ENV = "DASK_DISTRIBUTED__COMM__TLS__CA_FILE"
TOKEN_KEY = "token"
TOKEN_ENV = "DASKFLEET_TOKEN"
TOKEN_HEADER = "X-Daskfleet-Token"  # for the scheduler, where a proxy keeps `Authorization` for itself
WORKER_NAME_ENV = "DASK_WORKER_NAME"
ADDRESS_ENV = "DASK_SCHEDULER_ADDRESS"
ROUTES_ENV = "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES"

COMM_PORT = 8786
HTTP_PORT = 8787
HTTP_PORT_NAME = "http-dashboard"


def scheduler_name(cluster: str) -> str:
    """Name of the scheduler's Deployment, Service and PodDisruptionBudget."""
    return f"{cluster}-scheduler"


def default_group_name(cluster: str) -> str:
    return f"{cluster}-default"


def token_secret_name(cluster: str) -> str:
    return f"{cluster}-token"


def tls_secret_name(cluster: str) -> str:
    return f"{cluster}-tls"


def runner_name(job: str) -> str:
    return f"{job}-runner"
