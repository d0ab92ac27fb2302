"""``spec.security.tls``: encrypted from the first byte, and certificates that change under running work."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from daskfleet import Client, KubeCluster, Security
from operator_bed import Namespace, eventually

AUTHORITY = "DASK_DISTRIBUTED__COMM__TLS__CA_FILE"
SMALL = {"requests": {"cpu": "20m", "memory": "128Mi"}}


def test_work_under_certificates_and_while_they_change(operator_in_cluster: Any, namespace: str) -> None:
    lab = Namespace(operator_in_cluster, namespace)

    def secrets() -> set[str]:
        """Those that the pods which are there have their certificates from."""
        pods = [pod for pod in lab.items("pods") if "deletionTimestamp" not in pod["metadata"]]
        variables = [item for pod in pods for item in pod["spec"]["containers"][0]["env"] if item["name"] == AUTHORITY]
        assert len(variables) == len(pods)
        return {item["valueFrom"]["secretKeyRef"]["name"] for item in variables}

    with KubeCluster(name="shut", namespace=namespace, n_workers=2, resources=SMALL) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        with cluster.get_client() as client:
            cluster.wait_for_workers(2, timeout=180)
            assert all(address.startswith("tls://") for address in client.scheduler_info()["workers"])
            assert secrets() == {"shut-tls"}
            before = lab.get("secret", "shut-tls")["data"]
            lab.kubectl("delete", "secret", "shut-tls")
            cluster.scale(3)
            cluster.wait_for_workers(3, timeout=180)  # a newcomer needs the Secret, and is understood
            assert lab.get("secret", "shut-tls")["data"] == before
            cluster.scale(2)
            kept = client.scatter([[item] for item in range(20)])  # nothing could compute these again
            lab.kubectl("annotate", "daskcluster", "shut", "kubernetes.dask.org/rotate-tls=1")
            rotated = eventually(lambda: len(found := secrets() - {"shut-tls"}) == 1 and found, "new ones", 180)
            eventually(lambda: secrets() == rotated, "all pods with the new certificates", 240)
            cluster.wait_for_workers(2, timeout=180)
            assert client.gather(kept) == [[item] for item in range(20)]
            assert client.submit(sum, [1, 2, 3]).result(timeout=180) == 6
        (made,) = rotated
        assert [owner["kind"] for owner in lab.get("secret", made)["metadata"]["ownerReferences"]] == ["DaskCluster"]
        stranger = Security(token=cluster.security.token)
        plain = cluster.scheduler_address.replace("tls://", "tcp://")
        with pytest.raises((OSError, TimeoutError, ssl.SSLError)):
            Client(plain, security=stranger, timeout=3)
