"""The fixed cluster's chart, as helm renders it. The defects of dask's own chart are named where one is tested for."""

import base64
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_rendering import FIXED, NAMESPACE, ROOT, container, environment, helm, pod, refusal, render, restricted

SERVICE = f"rel-scheduler.{NAMESPACE}.svc"
DASK = yaml.safe_load((Path(__file__).parent / "values_dask.yaml").read_text())


def test_helm_finds_nothing_to_complain_of() -> None:
    done = helm("lint", "--strict", FIXED)
    assert done.returncode == 0, done.stdout


def test_the_version_is_the_projects() -> None:
    chart = yaml.safe_load((FIXED / "Chart.yaml").read_text())
    version = (ROOT / "sdk/daskfleet/_version.py").read_text().split('"')[1]
    assert chart["version"] == chart["appVersion"] == version
    rendered = render(FIXED)
    images = {name: container(rendered["Deployment", f"rel-{name}"])["image"] for name in ("worker", "jupyter")}
    assert images == {"worker": f"daskfleet/runtime:{version}", "jupyter": f"daskfleet/notebook:{version}"}


def test_a_cluster_that_kubecluster_finds() -> None:
    rendered = render(FIXED)
    for component, name in (("scheduler", "scheduler"), ("worker", "worker"), ("jupyter", "jupyter")):
        deployment = rendered["Deployment", f"rel-{name}"]
        for labels in (deployment["metadata"]["labels"], deployment["spec"]["template"]["metadata"]["labels"]):
            assert labels["dask.org/cluster-name"] == "rel"
            assert labels["dask.org/component"] == component
    ports = {port["name"]: port["port"] for port in rendered["Service", "rel-scheduler"]["spec"]["ports"]}
    assert (ports["tcp-comm"], ports["http-dashboard"]) == (8786, 8787)
    assert rendered["Deployment", "rel-worker"]["spec"]["replicas"] == 3


def test_labels_of_dasks_chart() -> None:
    labels = render(FIXED)["Deployment", "rel-scheduler"]["metadata"]["labels"]
    assert (labels["app"], labels["release"], labels["component"]) == ("daskfleet", "rel", "scheduler")
    assert (labels["chart"], labels["heritage"]) == ("daskfleet-0.1.0", "Helm")


def test_everyone_gets_the_token_by_reference() -> None:
    rendered = render(FIXED)
    token = base64.b64decode(rendered["Secret", "rel-token"]["data"]["token"]).decode()
    assert re.fullmatch("[0-9a-f]{64}", token)
    wanted = {"secretKeyRef": {"name": "rel-token", "key": "token"}}
    for name in ("scheduler", "worker", "jupyter"):
        assert environment(rendered["Deployment", f"rel-{name}"])["DASKFLEET_TOKEN"] == wanted
    again = base64.b64decode(render(FIXED)["Secret", "rel-token"]["data"]["token"]).decode()
    assert again != token


def test_a_secret_of_the_users_own() -> None:
    rendered = render(FIXED, {"token": {"existingSecret": "mine"}})
    assert ("Secret", "rel-token") not in rendered
    found = environment(rendered["Deployment", "rel-worker"])["DASKFLEET_TOKEN"]
    assert found["secretKeyRef"]["name"] == "mine"


def test_every_pod_is_restricted_probed_and_knows_no_api_server() -> None:
    rendered = render(FIXED, {"tls": {"enabled": True}})
    for (kind, name), deployment in rendered.items():
        if kind == "Deployment":
            restricted(pod(deployment))
            assert container(deployment)["readinessProbe"]
            assert pod(deployment)["automountServiceAccountToken"] is (name == "rel-jupyter")
    restricted(rendered["Pod", "rel-test"]["spec"])
    assert container(rendered["Deployment", "rel-scheduler"])["livenessProbe"]["httpGet"]["path"] == "/health"


