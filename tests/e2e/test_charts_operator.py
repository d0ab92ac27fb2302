"""The operator's chart on a real cluster, for one namespace: installed, at work, upgraded, uninstalled.

Beside it a release of the fixed cluster's chart, which this operator scales: the walk of the README.
"""

import json

import pytest
from daskfleet import KubeCluster
from helm_bed import CHARTS, Helm, Refused, left_in

from tests.cluster import Cluster

CHART = str(CHARTS / "daskfleet-operator")
SMALL = {"requests": {"cpu": "20m", "memory": "128Mi"}}
DEFINITION = ("crd", "daskautoscalers.kubernetes.dask.org")


@pytest.mark.timeout(400)
def test_installed_at_work_upgraded_uninstalled(helm: str, cluster_with_images: Cluster, namespace: str) -> None:
    kubectl = cluster_with_images.kubectl
    charted = Helm(helm, cluster_with_images, namespace)

    def categories() -> list[str]:
        return json.loads(kubectl("get", *DEFINITION, "-o", "json"))["spec"]["names"]["categories"]

    values = {"rbac": {"cluster": False}, "fullnameOverride": "op"}
    notes = charted("install", "op", CHART, "--wait", "--timeout=120s", values=values)
    assert f"serves the namespace {namespace}." in notes
    kubectl(*notes.split("  kubectl ")[1].splitlines()[0].split())  # the first command in the notes
    assert not {name for name in left_in(cluster_with_images, namespace) if "crds" in name}
    workers = {"replicas": 1, "resources": SMALL, "threads_per_worker": 1}
    small = {"jupyter": {"enabled": False}, "scheduler": {"resources": SMALL}, "worker": workers}
    charted("install", "mine", str(CHARTS / "daskfleet"), values=small)
    making = KubeCluster(name="one", namespace=namespace, n_workers=1, resources=SMALL)
    with making as cluster, cluster.get_client() as client:
        assert client.submit(sum, [1, 2, 3]).result(timeout=60) == 6
        with KubeCluster(name=f"{namespace}/mine") as release:
            assert release.adapt(minimum=2, maximum=3) is None  # the operator's, and not this session's
            release.wait_for_workers(2, timeout=60)
        charted("uninstall", "mine")
        # Somebody has an old definition: an upgrade mends it, and the cluster does not notice.
        old = [{"op": "replace", "path": "/spec/names/categories", "value": ["dask", "old"]}]
        kubectl("patch", *DEFINITION, "--type=json", "-p", json.dumps(old))
        charted(
            "upgrade",
            "op",
            CHART,
            "--wait",
            "--timeout=120s",
            values=values | {"replicaCount": 2, "rbac": {"cluster": True}},
        )
        assert categories() == ["dask"]
        cluster.scale(2)
        cluster.wait_for_workers(2, timeout=60)
        assert client.submit(sum, [1, 2, 3, 4]).result(timeout=60) == 10
        charted("uninstall", "op", "--wait")
        assert client.submit(sum, [5, 5]).result(timeout=60) == 10  # clusters stay
    assert categories() == ["dask"]  # and so do the definitions
    kubectl("-n", namespace, "wait", "--for=delete", "pods", "--all", "--timeout=60s")
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
