"""What daskfleet puts into a cluster: its resource definitions and its operator, as a user would by kubectl."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from . import images
from .base import Cluster
from .progress import ClusterError, step

ROOT = Path(__file__).parents[2]
OPERATOR = ROOT / "operator" / "deploy"
NAMESPACE = "daskfleet-system"
SAMPLE = ROOT / "crds" / "samples" / "daskcluster.yaml"


def apply_definitions(cluster: Cluster) -> None:
    """Make the API server know our resources; returns when it serves them."""
    definitions = [str(path) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    cluster.kubectl("apply", "--server-side", "--force-conflicts", *_files(definitions))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *_files(definitions))


def start_operator(cluster: Cluster) -> None:
    """Run the operator in the cluster; replaced when its image is another one. Ready on return."""
    identity = images.inspect(images.IMAGES[1].tag, cluster.builder)
    documents = [document for path in sorted(OPERATOR.glob("*.yaml")) for document in _documents(path)]
    for document in documents:
        if document["kind"] == "Deployment":
            # The tag stays the same while the code changes; only a changed template makes new pods.
            annotations = document["spec"]["template"].setdefault("metadata", {}).setdefault("annotations", {})
            annotations["daskfleet/image-id"] = identity["id"] if identity else "unknown"
    documents.sort(key=lambda document: document["kind"] != "Namespace")
    with step("starting the operator in the cluster"):
        cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(documents))
        try:
            cluster.kubectl("-n", NAMESPACE, "rollout", "status", "deployment", "--timeout=240s")
        except ClusterError as error:
            raise ClusterError(f"the operator did not start: {error}\n{operator_story(cluster)}") from error


def operator_story(cluster: Cluster, lines: int = 20) -> str:
    """The operator's pods, why they were restarted if they were, and the ends of their logs."""
    ended = "{range .items[*].status.containerStatuses[*].lastState.terminated}{.reason} {.exitCode} {.finishedAt}{end}"
    logs = ["logs", f"--tail={lines}", "--ignore-errors", "--selector=app.kubernetes.io/name=daskfleet-operator"]
    asked = (["get", "pods", "-o", "wide"], ["get", "pods", "-o", f"jsonpath={ended}"], [*logs, "--previous"], logs)
    told = []
    for words in asked:
        with suppress(ClusterError):
            told.append(cluster.kubectl("-n", NAMESPACE, *words))
    return "\n".join(told)


def operator_runs(cluster: Cluster) -> bool:
    """Whether an operator's Deployment is in the cluster."""
    return bool(cluster.kubectl("-n", NAMESPACE, "get", "deployments", "-o", "name", "--ignore-not-found").strip())


def pause_operator(cluster: Cluster) -> None:
    """Stop the operator's pods and keep everything else, so that another one can work on the same resources."""
    cluster.kubectl("-n", NAMESPACE, "scale", "deployment", "--all", "--replicas=0")
    cluster.kubectl("-n", NAMESPACE, "wait", "--for=delete", "pods", "--all", "--timeout=60s")


def remove_operator(cluster: Cluster) -> None:
    """Take the operator out of the cluster; resources and their pods stay."""
    manifests = [str(path) for path in sorted(OPERATOR.glob("*.yaml"))]
    cluster.kubectl("delete", "--ignore-not-found", "--timeout=60s", *_files(manifests))


def _documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def _files(paths: list[str]) -> list[str]:
    return [word for path in paths for word in ("-f", path)]