def test_workers_are_named_after_their_pods() -> None:
    """Defect: workers get no --name."""
    worker = render(FIXED)["Deployment", "rel-worker"]
    assert "--name=$(DASK_WORKER_NAME)" in container(worker)["args"]
    assert environment(worker)["DASK_WORKER_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert environment(worker)["DASK_SCHEDULER_ADDRESS"] == f"tcp://{SERVICE}:8786"


def test_another_service_port_leads_to_the_scheduler() -> None:
    """Defect: the scheduler listens on servicePort while targetPort is fixed at 8786."""
    rendered = render(FIXED, {"scheduler": {"servicePort": 443}})
    scheduler = container(rendered["Deployment", "rel-scheduler"])
    ports = {port["name"]: port for port in rendered["Service", "rel-scheduler"]["spec"]["ports"]}
    listening = {port["name"]: port["containerPort"] for port in scheduler["ports"]}
    assert f"--port={listening[ports['tcp-comm']['targetPort']]}" in scheduler["args"]
    assert ports["tcp-comm"]["port"] == 443
    assert environment(rendered["Deployment", "rel-worker"])["DASK_SCHEDULER_ADDRESS"] == f"tcp://{SERVICE}:443"


def test_groups_of_workers_are_told_apart_and_inherit() -> None:
    """Defect: additional worker groups share the default group's matchLabels and ignore its probes."""
    group = {"name": "high-mem", "replicas": 1, "resources": {"limits": {"memory": "32G"}}}
    default = {"resources": {"limits": {"cpu": "1500m", "memory": "1G"}}, "readinessProbe": {"periodSeconds": 7}}
    rendered = render(FIXED, {"worker": default, "additional_worker_groups": [group]})
    first, second = rendered["Deployment", "rel-worker"], rendered["Deployment", "rel-worker-high-mem"]
    for one, other in ((first, second), (second, first)):
        selector = one["spec"]["selector"]["matchLabels"]
        assert selector.items() <= one["spec"]["template"]["metadata"]["labels"].items()
        assert not selector.items() <= other["spec"]["template"]["metadata"]["labels"].items()
    assert [d["metadata"]["labels"]["dask.org/workergroup-name"] for d in (first, second)] == [
        "rel-default",
        "rel-high-mem",
    ]
    assert container(second)["readinessProbe"] == container(first)["readinessProbe"]
    assert container(second)["readinessProbe"]["periodSeconds"] == 7
    assert {"--nthreads=2", "--memory-limit=1G"} <= set(container(first)["args"])
    assert {"--nthreads=2", "--memory-limit=32G"} <= set(container(second)["args"])
    assert second["spec"]["replicas"] == 1


def test_two_releases_share_no_name() -> None:
    """Defect: a fixed ServiceAccount name, so two releases in a namespace collide."""
    values = {"webUI": {"ingress": {"enabled": True}}, "jupyter": {"ingress": {"enabled": True}}}
    values |= {"tls": {"enabled": True}, "networkPolicy": {"enabled": True}}
    first, second = render(FIXED, values, "one"), render(FIXED, values, "another")
    assert not first.keys() & second.keys()
    for found in first.values():
        assert "another" not in yaml.safe_dump(found)


def test_monitors() -> None:
    """Defects: PodMonitor reads targetLabels, and ServiceMonitor's metricRelabelings cannot render."""
    rendered = render(FIXED, DASK)
    workers, scheduler = rendered["PodMonitor", "rel-worker"], rendered["ServiceMonitor", "rel-scheduler"]
    assert workers["spec"]["podTargetLabels"] == ["release"]
    assert scheduler["spec"]["targetLabels"] == ["release"]
    dropped = [{"action": "drop", "sourceLabels": ["a"]}]
    assert workers["spec"]["podMetricsEndpoints"][0]["metricRelabelings"] == dropped
    assert scheduler["spec"]["endpoints"][0]["metricRelabelings"] == dropped
    selector = workers["spec"]["selector"]["matchLabels"]
    for name in ("rel-worker", "rel-worker-high-mem"):
        assert selector.items() <= rendered["Deployment", name]["spec"]["template"]["metadata"]["labels"].items()


def test_a_values_file_of_dasks_chart_is_taken() -> None:
    rendered = render(FIXED, DASK)
    scheduler, worker = rendered["Deployment", "rel-scheduler"], rendered["Deployment", "rel-worker"]
    assert container(scheduler)["image"] == "registry.example.com/dask:2024.1.0"
    assert container(scheduler)["args"][-2:] == ["--preload", "scheduler-setup.py"]
    assert container(worker)["args"][0] == "dask-cuda-worker"
    assert {"--nthreads=2", "--memory-limit=3G"} <= set(container(worker)["args"])
    assert container(worker)["ports"] == [{"name": "http-dashboard", "containerPort": 8790}]
    assert container(worker)["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert environment(worker)["EXTRA_PIP_PACKAGES"] == "s3fs --upgrade"
    assert scheduler["metadata"]["labels"]["app"] == "dask"
    service = rendered["Service", "rel-scheduler"]["spec"]
    assert (service["type"], service["loadBalancerIP"]) == ("LoadBalancer", "10.1.2.3")
    [ingress] = rendered["Ingress", "rel-scheduler"]["spec"]["rules"]
    assert ingress["host"] == "dask-ui.example.com"
    assert pod(rendered["Deployment", "rel-jupyter"])["serviceAccountName"] == "dask-jupyter"


def test_the_password_that_everybody_knows_is_not_used() -> None:
    """Defect: the Jupyter password is "dask"."""
    for values in ({}, DASK):
        rendered = render(FIXED, values)
        token = base64.b64decode(rendered["Secret", "rel-jupyter"]["data"]["token"]).decode()
        assert re.fullmatch("[0-9a-f]{48}", token)
        assert "hashed_password" not in rendered["ConfigMap", "rel-jupyter"]["data"]["jupyter_server_config.py"]
    own = render(FIXED, {"jupyter": {"password": "argon2:abc"}})
    assert own["Secret", "rel-jupyter"]["data"] == {"password-hash": base64.b64encode(b"argon2:abc").decode()}
    assert "JUPYTER_TOKEN" not in environment(own["Deployment", "rel-jupyter"])
    assert "JUPYTER_PASSWORD_HASH" in environment(own["Deployment", "rel-jupyter"])


def test_what_the_user_sets_goes_first() -> None:
    values = {"worker": {"env": [{"name": "DASKFLEET_TOKEN", "value": "mine"}], "custom_scheduler_url": "tcp://a:1"}}
    found = environment(render(FIXED, values | {"scheduler": {"enabled": False}})["Deployment", "rel-worker"])
    assert found["DASKFLEET_TOKEN"] == "mine"
    assert found["DASK_SCHEDULER_ADDRESS"] == "tcp://a:1"


def test_certificates_for_everyone() -> None:
    rendered = render(FIXED, {"tls": {"enabled": True}})
    assert rendered["Secret", "rel-tls"]["data"].keys() == {"ca.crt", "tls.crt", "tls.key"}
    for name in ("scheduler", "worker", "jupyter"):
        deployment = rendered["Deployment", f"rel-{name}"]
        assert environment(deployment)["DASK_DISTRIBUTED__COMM__TLS__CA_FILE"] == "/etc/daskfleet/tls/ca.crt"
        assert {"name": "tls", "secret": {"secretName": "rel-tls"}} in pod(deployment)["volumes"]
    assert environment(deployment)["DASK_SCHEDULER_ADDRESS"] == f"tls://{SERVICE}:8786"


def test_without_jupyter_there_is_nothing_of_it() -> None:
    assert not [name for _, name in render(FIXED, {"jupyter": {"enabled": False}}) if "jupyter" in name]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"worker": {"replicas": "three"}}, "at '/worker/replicas': got string, want integer"),
        ({"worker": {"replica": 3}}, "at '/worker': additional properties 'replica' not allowed"),
        ({"workers": {}}, "additional properties 'workers' not allowed"),
        ({"scheduler": {"replicas": 2}}, "at '/scheduler/replicas': value must be one of 0, 1"),
        ({"worker": {"env": [{"name": "A", "value": 1}]}}, "at '/worker/env/0/value': got number, want string"),
        ({"jupyter": {"password": "dask"}}, "at '/jupyter/password': 'dask' does not match pattern"),
        ({"worker": {"image": {"tag": 2024.1}}}, "at '/worker/image/tag': got number, want string"),
        ({"additional_worker_groups": [{"replicas": 1}]}, "missing property 'name'"),
        ({"additional_worker_groups": [{"name": "a"}, {"name": "a"}]}, 'the name "a" is taken'),
    ],
)
def test_wrong_values_are_refused_with_a_sentence(values: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(FIXED, values)


def test_a_release_that_no_cluster_can_be_called() -> None:
    assert '"my.rel" cannot name a Dask cluster' in refusal(FIXED, {}, "my.rel")


def test_a_network_policy_lets_in_the_cluster_and_whom_the_user_names() -> None:
    friends = [{"namespaceSelector": {"matchLabels": {"team": "data"}}}]
    rendered = render(FIXED, {"networkPolicy": {"enabled": True, "from": friends}})
    policy = rendered["NetworkPolicy", "rel"]["spec"]
    [rule] = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"dask.org/cluster-name": "rel"}}}, *friends]
    [component] = policy["podSelector"]["matchExpressions"]
    for name in ("scheduler", "worker", "jupyter"):
        labels = rendered["Deployment", f"rel-{name}"]["spec"]["template"]["metadata"]["labels"]
        assert labels["dask.org/cluster-name"] == "rel"
        assert (labels[component["key"]] in component["values"]) is (name != "jupyter")
    assert not [kind for kind, _ in render(FIXED) if kind == "NetworkPolicy"]
