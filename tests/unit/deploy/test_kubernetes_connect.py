"""Where a scheduler is reached: decided from what is known, without trying."""

import pytest
from daskfleet.deploy.kubernetes.connect import in_cluster_endpoint, inside, outside_endpoint

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("environment", "facts", "expected"),
    [
        ({}, {"api_host": "https://10.0.0.1", "in_cluster_credentials": False}, False),
        (POD, {"api_host": "https://10.0.0.1:443", "in_cluster_credentials": True}, True),
        (POD, {"api_host": "https://10.0.0.1:443", "in_cluster_credentials": False}, True),
        (POD, {"api_host": "https://kubernetes.default.svc", "in_cluster_credentials": False}, True),
        (POD, {"api_host": "https://other.example", "in_cluster_credentials": False}, False),
        (POD, {"api_host": "https://lb.example", "in_cluster_credentials": False, "ca": b"A\n", "pod_ca": b"A"}, True),
        (POD, {"api_host": "https://lb.example", "in_cluster_credentials": False, "ca": b"A", "pod_ca": b"B"}, False),
        (POD, {"api_host": "https://lb.example", "in_cluster_credentials": False, "ca": b"A"}, False),
    ],
)
def test_inside_means_in_a_pod_of_the_cluster_that_is_talked_to(environment, facts, expected):
    assert inside(environment, **facts) is expected


def test_inside_the_name_does_not_depend_on_the_cluster_domain():
    assert in_cluster_endpoint("c-scheduler", "ns").host == "c-scheduler.ns.svc"


def service(kind, ingress=None):
    ports = [
        {"name": "tcp-comm", "port": 8786, "nodePort": 30786},
        {"name": "http-dashboard", "port": 80, "nodePort": 30787},
    ]
    return {"spec": {"type": kind, "ports": ports}, "status": {"loadBalancer": {"ingress": ingress or []}}}


def node(ready, **addresses):
    return {
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "addresses": [{"type": kind, "address": address} for kind, address in addresses.items()],
        }
    }


def test_a_load_balancer_is_used_once_it_has_an_address():
    assert outside_endpoint(service("LoadBalancer"), []) is None
    by_name = outside_endpoint(service("LoadBalancer", [{"hostname": "lb.example"}]), [])
    assert (by_name.host, by_name.comm_port, by_name.http_port) == ("lb.example", 8786, 80)
    assert outside_endpoint(service("LoadBalancer", [{"ip": "1.2.3.4"}]), []).host == "1.2.3.4"


def test_a_node_port_needs_a_ready_node_and_prefers_its_external_address():
    nodes = [node(False, ExternalIP="9.9.9.9"), node(True, InternalIP="10.1.1.1"), node(True, ExternalIP="1.1.1.1")]
    found = outside_endpoint(service("NodePort"), nodes)
    assert (found.host, found.comm_port, found.http_port) == ("1.1.1.1", 30786, 30787)
    assert outside_endpoint(service("NodePort"), nodes[:1]) is None


def test_a_cluster_ip_has_no_address_outside():
    assert outside_endpoint(service("ClusterIP"), [node(True, InternalIP="10.1.1.1")]) is None
