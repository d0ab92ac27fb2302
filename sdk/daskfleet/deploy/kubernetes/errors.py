"""What can go wrong with a cluster on Kubernetes, one class for each thing a caller may want to tell apart.

::

    KubernetesError (daskfleet.exceptions.DaskfleetError)
    ├── KubeConfigError            no kubeconfig, an unknown context, credentials that cannot be had
    ├── Unreachable                the API server does not answer (also a ConnectionError)
    ├── ApiError                   the API server said no; `status` and `message` are its own
    │   ├── Forbidden              … to this user: names the rule that is missing (also a PermissionError)
    │   ├── NamespaceNotFound
    │   └── InvalidManifest        … to what was written (also a ValueError)
    ├── InvalidName                not a name that a cluster can have (also a ValueError)
    ├── ClusterNotFound            no such cluster here; names those that exist (also a LookupError)
    ├── ClusterExists              create_mode=CREATE_ONLY and it is there already
    ├── PortInUse                  the local port asked for is taken (also an OSError)
    └── StartFailed                it will not start, and what the cluster says about it
        ├── StartTimeout           … within resource_timeout (also a TimeoutError)
        └── OperatorMissing        nobody reconciles DaskCluster resources here

Every message is one sentence for a person, with what to do where we know it; none holds a token.
"""

from __future__ import annotations

import re
from typing import Any

from daskfleet import exceptions
from daskfleet.exceptions import DaskfleetError

INSTALL_OPERATOR = "kubectl apply -f crds/ -f operator/deploy/"


class KubernetesError(DaskfleetError):
    """Base of all errors that `daskfleet.deploy.kubernetes` raises on purpose."""


class KubeConfigError(KubernetesError):
    """There is no usable kubeconfig, or its credentials cannot be had."""


class Unreachable(KubernetesError, ConnectionError):
    """The Kubernetes API server does not answer."""


class ApiError(KubernetesError):
    """The API server refused a request.

    Attributes
    ----------
    status
        HTTP status code.
    message
        The API server's own sentence.
    details
        ``Status.details`` of its answer.
    """

    def __init__(self, sentence: str, status: int, message: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.message = message or sentence
        self.details = details or {}


class Forbidden(ApiError, PermissionError):
    """The API server refused a request to this user."""


class NamespaceNotFound(ApiError, LookupError):
    """The namespace does not exist."""


class InvalidManifest(ApiError, ValueError):
    """The API server refused a manifest."""


class InvalidName(KubernetesError, ValueError):
    """Not a name that a cluster or a worker group can have."""


class ClusterNotFound(KubernetesError, exceptions.ClusterNotFound):
    """There is no cluster of this name."""


class ClusterExists(KubernetesError):
    """A cluster of this name exists, and only a new one would do."""


class PortInUse(KubernetesError, OSError):
    """A local port that was asked for is taken."""


class StartFailed(KubernetesError):
    """The cluster will not start."""


class StartTimeout(StartFailed, TimeoutError):
    """The cluster did not start within its deadline."""


class OperatorMissing(StartFailed):
    """Nobody reconciles DaskCluster resources in this Kubernetes or namespace."""


_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]+)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)


def from_status(status: int, body: dict[str, Any]) -> ApiError:
    """The exception for an answer of the API server.

    Parameters
    ----------
    status
        HTTP status code, at least 400.
    body
        The answer's ``Status`` object, or ``{}`` when it was something else (a proxy's page, say).
    """
    message = str(body.get("message") or f"HTTP status {status}")
    details = body.get("details") or {}
    if status == 401:
        sentence = f"the Kubernetes API server does not accept these credentials ({message}): log in again"
        return Forbidden(sentence, status, message, details)
    if status == 403 and (match := _FORBIDDEN.search(message)):
        return Forbidden(_missing_rule(match), status, message, details)
    if status == 403:  # an admission plugin or a quota: its sentence says it
        return Forbidden(f"the Kubernetes API server forbids it: {message}", status, message, details)
    if status == 404 and details.get("kind") == "namespaces":
        name = details.get("name")
        return NamespaceNotFound(
            f"namespace {name!r} does not exist; create it with: kubectl create namespace {name}",
            status,
            message,
            details,
        )
    if status in (400, 422):
        return InvalidManifest(f"the Kubernetes API server refuses the manifest: {message}", status, message, details)
    return ApiError(f"the Kubernetes API server answers {status}: {message}", status, message, details)


def _missing_rule(match: re.Match[str]) -> str:
    namespace = match["namespace"]
    kind = "Role" if namespace else "ClusterRole"
    where = f" in namespace {namespace}" if namespace else ""
    return (
        f"{match['user']} may not {match['verb']} {match['resource']}{where}; a {kind} bound to it needs the rule "
        f'{{apiGroups: ["{match["group"]}"], resources: ["{match["resource"]}"], verbs: ["{match["verb"]}"]}}'
    )
