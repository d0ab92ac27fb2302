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

Every message is one sentence for a person, with what to do where we know it (for a missing right that is a manifest
below it); none holds a token.
"""

from __future__ import annotations

import re
from typing import Any

from daskfleet import exceptions
from daskfleet.exceptions import DaskfleetError

#: What a user of KubeCluster needs: API group, resources, verbs.
USER_RULES = (
    ("kubernetes.dask.org", ["*"], ["*"]),
    ("", ["pods"], ["get", "list", "watch"]),
    ("", ["pods/log", "services", "secrets"], ["get"]),
    ("", ["pods/portforward"], ["get", "create"]),
)

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
    user, verb, resource, group = match["user"], match["verb"], match["resource"], match["group"]
    return (
        f"{user} may not {verb} {resource}{where}; a {kind} bound to it needs the rule "
        f"{_rule(group, [resource], [verb])}\n"
        "This gives it, and all else that KubeCluster needs; for whoever may apply it, by kubectl apply -f -\n"
        + role_manifest(user, namespace, (group, resource, verb))
    )


def role_manifest(user: str, namespace: str | None, missing: tuple[str, str, str]) -> str:
    """YAML of the Role that a user of KubeCluster needs, with what is missing if that is more, and of its binding.

    Parameters
    ----------
    user
        As the API server calls it.
    namespace
        Where; None for a right that no namespace has, which takes a ClusterRole of that alone.
    missing
        API group, resource and verb.
    """
    group, resource, verb = missing
    covered = any(
        group == known and (resource in names or "*" in names) and (verb in verbs or "*" in verbs)
        for known, names, verbs in USER_RULES
    )
    rules = list(USER_RULES) if namespace else []
    if not covered or not namespace:
        rules.append((group, [resource], [verb]))
    kind = "Role" if namespace else "ClusterRole"
    where = f", namespace: {namespace}" if namespace else ""
    account = re.fullmatch("system:serviceaccount:([^:]+):([^:]+)", user)
    subject = (
        f"{{kind: ServiceAccount, namespace: {account[1]}, name: {account[2]}}}"
        if account
        else f'{{kind: User, apiGroup: rbac.authorization.k8s.io, name: "{user}"}}'
    )
    return "\n".join(
        [
            "apiVersion: rbac.authorization.k8s.io/v1",
            f"kind: {kind}",
            f"metadata: {{name: daskfleet-user{where}}}",
            "rules:",
            *(f"- {_rule(*rule)}" for rule in rules),
            "---",
            "apiVersion: rbac.authorization.k8s.io/v1",
            f"kind: {kind}Binding",
            f"metadata: {{name: daskfleet-user{where}}}",
            f"roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: daskfleet-user}}",
            f"subjects: [{subject}]",
        ]
    )


def _rule(group: str, names: list[str], verbs: list[str]) -> str:
    parts = (", ".join(f'"{item}"' for item in items) for items in ([group], names, verbs))
    return "{{apiGroups: [{}], resources: [{}], verbs: [{}]}}".format(*parts)
