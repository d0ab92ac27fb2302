"""The operator's chart on a real cluster, for one namespace: installed, at work, upgraded, uninstalled.

Beside it a release of the fixed cluster's chart, which this operator scales: the walk of the README.
"""

import json
from typing import Any

import pytest
from daskfleet import KubeCluster
from helm_bed import CHARTS, Helm, Refused, left_in

from tests.cluster import Cluster

CHART = str(CHARTS / "daskfleet-operator")
SMALL = {"requests": {"cpu": "20m", "memory": "128Mi"}}
DEFINITION = ("crd", "daskautoscalers.kubernetes.dask.org")


def assert_the_policy_fits(cluster: Cluster, namespace: str, clusters: list[str]) -> None:
    """The operator's NetworkPolicy is of its pod alone, and lets it go where the API server and the schedulers are.

    Whether a policy is obeyed is the network plugin's affair, and that of the node from source has no policies.
    """

    def get(*words: str) -> list[dict[str, Any]]:
        return json.loads(cluster.kubectl("get", *words, "-o", "json"))["items"]

    def pods(selector: dict[str, Any]) -> list[dict[str, Any]]:
        labels = ",".join(f"{label}={value}" for label, value in selector["matchLabels"].items())
        return get("pods", "-n", namespace, "-l", labels, "--field-selector=status.phase=Running")

    def ports(pod: dict[str, Any]) -> set[int]:
        return {port["containerPort"] for one in pod["spec"]["containers"] for port in one.get("ports", ())}

    ((policy,),) = [[item["spec"] for item in get("networkpolicies", "-n", namespace)]]
    (operator,) = pods(policy["podSelector"])
    assert operator["spec"]["serviceAccountName"] == "op"
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == ports(operator)
    _, servers, schedulers = policy["egress"]
    (service,) = get("endpointslices", "-n", "default", "-l", "kubernetes.io/service-name=kubernetes")
    assert {port["port"] for port in service["ports"]} <= {port["port"] for port in servers["ports"]}
    (peer,), (port,) = schedulers["to"], schedulers["ports"]
    assert peer["namespaceSelector"] == {}
    reached = pods(peer["podSelector"])
    assert sorted(pod["metadata"]["labels"]["dask.org/cluster-name"] for pod in reached) == clusters
    assert all(port["port"] in ports(pod) for pod in reached)


def test_installed_at_work_upgraded_uninstalled(helm: str, cluster_with_images: Cluster, namespace: str) -> None:
    kubectl = cluster_with_images.kubectl
    charted = Helm(helm, cluster_with_images, namespace)

    def categories() -> list[str]:
        return json.loads(kubectl("get", *DEFINITION, "-o", "json"))["spec"]["names"]["categories"]

    values = {"rbac": {"cluster": False}, "fullnameOverride": "op", "networkPolicy": {"enabled": True}}
    notes = charted("install", "op", CHART, "--wait", "--timeout=360s", values=values)
    assert f"serves the namespace {namespace}." in notes
    kubectl(*notes.split("  kubectl ")[1].splitlines()[0].split())  # the first command in the notes
    assert not {name for name in left_in(cluster_with_images, namespace) if "crds" in name}
    workers = {"replicas": 1, "resources": SMALL, "threads_per_worker": 1}
    small = {"jupyter": {"enabled": False}, "scheduler": {"resources": SMALL}, "worker": workers}
    charted("install", "mine", str(CHARTS / "daskfleet"), values=small)
    making = KubeCluster(name="one", namespace=namespace, n_workers=1, resources=SMALL)
    with making as cluster, cluster.get_client() as client:
        assert client.submit(sum, [1, 2, 3]).result(timeout=180) == 6
        with KubeCluster(name=f"{namespace}/mine") as release:
            assert release.adapt(minimum=2, maximum=3) is None  # the operator's, and not this session's
            release.wait_for_workers(2, timeout=180)
            assert_the_policy_fits(cluster_with_images, namespace, ["mine", "one"])
        charted("uninstall", "mine")
        # Somebody has an old definition: an upgrade mends it, and the cluster does not notice.
        old = [{"op": "replace", "path": "/spec/names/categories", "value": ["dask", "old"]}]
        kubectl("patch", *DEFINITION, "--type=json", "-p", json.dumps(old))
        charted(
            "upgrade",
            "op",
            CHART,
            "--wait",
            "--timeout=360s",
            values=values | {"replicaCount": 2, "rbac": {"cluster": True}},
        )
        assert categories() == ["dask"]
        cluster.scale(2)
        cluster.wait_for_workers(2, timeout=180)
        assert client.submit(sum, [1, 2, 3, 4]).result(timeout=180) == 10
        charted("uninstall", "op", "--wait")
        assert client.submit(sum, [5, 5]).result(timeout=180) == 10  # clusters stay
    assert categories() == ["dask"]  # and so do the definitions
    kubectl("-n", namespace, "wait", "--for=delete", "pods", "--all", "--timeout=180s")
    assert left_in(cluster_with_images, namespace) <= {"lease.coordination.k8s.io/daskfleet-operator"}
    everywhere = kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
    assert not {"clusterrole.rbac.authorization.k8s.io/op", "clusterrolebinding.rbac.authorization.k8s.io/op"} & set(
        everywhere.split()
    )


def test_wrong_values_install_nothing(helm: str, kubernetes_api: Cluster, namespace: str) -> None:
    charted = Helm(helm, kubernetes_api, namespace)
    with pytest.raises(Refused, match="at '/replicaCount': got string, want integer"):
        charted("install", "op", CHART, values={"replicaCount": "two"})
    assert left_in(kubernetes_api, namespace) == set()
