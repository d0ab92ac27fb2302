"""The operator's chart, as helm renders it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_rendering import NAMESPACE, OPERATOR, ROOT, container, environment, helm, pod, refusal, render, restricted

NAME = "rel-daskfleet-operator"


def manifests(path: str) -> dict[tuple[str, str], Any]:
    documents = yaml.safe_load_all((ROOT / "operator" / "deploy" / path).read_text())
    return {(found["kind"], found["metadata"]["name"]): found for found in documents if found}


def test_helm_finds_nothing_to_complain_of() -> None:
    done = helm("lint", "--strict", OPERATOR)
    assert done.returncode == 0, done.stdout


def test_the_version_is_the_projects() -> None:
    chart = yaml.safe_load((OPERATOR / "Chart.yaml").read_text())
    version = (ROOT / "sdk/daskfleet/_version.py").read_text().split('"')[1]
    assert chart["version"] == chart["appVersion"] == version
    assert container(render(OPERATOR)["Deployment", NAME])["image"] == f"daskfleet/operator:{version}"


def test_rights_are_those_of_the_plain_manifests() -> None:
    plain = manifests("20-rbac.yaml")
    everywhere = render(OPERATOR)
    assert everywhere["ClusterRole", NAME]["rules"] == plain["ClusterRole", "daskfleet-operator"]["rules"]
    assert everywhere["Role", f"{NAME}-lease"]["rules"] == plain["Role", "daskfleet-operator-lease"]["rules"]
    [subject] = everywhere["ClusterRoleBinding", NAME]["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}


def test_in_one_namespace_it_has_rights_there_alone() -> None:
    rendered = render(OPERATOR, {"rbac": {"cluster": False}, "crds": {"install": False}})
    assert not {kind for kind, _ in rendered if kind.startswith("ClusterRole")}
    plain = manifests("single-namespace/operator.yaml")["Role", "daskfleet-operator"]["rules"]
    allowed = rendered["Role", NAME]["rules"]
    assert flat(allowed) == flat(rule for rule in plain if rule["apiGroups"] != ["coordination.k8s.io"])
    assert rendered["Role", NAME]["metadata"]["namespace"] == NAMESPACE
    assert environment(rendered["Deployment", NAME])["DASKFLEET_OPERATOR_NAMESPACES"] == NAMESPACE


def flat(rules: Any) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_pod_is_that_of_the_plain_manifests() -> None:
    ours, plain = (
        render(OPERATOR)["Deployment", NAME],
        manifests("30-deployment.yaml")["Deployment", "daskfleet-operator"],
    )
    restricted(pod(ours))
    taken = {key: value for key, value in container(ours).items() if key != "imagePullPolicy"}
    assert taken == container(plain)
    assert pod(ours)["securityContext"] == pod(plain)["securityContext"]


def test_definitions_are_applied_before_installs_and_upgrades_as_they_are() -> None:
    rendered = render(OPERATOR)
    content = rendered["ConfigMap", f"{NAME}-crds"]["data"]
    sources = sorted((ROOT / "crds").glob("*.yaml"))
    assert {name: text for name, text in content.items() if name != "apply.py"} == {
        source.name: source.read_text() for source in sources
    }
    job = rendered["Job", f"{NAME}-crds"]
    restricted(pod(job))
    hook = {key: value for key, value in job["metadata"]["annotations"].items() if "weight" not in key}
    assert hook == {
        "helm.sh/hook": "pre-install,pre-upgrade",
        "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
    }
    [making, changing] = rendered["ClusterRole", f"{NAME}-crds-{NAMESPACE}"]["rules"]
    assert making["verbs"] == ["create"]
    assert changing["resourceNames"] == [yaml.safe_load(source.read_text())["metadata"]["name"] for source in sources]
    assert not [name for kind, name in render(OPERATOR, {"crds": {"install": False}}) if "crds" in name]


def test_a_values_file_of_dask_kubernetes_is_taken() -> None:
    values = yaml.safe_load((Path(__file__).parent / "values_dask_kubernetes.yaml").read_text())
    deployment = render(OPERATOR, values)["Deployment", NAME]
    assert container(deployment)["image"] == "registry.example.com/operator:1"
    assert pod(deployment)["priorityClassName"] == "system-cluster-critical"
    assert pod(deployment)["nodeSelector"] == {"disk": "ssd"}
    assert container(deployment)["args"] == ["--log-level=DEBUG", "--log-json"]
    assert container(deployment)["volumeMounts"] == [{"name": "scratch", "mountPath": "/scratch"}]
    assert environment(deployment)["FOO"] == "bar"
    monitors = [kind for kind, _ in render(OPERATOR, values) if kind.endswith("Monitor")]
    assert sorted(monitors) == ["PodMonitor", "ServiceMonitor"]


def test_kopf_arguments_name_namespaces() -> None:
    values = {"kopfArgs": ["--namespace=a", "-n", "b"], "rbac": {"cluster": False}}
    done = render(OPERATOR, values | {"fullnameOverride": "op", "rbac": {"cluster": True}})
    assert environment(done["Deployment", "op"])["DASKFLEET_OPERATOR_NAMESPACES"] == "a b"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"kopfArgs": ["--peering=x"]}, "kopfArgs: --peering=x is not known here"),
        ({"kopfArgs": ["-n"]}, "--namespace is not followed by a name"),
        ({"replicaCount": "two"}, "at '/replicaCount': got string, want integer"),
        ({"image": {"repository": "x"}}, "at '/image': additional properties 'repository' not allowed"),
        ({"nodeSelector": {"gpu": True}}, "at '/nodeSelector/gpu': got boolean, want string"),
        ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy': value must be one of 'Always'"),
    ],
)
def test_wrong_values_are_refused_with_a_sentence(values: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(OPERATOR, values)


def test_a_network_policy_of_the_operators_pod() -> None:
    rendered = render(OPERATOR, {"networkPolicy": {"enabled": True, "apiServerPorts": [8443]}})
    policy = rendered["NetworkPolicy", NAME]["spec"]
    labels = rendered["Deployment", NAME]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["ingress"] == [{"ports": [{"port": 8080, "protocol": "TCP"}]}]
    reached = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert reached == {53, 8443, 8787}


def test_a_dashboard_for_grafanas_sidecar() -> None:
    assert not [kind for kind, name in render(OPERATOR) if name.endswith("-dashboard")]
    values = {"metrics": {"operator": {"dashboard": {"enabled": True, "namespace": "monitoring"}}}}
    found = render(OPERATOR, values)["ConfigMap", f"{NAME}-dashboard"]
    assert found["metadata"]["namespace"] == "monitoring"
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    board = json.loads(found["data"]["daskfleet-operator.json"])
    assert board == json.loads((OPERATOR / "files/dashboard.json").read_text())
    assert all(target["expr"] and panel["title"] for panel in board["panels"] for target in panel["targets"])
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
