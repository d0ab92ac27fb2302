"""Installing dask-kubernetes: a client environment, an image, and what its Helm chart applies with default values.

Custom resources and permissions are read out of the installed package; only the chart's Deployment is written again
here, since the chart is a template and the node has no Helm.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import Cluster, images, tools
from tests.cluster.progress import run, step

VERSION = "2026.3.0"
"""Of dask-kubernetes, and of distributed: the last one that still has the commands which dask-kubernetes runs."""
PACKAGES = (f"dask-kubernetes=={VERSION}", f"distributed=={VERSION}", f"dask[complete]=={VERSION}", "lz4")
IMAGE = f"daskfleet/benchmark-dask-kubernetes:{VERSION}"
HOME = tools.CACHE / "benchmarks" / "dask-kubernetes"
NAMESPACE = "dask-operator"
NAME = "dask-kubernetes-operator"


def python() -> Path:
    """The Python of the client's own environment, made on first use."""
    path = HOME / "bin" / "python"
    if not (HOME / "requirements.txt").exists():
        with step(f"installing dask-kubernetes {VERSION} into an environment of its own"):
            run([sys.executable, "-m", "venv", "--clear", HOME])
            run([path, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES], timeout=1200)
            (HOME / "requirements.txt").write_text(run([path, "-m", "pip", "freeze"]))
    return path


def build_image(builder: str) -> None:
    """An image of the same packages, in the same versions as the client's."""
    python()
    if images.inspect(IMAGE, builder):
        return
    base = images.base_image(builder)
    with (
        step(f"building {IMAGE}"),
        images.build_secrets() as secrets,
        tempfile.TemporaryDirectory() as folder,
    ):
        shutil.copy(Path(__file__).with_name("Containerfile"), folder)
        shutil.copy(HOME / "requirements.txt", folder)
        arguments = ["--build-arg", f"BASE={base}", "-f", "Containerfile", "-t", IMAGE]
        for name, path in secrets.items():
            arguments += ["--secret", f"id={name},src={path}"]
        run(images.build_command(builder, arguments), cwd=Path(folder), env={"DOCKER_BUILDKIT": "1"}, timeout=1800)


def install(cluster: Cluster) -> None:
    """Bring image, custom resources and operator into the cluster; ready on return."""
    build_image(cluster.builder)
    found = images.inspect(IMAGE, cluster.builder)
    if not cluster.has(IMAGE, found["id"] if found else ""):
        with step(f"loading {IMAGE}"):
            cluster.load([IMAGE])
    with step("starting dask-kubernetes' operator"):
        definitions = ["-f", str(_package() / "operator/deployment/helm/dask-kubernetes-operator/crds")]
        cluster.kubectl("apply", "--server-side", *definitions)
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *definitions)
        cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(_manifests()))
        cluster.kubectl("-n", NAMESPACE, "rollout", "status", "deployment", NAME, "--timeout=90s")


def uninstall(cluster: Cluster) -> None:
    """Take all of it out again, with every resource of its kinds."""
    with step("removing dask-kubernetes' operator"):
        cluster.kubectl(
            "delete", "--ignore-not-found", "--timeout=60s", "-f", "-", input=yaml.safe_dump_all(_manifests())
        )
        definitions = str(_package() / "operator/deployment/helm/dask-kubernetes-operator/crds")
        cluster.kubectl("delete", "--ignore-not-found", "--timeout=60s", "-f", definitions)


def _package() -> Path:
    script = "import importlib.util as u; print(u.find_spec('dask_kubernetes').submodule_search_locations[0])"
    return Path(run([python(), "-c", script]).strip())


def _rules() -> list[dict[str, Any]]:
    template = _package() / "operator/deployment/helm/dask-kubernetes-operator/templates/clusterrole.yaml"
    lines = [line for line in template.read_text().splitlines() if "{{" not in line]
    rules: list[dict[str, Any]] = yaml.safe_load("\n".join(lines))["rules"]
    return rules


def _manifests() -> list[dict[str, Any]]:
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}
    group = "rbac.authorization.k8s.io"
    operator = {
        "name": NAME,
        "image": IMAGE,
        "command": ["kopf", "run", "-m", "dask_kubernetes.operator.controller"],
        "args": ["--liveness=http://0.0.0.0:8080/healthz", "--all-namespaces"],
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "timeoutSeconds": 5},
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
        "securityContext": {
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
        },
    }
    labels = {"app.kubernetes.io/name": NAME}
    deployment = {
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"serviceAccountName": NAME, "containers": [operator]}},
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": NAMESPACE}},
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": NAME}, "rules": _rules()},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": NAME},
            "subjects": [account],
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": deployment,
        },
    ]
