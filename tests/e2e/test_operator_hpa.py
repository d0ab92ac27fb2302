"""A HorizontalPodAutoscaler of Kubernetes' own sizes a worker group by a metric of the cluster's real scheduler."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from daskfleet import KubeCluster
from daskfleet.deploy.kubernetes.spec import DEFAULT_IMAGE
from daskfleet_operator import certificates
from operator_bed import Json, Namespace, eventually

METRIC = "dask_scheduler_desired_workers"
API = "external.metrics.k8s.io"

# What a Prometheus adapter is to an HPA, without a Prometheus between: each question is put to the scheduler.
ADAPTER = """
import datetime, http.server, json, ssl, sys, urllib.request
API, SCHEDULER = sys.argv[1:]
class Adapter(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0].strip("/").split("/")
        if path == ["apis", *API.split("/")]:
            answer = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API, "resources": []}
        elif path[:4] == ["apis", *API.split("/"), "namespaces"]:
            text = urllib.request.urlopen(SCHEDULER + "/metrics", timeout=5).read().decode()
            (value,) = [line.split()[1] for line in text.splitlines() if line.startswith(path[5] + " ")]
            now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            item = {"metricName": path[5], "metricLabels": {}, "timestamp": now, "value": str(round(float(value)))}
            answer = {"kind": "ExternalMetricValueList", "apiVersion": API, "metadata": {}, "items": [item]}
        else:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())
server = http.server.ThreadingHTTPServer(("", 8443), Adapter)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/keys/tls.crt", "/keys/tls.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@contextmanager
def metrics_served(lab: Namespace, scheduler: str) -> Iterator[None]:
    """The scheduler's metrics as Kubernetes' external metrics, by the API server's aggregation of APIs."""
    keys = certificates.make("metrics", [f"metrics.{lab.name}.svc"], {})
    encoded = {name: base64.b64encode(content).decode() for name, content in keys.items()}
    container = {
        "name": "adapter",
        "image": DEFAULT_IMAGE,
        "command": ["python3", "-c", ADAPTER, f"{API}/v1beta1", f"http://{scheduler}:8787"],
        "volumeMounts": [{"name": "keys", "mountPath": "/keys"}],
        "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
    }
    volume = {"name": "keys", "secret": {"secretName": "metrics"}}
    pod = {"terminationGracePeriodSeconds": 0, "containers": [container], "volumes": [volume]}
    ports = {"selector": {"app": "metrics"}, "ports": [{"port": 443, "targetPort": 8443}]}
    lab.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "metrics"}, "data": encoded})
    lab.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "metrics"}, "spec": ports})
    metadata = {"name": "metrics", "labels": {"app": "metrics"}}
    lab.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod})
    lab.kubectl("wait", "--for=condition=Ready", "pod/metrics", "--timeout=180s")
    service = {"name": "metrics", "namespace": lab.name}
    spec = {"service": service, "group": API, "version": "v1beta1", "caBundle": encoded["ca.crt"]}
    priorities = {"groupPriorityMinimum": 100, "versionPriority": 100}
    head = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": f"v1beta1.{API}"}}
    try:
        lab.cluster.kubectl("create", "-f", "-", input=json.dumps({**head, "spec": spec | priorities}))
        lab.cluster.kubectl("wait", "--for=condition=Available", f"apiservice/v1beta1.{API}", "--timeout=180s")
        yield
    finally:  # before its server goes: namespaces are not deleted while an API of theirs is silent
        lab.cluster.kubectl("delete", "apiservice", f"v1beta1.{API}", "--ignore-not-found", "--timeout=240s")


def test_a_horizontal_pod_autoscaler_follows_the_schedulers_metric(operator_in_cluster: Any, namespace: str) -> None:
    lab = Namespace(operator_in_cluster, namespace)
    if f"v1beta1.{API}" in operator_in_cluster.kubectl("get", "apiservices", "-o", "name"):
        pytest.skip(f"this cluster serves {API} already")
    target = {"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskWorkerGroup", "name": "driven-default"}
    metric: Json = {"metric": {"name": METRIC}, "target": {"type": "AverageValue", "averageValue": "1"}}
    at_once = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    spec = {"scaleTargetRef": target, "metrics": [{"type": "External", "external": metric}], "behavior": at_once}
    head = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "driven"}}
    made = KubeCluster(name="driven", namespace=lab.name, n_workers=1, quiet=True)
    with made as fleet, fleet.get_client() as client, metrics_served(lab, f"driven-scheduler.{lab.name}"):
        lab.apply({**head, "spec": {**spec, "minReplicas": 1, "maxReplicas": 3}})
        work = client.map(time.sleep, [1] * 100, pure=False)
        eventually(lambda: len(lab.workers("driven-default")) == 3, "as many workers as its maximum", 240)
        active = eventually(lambda: lab.condition("hpa", "driven", "ScalingActive"), "its condition")
        assert (active["status"], active["reason"]) == ("True", "ValidMetricFound"), active
        path = f"/apis/kubernetes.dask.org/v1/namespaces/{lab.name}/daskworkergroups/driven-default/scale"
        selector = json.loads(lab.kubectl("get", "--raw", path))["status"]["selector"]
        selected = {pod["metadata"]["uid"] for pod in lab.items("pods", selector)}
        assert selected >= {pod["metadata"]["uid"] for pod in lab.workers("driven-default")}
        client.cancel(work)
        eventually(lambda: len(lab.workers("driven-default")) == 1, "as many workers as its minimum", 240)
