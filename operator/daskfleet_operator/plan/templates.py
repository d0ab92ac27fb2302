"""From what users wrote to what the API server gets: labels, annotations, environment, owners.

The rules are dask-kubernetes', because manifests, dashboards and scripts rely on them: metadata goes down (the
resource's own, then its template's ``metadata``, then the reserved labels); variables are appended last and only where
the user set none by that name. Pod templates are otherwise kept whole.
"""

from __future__ import annotations

import copy
import hashlib
import json

from daskfleet_operator import names
from daskfleet_operator.kube.kinds import Json, Kind


def owner_reference(kind: Kind, owner: Json) -> Json:
    """The reference by which Kubernetes deletes the dependent with its owner."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def fingerprint(*parts: object) -> str:
    """A short hash of JSON values, equal for equal values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def handed_down(values: Json | None) -> dict[str, str]:
    """Labels or annotations without the bookkeeping of kubectl, kopf and ours."""
    return {key: value for key, value in (values or {}).items() if not key.startswith(names.NOT_HANDED_DOWN)}


def metadata(owner: Json, template: Json, reserved: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and annotations of an object made for `owner` from `template`."""
    own, given = owner["metadata"], template.get("metadata") or {}
    labels = handed_down(own.get("labels")) | handed_down(given.get("labels")) | reserved
    annotations = handed_down(own.get("annotations")) | handed_down(given.get("annotations"))
    return labels, annotations


def with_env(spec: Json, *variables: Json) -> Json:
    """A copy of a pod spec whose containers have these variables, after the user's and where the user set none."""
    spec = copy.deepcopy(spec)
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        env = container["env"] = list(container.get("env") or ())
        taken = {item["name"] for item in env}
        env += [dict(variable) for variable in variables if variable["name"] not in taken]
    return spec


def sets(spec: Json, variable: str) -> bool:
    """Whether a container of the pod spec sets the variable itself."""
    return any(item["name"] == variable for container in spec["containers"] for item in container.get("env") or ())


def scheduler_address(cluster: str, namespace: str, domain: str, scheme: str = "tcp") -> str:
    return f"{scheme}://{names.scheduler_name(cluster)}.{namespace}.svc.{domain}:{names.COMM_PORT}"


def address_variable(cluster: str, namespace: str, domain: str, *, tls: bool) -> Json:
    address = scheduler_address(cluster, namespace, domain, "tls" if tls else "tcp")
    return {"name": names.ADDRESS_ENV, "value": address}


def token_variable(cluster: str) -> Json:
    reference = {"name": names.token_secret_name(cluster), "key": names.TOKEN_KEY}
    return {"name": names.TOKEN_ENV, "valueFrom": {"secretKeyRef": reference}}
