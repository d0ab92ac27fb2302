"""The custom resources that the SDK writes, as plain dicts: written as YAML, ``kubectl apply`` takes them."""

from __future__ import annotations

import copy
import getpass
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskfleet._version import __version__
from daskfleet.deploy.kubernetes.environment import add_environment, load_environment
from daskfleet.deploy.kubernetes.errors import InvalidName

GROUP = "kubernetes.dask.org"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"

CLUSTER_LABEL = "dask.org/cluster-name"
GROUP_LABEL = "dask.org/workergroup-name"
COMPONENT_LABEL = "dask.org/component"

COMM_PORT = 8786
HTTP_PORT = 8787
WORKER_HTTP_PORT = 8788

SERVICE_TYPES = ("ClusterIP", "NodePort", "LoadBalancer")

DEFAULT_IMAGE = f"daskfleet/runtime:{__version__}"


@dataclass(frozen=True)
class Engine:
    """What runs in the pods: its image, and how its scheduler and its workers are started."""

    image: str
    scheduler: tuple[str, ...]
    worker: tuple[str, ...]


ENGINES = {
    "daskfleet": Engine(DEFAULT_IMAGE, ("dask-scheduler",), ("dask-worker",)),
    "dask": Engine("ghcr.io/dask/dask:latest", ("dask", "scheduler"), ("dask", "worker")),  # distributed's commands
}

#: Seconds without a client and without work after which a cluster is ended that its session would have ended, too.
ABANDONED_AFTER = 3600

# The operator derives names such as `{cluster}-default-worker-…` within the 63 characters of a label.
LONGEST_NAME = 53

Env = Mapping[str, str] | Sequence[Mapping[str, Any]]
Spec = dict[str, Any]

# Tasks are anybody's code, which the cluster's API is not for. And a pod starts sooner without: the kubelet takes 0.2 s
# to mount a token, and 1.7 s where it asks for it just before the API server knows that the pod is on its node.
_NO_CREDENTIALS = {"automountServiceAccountToken": False}
#: Our image needs no more than the "restricted" pod security standard allows; of other images nothing is known.
_RESTRICTED = {
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
}

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def check_name(name: str, what: str = "cluster") -> str:
    """Return `name` if a cluster (or another `what`) can have it.

    Raises
    ------
    InvalidName
        Unless it is an RFC 1123 label of at most 53 characters: lower-case letters, digits and ``-``, a letter or digit
        at both ends.
    """
    if not isinstance(name, str):
        raise InvalidName(f"a {what} name is a string, not {type(name).__name__}")
    if len(name) > LONGEST_NAME:
        raise InvalidName(f"{what} name {name!r} has {len(name)} characters, at most {LONGEST_NAME} are possible")
    if not _LABEL.fullmatch(name):
        raise InvalidName(
            f"{what} name {name!r} is not possible in Kubernetes: use lower-case letters, digits and '-', "
            "with a letter or digit at both ends" + _suggestion(name)
        )
    return name


def _suggestion(name: str) -> str:
    candidate = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"; for example {candidate!r}" if candidate else ""


def new_name() -> str:
    """A fresh cluster name, ``dask-{user}-{10 random hexadecimal digits}``."""
    try:
        user = re.sub(r"[^a-z0-9]+", "-", getpass.getuser().lower()).strip("-")[:20].strip("-")
    except (KeyError, OSError):  # a uid without a name, as containers often have
        user = ""
    return "-".join(part for part in ("dask", user, uuid.uuid4().hex[:10]) if part)


def group_name(cluster: str, worker_group: str) -> str:
    """The DaskWorkerGroup's name for what users call `worker_group`: ``{cluster}-{worker_group}``, or as it is."""
    return worker_group if worker_group.startswith(f"{cluster}-") else f"{cluster}-{worker_group}"


