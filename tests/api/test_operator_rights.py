"""operator/deploy: the ServiceAccounts' rights are enough for all the operator does, and no more than the files say."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from operator_bed import Json, Namespace, cluster_manifest, eventually, operator

DEPLOY = Path(__file__).parents[2] / "operator" / "deploy"
ACCOUNT = "daskfleet-operator"


def rights(manifest: Path) -> str:
    """The manifest without its Deployment: the operator runs here, as that account."""
    documents = [item for item in yaml.safe_load_all(manifest.read_text()) if item["kind"] != "Deployment"]
    return yaml.safe_dump_all(documents)


def kubeconfig_of(cluster: Any, namespace: str, path: Path) -> Path:
    """A kubeconfig that is this ServiceAccount and nothing else."""
    config = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    token = cluster.kubectl("-n", namespace, "create", "token", ACCOUNT, "--duration=1h").strip()
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def cluster_wide(kubernetes_api: Any, namespace: str, tmp_path: Path) -> Iterator[Path]:
    """The rights of 20-rbac.yaml for an account in the test's own namespace, under names of the test's own."""
    text = rights(DEPLOY / "20-rbac.yaml").replace("daskfleet-system", namespace)
    documents = list(yaml.safe_load_all(text))
    for document in documents:
        if document["kind"].startswith("ClusterRole"):
            document["metadata"]["name"] += f"-{namespace}"
            if "roleRef" in document:
                document["roleRef"]["name"] += f"-{namespace}"
    made = yaml.safe_dump_all(documents)
    kubernetes_api.kubectl("apply", "-f", "-", input=made)
    yield kubeconfig_of(kubernetes_api, namespace, tmp_path / "kubeconfig")
    kubernetes_api.kubectl("delete", "-f", "-", "--ignore-not-found", "--wait=false", input=made)


@pytest.fixture
def single_namespace(kubernetes_api: Any, namespace: str, tmp_path: Path) -> Path:
    made = rights(DEPLOY / "single-namespace" / "operator.yaml")
    kubernetes_api.kubectl("-n", namespace, "apply", "-f", "-", input=made)
    return kubeconfig_of(kubernetes_api, namespace, tmp_path / "kubeconfig")


def life_of_a_cluster(lab: Namespace) -> None:
    """Everything that asks for a right: make, scale both ways, adopt, edit, report, a job, deletion of a pod."""
    lab.apply(cluster_manifest("rights", 2))
    eventually(lambda: len(lab.workers("rights-default")) == 2, "two workers")
    lab.kubectl("scale", "daskworkergroup", "rights-default", "--replicas=1")
    eventually(lambda: len(lab.workers("rights-default")) == 1, "one worker")
    edited = cluster_manifest("rights", 2, image="example.invalid/other:1")
    edited["spec"]["scheduler"]["service"]["ports"].append({"name": "more", "port": 9000})
    lab.apply(edited)
    eventually(lambda: len(lab.get("service", "rights-scheduler")["spec"]["ports"]) == 3, "the edited Service")
    eventually(
        lambda: (
            lab.get("deployment", "rights-scheduler")["spec"]["template"]["spec"]["containers"][0]["image"]
            == "example.invalid/other:1"
        ),
        "the edited scheduler",
    )
    spec = {"cluster": "rights", "minimum": 0, "maximum": 3}
    head = {"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskAutoscaler", "metadata": {"name": "rights"}}
    lab.apply({**head, "spec": spec})
    eventually(lambda: lab.condition("daskautoscaler", "rights", "Ready"), "the autoscaler's status")
    eventually(lambda: "ImagePullFailed" in lab.events("rights"), "an event")
    adoption(lab)
    container = {"containers": [{"name": "job", "image": "example.invalid/nothing:1"}]}
    job = {"job": {"spec": container}, "cluster": {"spec": cluster_manifest("work")["spec"]}}
    head = {"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskJob", "metadata": {"name": "work"}}
    lab.apply({**head, "spec": job})
    eventually(lambda: lab.get("pod", "work-runner"), "the runner")
    lab.kubectl("patch", "djb", "work", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    eventually(lambda: not lab.get("dsk", "work"), "the suspended job's cluster to go")


def adoption(lab: Namespace) -> None:
    """Deployments labelled as dask's own chart labels them are scaled up, down and given back."""
    for component, replicas in (("scheduler", 1), ("worker", 2)):
        lab.apply(deployment(component, replicas))
    groups = [{"name": "default", "deployment": "rel-dask-worker"}]
    spec = {"adopt": {"scheduler": "rel-dask-scheduler", "workerGroups": groups}}
    head = {"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskCluster", "metadata": {"name": "rel"}}
    lab.apply({**head, "spec": spec})

    def replicas() -> int:
        return int(lab.get("deployment", "rel-dask-worker")["spec"]["replicas"])

    eventually(lambda: len(lab.workers("rel-default")) == 2, "the pods' labels")
    for size in (3, 1):
        lab.kubectl("scale", "daskworkergroup", "rel-default", f"--replicas={size}")
        eventually(lambda size=size: replicas() == size, f"{size} replicas")  # type: ignore[misc]
    lab.kubectl("delete", "daskcluster", "rel")
    eventually(
        lambda: (
            "annotations" in (meta := lab.get("deployment", "rel-dask-worker")["metadata"])
            and "kubernetes.dask.org/adopted-by" not in meta["annotations"]
        ),
        "the Deployment given back",
    )
    assert replicas() == 1


