"""Clusters that no operator made: plain Deployments, labelled as daskfleet's chart and as dask's own chart do it."""

import functools
import json
import secrets
import time

import kubeclusters as bed
import pytest
from daskfleet import HelmCluster, KubeCluster
from daskfleet.deploy.adaptive import Adaptive
from daskfleet.deploy.discovery import find_cluster
from daskfleet.deploy.kubernetes import ClusterNotFound, KubernetesError, adoption

from tests.eventual import eventually

square = functools.partial(pow, exp=2)  # a function that pods have, too


@pytest.fixture(params=sorted(bed.LABELS))
def release(request, cluster_with_images, namespace):
    """Install a scheduler and two workers as a chart would; return the release's name."""
    name, labels = "rel", bed.LABELS[request.param]
    token = [{"name": "DASKFLEET_TOKEN", "value": secrets.token_hex(32)}]
    items = [
        bed.deployment(f"{name}-scheduler", labels(name, "scheduler"), ["dask-scheduler"], token),
        bed.deployment(f"{name}-worker", labels(name, "worker"), ["dask-worker"], token + bed.address(namespace), 2),
        bed.service(f"{name}-scheduler", labels(name, "scheduler")),
    ]
    listing = {"apiVersion": "v1", "kind": "List", "items": items}
    cluster_with_images.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(listing))
    return name


def test_it_is_found_scaled_without_loss_adapted_and_never_deleted(
    release, namespace, cluster_with_images, monkeypatch, caplog
):
    kubectl = cluster_with_images.kubectl

    def replicas():
        listing = json.loads(kubectl("-n", namespace, "get", "deployment", f"{release}-worker", "-o", "json"))
        return listing["spec"]["replicas"]

    with KubeCluster(name=release, namespace=namespace) as cluster, cluster.get_client() as client:
        cluster.wait_for_workers(2, timeout=120)
        assert client.submit(square, 6).result() == 36
        cluster.scale(4)
        cluster.wait_for_workers(4, timeout=120)
        found = find_cluster(release, namespace)
        assert (found.made_by, found.status, found.workers) == ("Helm", "Running", 4)
        with pytest.raises(KubernetesError, match=f"helm uninstall {release} --namespace {namespace}"):
            found.delete()
        kept = client.scatter([[i] for i in range(40)])  # nothing could compute these again
        cluster.scale(1)
        eventually(lambda: len(cluster.requested) == 1 and len(cluster.scheduler_info["workers"]) == 1)
        assert client.gather(kept) == [[i] for i in range(40)]
        monkeypatch.setattr(adoption, "PATIENCE", 1.0)  # no operator is there, and none will come
        assert isinstance(cluster.adapt(minimum=1, maximum=1), Adaptive)
        assert "from this session, and only as long: no operator took notice" in caplog.text
        assert not kubectl("-n", namespace, "get", "daskclusters,daskautoscalers", "-o", "name").strip()
        adaptive = cluster.adapt(minimum=0, maximum=3, interval=0.1, wait_count=2)
        futures = client.map(time.sleep, [2 + i / 1000 for i in range(30)])
        eventually(lambda: replicas() == 3)
        client.cancel(futures)
        del futures, kept
        eventually(lambda: replicas() == 0)
        adaptive.stop()
        logs = cluster.get_logs()
        assert any(name.startswith(f"{release}-scheduler") for name in logs)
    assert replicas() == 0  # closed, and still there
    with HelmCluster(release, namespace) as again:
        assert again.scheduler_address.startswith("tcp://127.0.0.1:")
    assert replicas() == 0
    with pytest.raises(ClusterNotFound, match=f"there is no cluster 'nosuch'.*; there are: {release}"):
        HelmCluster("nosuch", namespace)