def engine_called(name: str) -> Engine:
    """The engine of this name.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        return ENGINES[name]
    except KeyError:
        raise ValueError(f"engine={name!r}: one of {', '.join(ENGINES)}") from None


def make_cluster_spec(
    name: str,
    image: str | None = None,
    n_workers: int = 0,
    resources: Mapping[str, Any] | None = None,
    env: Env | None = None,
    worker_command: str | Sequence[str] | None = None,
    scheduler_service_type: str = "ClusterIP",
    idle_timeout: float = 0,
    jupyter: bool = False,
    engine: str = "daskfleet",
    environment: str | Path | None = None,
    environment_cache: Mapping[str, Any] | None = None,
    tls: bool | None = None,
) -> Spec:
    """A DaskCluster resource.

    Parameters
    ----------
    name
        The cluster's name, at most 53 characters.
    image
        Container image of the scheduler and the workers, the engine's own by default.
    n_workers
        Workers to start with.
    resources
        ``{"requests": {...}, "limits": {...}}`` of each container.
    env
        Environment variables, ``{name: value}`` or a list as pods have it.
    worker_command
        The command of the workers, as a string to be split or a list; the engine's own by default.
    scheduler_service_type
        ``ClusterIP``, ``NodePort`` or ``LoadBalancer``.
    idle_timeout
        Seconds without work after which the operator deletes the cluster; 0 for never.
    jupyter
        Run a Jupyter server inside the scheduler.
    engine
        ``daskfleet``, or ``dask`` for an image of upstream's ``distributed``.
    environment
        What the workers are to have besides their image's packages: a requirements file (``.txt``), a conda environment
        (``.yml``), or ``local`` for the packages of this Python.
    environment_cache
        The source of a volume that pods share, for it to be installed once and not in each pod: such as
        ``{"hostPath": {"path": "/var/cache/daskfleet"}}``, for once on each node.
    tls
        Encrypt all connections by certificates that the operator makes; by default, where the engine is ours.

    Returns
    -------
    dict
        To be changed at will and given to ``KubeCluster(custom_cluster_spec=...)`` or written to a YAML file. Its pods
        get no credentials of the Kubernetes API: tasks that need some take a ``serviceAccountName`` and
        ``automountServiceAccountToken: true`` in the pods' specs.

    Raises
    ------
    InvalidName
        If no cluster can have this name.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": "DaskCluster",
        "metadata": {"name": check_name(name)},
        "spec": {
            "idleTimeout": int(idle_timeout),
            "security": {"tls": engine == "daskfleet" if tls is None else bool(tls)},
            "worker": make_worker_spec(
                image, n_workers, resources, env, worker_command, engine, environment, environment_cache
            ),
            "scheduler": make_scheduler_spec(name, image, resources, env, scheduler_service_type, jupyter, engine),
        },
    }


def end_when_abandoned(cluster: Spec) -> None:
    """Have a cluster end `ABANDONED_AFTER` its last client and its last task, and never while there is one."""
    cluster["spec"]["idleTimeout"] = ABANDONED_AFTER
    (container,) = cluster["spec"]["scheduler"]["spec"]["containers"]
    container["env"].append({"name": "DASK_DISTRIBUTED__SCHEDULER__IDLE_WITH_CLIENTS", "value": "false"})


def make_worker_spec(
    image: str | None = None,
    n_workers: int = 0,
    resources: Mapping[str, Any] | None = None,
    env: Env | None = None,
    worker_command: str | Sequence[str] | None = None,
    engine: str = "daskfleet",
    environment: str | Path | None = None,
    environment_cache: Mapping[str, Any] | None = None,
) -> Spec:
    """The ``worker`` part of a DaskCluster or DaskWorkerGroup; parameters as in `make_cluster_spec`."""
    if n_workers < 0:
        raise ValueError(f"n_workers={n_workers}: a cluster cannot have less than no workers")
    defaults = engine_called(engine)
    command = worker_command.split() if isinstance(worker_command, str) else list(worker_command or defaults.worker)
    own = ["--name", "$(DASK_WORKER_NAME)", "--dashboard", "--dashboard-address", str(WORKER_HTTP_PORT)]
    container = {
        "name": "worker",
        **_image(image or defaults.image),
        "args": [*command, *own],
        "env": _env(env),
        "resources": dict(resources or {}),
        "ports": [{"name": "http-dashboard", "containerPort": WORKER_HTTP_PORT, "protocol": "TCP"}],
    }
    worker = {"replicas": n_workers, "spec": {**_NO_CREDENTIALS, "containers": [container]}}
    if (wanted := load_environment(environment)) is not None:
        add_environment(worker, wanted, environment_cache)
    return worker