def deployment(component: str, replicas: int) -> Json:
    labels = {"app": "dask", "release": "rel", "component": component}
    pods = {"containers": [{"name": "main", "image": "example.invalid/nothing:1"}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"rel-dask-{component}", "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pods},
        },
    }


def forbidden(output: str) -> list[str]:
    """What it was refused for want of rights; in a namespace that goes, nobody may make anything."""
    # What other tests leave, bad templates among it; and that somebody else's edit was quicker.
    others = ("is being terminated", "refused Template/", "409 Conflict: Operation cannot be fulfilled")
    lines = [line for line in output.splitlines() if not any(reason in line for reason in others)]
    return [line for line in lines if "forbidden" in line.lower() or "cannot" in line]


def test_cluster_wide_rights_are_enough(kubernetes_api: Any, cluster_wide: Path, namespace: str) -> None:
    # `--namespace` is not given: it watches everything, and must not touch what others run here
    with operator(cluster_wide, "--leader-elect", "--lease-namespace", namespace) as process:
        life_of_a_cluster(Namespace(kubernetes_api, namespace))
        assert forbidden(process.output()) == []


def test_rights_in_one_namespace_are_enough(kubernetes_api: Any, single_namespace: Path, namespace: str) -> None:
    lab = Namespace(kubernetes_api, namespace)
    options = ("--namespace", namespace, "--leader-elect", "--lease-namespace", namespace)
    with operator(single_namespace, *options) as process:
        life_of_a_cluster(lab)
        assert forbidden(process.output()) == []


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("list", "secrets"),
        ("watch", "secrets"),
        ("update", "secrets"),
        ("delete", "services"),
        ("get", "nodes"),
        ("create", "pods --subresource=exec"),
        ("create", "rolebindings.rbac.authorization.k8s.io"),
        ("create", "serviceaccounts --subresource=token"),
    ],
)
def test_rights_that_it_must_not_have(cluster_wide: Path, namespace: str, verb: str, resource: str) -> None:
    command = ["kubectl", f"--kubeconfig={cluster_wide}", "-n", namespace, "auth", "can-i", verb, *resource.split()]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.stdout.strip().startswith("no"), answer.stderr


@pytest.mark.parametrize("account", ["cluster_wide", "single_namespace"])
def test_rights_that_nothing_above_asks_for(request: pytest.FixtureRequest, account: str, namespace: str) -> None:
    """No job ends here, as no pod runs; and not every API server asks whether an owner may be named."""
    kubeconfig = request.getfixturevalue(account)
    owners = ("daskclusters", "daskworkergroups", "daskjobs")
    for words in (["delete", "daskjobs"], *(["update", kind, "--subresource=finalizers"] for kind in owners)):
        command = ["kubectl", f"--kubeconfig={kubeconfig}", "-n", namespace, "auth", "can-i", *words]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        assert answer.stdout.strip() == "yes", (words, answer.stderr)


def test_one_namespace_means_one(single_namespace: Path) -> None:
    command = ["kubectl", f"--kubeconfig={single_namespace}", "-n", "default", "auth", "can-i", "list", "pods"]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "no"
