"""``spec.security.tls``: certificates of the cluster's own, in every pod of it.

An authority per cluster signs one certificate for all its processes; both lie in the Secret ``{cluster}-tls``. Changing
the annotation ``kubernetes.dask.org/rotate-tls`` makes a Secret by another name with a new authority, and as pod
templates name it, the pods roll as after any edit: workers first and with drain, then the scheduler. Old and new ones
understand each other meanwhile, as the new authority is also signed by the old one, which the new processes still
trust. What leaked is thus shut out by the second of two rotations.

The variables are distributed's own, so that upstream's engine takes them as well as the bundled one; both take the
text of a certificate where they take its path. It is text here: a volume would keep each pod waiting for the kubelet's
next look at what is mounted.
"""

from __future__ import annotations

from daskfleet_operator import names
from daskfleet_operator.kube.kinds import CLUSTER, Json
from daskfleet_operator.plan import secret, templates
from daskfleet_operator.plan.model import Action, EnsureTls, Forget, Key, Observed

PREFIX = "DASK_DISTRIBUTED__COMM__"
#: Variables, and the keys in the Secret that they take their values from. The authority's own key is for no pod.
SECRETS = (
    {names.TLS_AUTHORITY_ENV: "ca.crt"}
    | {f"{PREFIX}TLS__{role}__CERT": "tls.crt" for role in ("SCHEDULER", "WORKER", "CLIENT")}
    | {f"{PREFIX}TLS__{role}__KEY": "tls.key" for role in ("SCHEDULER", "WORKER", "CLIENT")}
)
SETTINGS = {f"{PREFIX}REQUIRE_ENCRYPTION": "true", f"{PREFIX}DEFAULT_SCHEME": "tls"}


def secret_name(cluster: Json) -> str | None:
    """The Secret with the certificates that the cluster's pods are to have now; None without TLS."""
    if not (cluster["spec"].get("security") or {}).get("tls"):
        return None
    name = names.tls_secret_name(cluster["metadata"]["name"])
    turn = (cluster["metadata"].get("annotations") or {}).get(names.ROTATE_TLS)
    return f"{name}-{templates.fingerprint(turn)}" if turn else name


def due_at(observed: Observed, cluster: Json) -> float | None:
    """When to see to the Secret; see `plan.secret`."""
    name = secret_name(cluster)
    if name is None:
        return None
    ensured = observed.memory.tls_ensured
    return secret.due_at(observed, name, ensured[1] if ensured is not None and ensured[0] == name else None)


def plan_tls(observed: Observed, cluster: Json, may_attempt: bool, now: float) -> list[Action]:
    """See to the Secret, and forget what was refused of one by an earlier name."""
    name = secret_name(cluster)
    ours = f"Secret/{names.tls_secret_name(observed.key.name)}"
    stale = (what for what in observed.memory.refusals if what.startswith(ours) and what != f"Secret/{name}")
    actions: list[Action] = [Forget(what) for what in stale]
    due = due_at(observed, cluster)
    if name is not None and may_attempt and due is not None and now >= due:
        known = observed.deployment
        serving = known.tls_secret if known is not None and known.owner == cluster["metadata"]["uid"] else ""
        used = serving == name and any(
            pod.component == names.SCHEDULER and pod.phase == "Running" and not pod.deleting for pod in observed.pods
        )
        body = secret_body(observed.key, cluster, name)
        actions.append(EnsureTls(name, body, serving if serving != name else "", used))
    return actions


def secret_body(key: Key, cluster: Json, name: str) -> Json:
    """The Secret without its content: keys are drawn where I/O is done."""
    head = {
        "name": name,
        "namespace": key.namespace,
        "labels": {names.CLUSTER_LABEL: key.name},
        "ownerReferences": [templates.owner_reference(CLUSTER, cluster)],
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": head, "type": "kubernetes.io/tls"}


def with_tls(spec: Json, cluster: Json) -> Json:
    """A copy of a pod spec whose containers find the certificates; the spec itself where there is no TLS."""
    name = secret_name(cluster)
    if name is None:
        return spec
    return templates.with_env(
        spec,
        *({"name": variable, "value": value} for variable, value in SETTINGS.items()),
        *(
            {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}
            for variable, key in SECRETS.items()
        ),
    )