def make_scheduler_spec(
    name: str,
    image: str | None = None,
    resources: Mapping[str, Any] | None = None,
    env: Env | None = None,
    scheduler_service_type: str = "ClusterIP",
    jupyter: bool = False,
    engine: str = "daskfleet",
) -> Spec:
    """The ``scheduler`` part of a DaskCluster; parameters as in `make_cluster_spec`."""
    if scheduler_service_type not in SERVICE_TYPES:
        raise ValueError(f"scheduler_service_type={scheduler_service_type!r}: one of {', '.join(SERVICE_TYPES)}")
    defaults = engine_called(engine)
    ports = [("tcp-comm", COMM_PORT), ("http-dashboard", HTTP_PORT)]
    health = {"httpGet": {"path": "/health", "port": "http-dashboard"}}
    container = {
        "name": "scheduler",
        **_image(image or defaults.image),
        "args": [*defaults.scheduler, "--host", "0.0.0.0", *(["--jupyter"] if jupyter else [])],
        "env": _env(env),
        "resources": dict(resources or {}),
        "ports": [{"name": port_name, "containerPort": port, "protocol": "TCP"} for port_name, port in ports],
        "readinessProbe": {**health, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 3},
        # A scheduler that is busy must not be killed for it: only one that is silent for five minutes.
        "livenessProbe": {**health, "periodSeconds": 20, "timeoutSeconds": 15, "failureThreshold": 15},
    }
    return {
        "spec": {**_NO_CREDENTIALS, "containers": [container]},
        "service": {
            "type": scheduler_service_type,
            "selector": {CLUSTER_LABEL: name, COMPONENT_LABEL: "scheduler"},
            "ports": [
                {"name": port_name, "protocol": "TCP", "port": port, "targetPort": port_name}
                for port_name, port in ports
            ],
        },
    }


def _image(image: str) -> Spec:
    return {"image": image, **(copy.deepcopy(_RESTRICTED) if image == DEFAULT_IMAGE else {})}


def make_worker_group_spec(cluster: str, worker_group: str, worker: Spec) -> Spec:
    """A DaskWorkerGroup resource.

    Parameters
    ----------
    cluster
        The name of the cluster that it belongs to.
    worker_group
        What users call it; the resource is named ``{cluster}-{worker_group}``.
    worker
        As `make_worker_spec` makes it.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": "DaskWorkerGroup",
        "metadata": {
            "name": group_name(cluster, worker_group),
            "labels": {CLUSTER_LABEL: cluster, COMPONENT_LABEL: "workergroup"},
        },
        "spec": {"cluster": cluster, "worker": worker},
    }


def make_autoscaler_spec(cluster: str, minimum: int, maximum: float) -> Spec:
    """A DaskAutoscaler resource that keeps `cluster` between `minimum` and `maximum` workers."""
    if not 0 <= minimum <= maximum:
        raise ValueError(f"adapt(minimum={minimum}, maximum={maximum}): 0 <= minimum <= maximum is needed")
    if math.isinf(maximum):
        raise ValueError("adapt(maximum=inf): a Kubernetes cluster is not endless; say how many workers are the limit")
    return {
        "apiVersion": API_VERSION,
        "kind": "DaskAutoscaler",
        "metadata": {"name": cluster, "labels": {CLUSTER_LABEL: cluster}},
        "spec": {"cluster": cluster, "minimum": int(minimum), "maximum": int(maximum)},
    }


def _env(env: Env | None) -> list[dict[str, Any]]:
    if env is None:
        return []
    if isinstance(env, Mapping):
        return [{"name": name, "value": str(value)} for name, value in env.items()]
    return [dict(entry) for entry in env]
