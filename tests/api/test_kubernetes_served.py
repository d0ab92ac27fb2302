"""The Kubernetes that the other tests use is a real one."""

import json

from tests.cluster import Cluster


def test_a_node_is_ready(kubernetes_api: Cluster) -> None:
    nodes = json.loads(kubernetes_api.kubectl("get", "nodes", "-o", "json"))["items"]
    ready = [
        condition["status"]
        for node in nodes
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready"
    ]
    assert ready and set(ready) == {"True"}


def test_our_resources_are_served(kubernetes_api: Cluster) -> None:
    served = kubernetes_api.kubectl("api-resources", "--api-group=kubernetes.dask.org", "-o", "name").split()
    assert {name.partition(".")[0] for name in served} >= {"daskclusters", "daskworkergroups"}


def test_a_namespace_is_ready_for_pods(kubernetes_api: Cluster, namespace: str) -> None:
    accounts = kubernetes_api.kubectl("get", "serviceaccounts", "-n", namespace, "-o", "name").split()
    assert "serviceaccount/default" in accounts
