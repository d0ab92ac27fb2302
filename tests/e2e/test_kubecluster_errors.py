"""What goes wrong ends in one sentence, within its deadline, and leaves nothing behind."""

import base64
import json
import socket
import stat
import textwrap

import kubeclusters as bed
import pytest
import yaml
from daskfleet.deploy.kubernetes import (
    ClusterExists,
    ClusterNotFound,
    Forbidden,
    KubeCluster,
    KubeConfigError,
    NamespaceNotFound,
    OperatorMissing,
    PortInUse,
    StartFailed,
    StartTimeout,
    Unreachable,
    link,
    make_cluster_spec,
)
from operator_bed import Namespace

from tests.cluster import project


@pytest.fixture
def clusters(kubernetes_api, namespace):
    """Names of the clusters that exist in the namespace now."""

    def names():
        return [item["metadata"]["name"] for item in Namespace(kubernetes_api, namespace).items("daskclusters")]

    return names


def test_a_name_that_is_none_is_refused_before_anything_is_sent(monkeypatch):
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with pytest.raises(ValueError, match="for example 'my-cluster'"):
        KubeCluster(name="My Cluster")


def test_no_kubeconfig(monkeypatch):
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubeConfigError, match=r"no kubeconfig at /nowhere/config.*set KUBECONFIG"):
        KubeCluster(name="c")


def test_an_unknown_context_names_those_that_there_are(kubernetes_api):
    known = yaml.safe_load(kubernetes_api.kubeconfig.read_text())["contexts"][0]["name"]
    with pytest.raises(KubeConfigError, match=rf"no context 'nope'; it has: .*{known}"):
        KubeCluster(name="c", context="nope")


def test_an_api_server_that_is_not_there(kubernetes_api, tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"https://127.0.0.1:{unused.getsockname()[1]}"
        config = bed.kubeconfig_with(kubernetes_api.kubeconfig, tmp_path / "config", server=address)
        monkeypatch.setenv("KUBECONFIG", str(config))
        with pytest.raises(Unreachable, match=f"{address} cannot be reached"):
            KubeCluster(name="c")


@pytest.mark.usefixtures("kubernetes_api")
def test_a_namespace_that_does_not_exist():
    with pytest.raises(NamespaceNotFound, match="kubectl create namespace nowhere-to-be-found"):
        KubeCluster(name="c", namespace="nowhere-to-be-found")


@pytest.fixture
def no_operator(kubernetes_api):
    """An operator that runs there, for other tests or the demo, rests meanwhile."""
    left = project.operator_runs(kubernetes_api)
    if left:
        project.pause_operator(kubernetes_api)
    yield
    if left:
        project.start_operator(kubernetes_api)


@pytest.mark.usefixtures("no_operator")
def test_no_operator_says_how_to_get_one_and_takes_the_resource_away(namespace, clusters, monkeypatch):
    monkeypatch.setattr(link, "OPERATOR_PATIENCE", 1.0)
    with pytest.raises(OperatorMissing, match=rf"DaskCluster {namespace}/c within 1 s.*kubectl apply -f"):
        KubeCluster(name="c", namespace=namespace)
    assert clusters() == []


def test_a_local_port_in_use_is_found_before_anything_is_created(namespace, clusters):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)):
            KubeCluster(name="c", namespace=namespace, scheduler_forward_port=port)
    assert clusters() == []


def account(kubectl, namespace, rules):
    """Make a service account that may do what `rules` say, and return a token of it."""
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}, "rules": rules}
    kubectl("-n", namespace, "create", "serviceaccount", "user")
    kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(role))
    kubectl("-n", namespace, "create", "rolebinding", "r", "--role=r", f"--serviceaccount={namespace}:user")
    return kubectl("-n", namespace, "create", "token", "user").strip()


def test_credentials_that_expire_are_fetched_again(kubernetes_api, namespace, tmp_path, monkeypatch):
    """A plugin hands out a bad token first, as one that has expired meanwhile, and a good one when asked again."""
    rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    (tmp_path / "token").write_text(account(kubernetes_api.kubectl, namespace, rules))
    plugin = tmp_path / "plugin"
    plugin.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        token=expired
        if [ -e {tmp_path}/asked ]; then token=$(cat {tmp_path}/token); fi
        touch {tmp_path}/asked
        echo '{{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",' \\
             '"status": {{"token": "'$token'"}}}}'
        """)
    )
    plugin.chmod(stat.S_IRWXU)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}}
    config = bed.kubeconfig_with(kubernetes_api.kubeconfig, tmp_path / "config", user=user)
    monkeypatch.setenv("KUBECONFIG", str(config))
    with pytest.raises(ClusterNotFound, match=f"no cluster 'c' in namespace '{namespace}'"):
        KubeCluster.from_name("c", namespace=namespace)
    assert (tmp_path / "asked").exists()


def test_an_unknown_name_lists_the_clusters_that_exist(kubernetes_api, namespace):
    for name in ("one", "two"):
        kubernetes_api.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(make_cluster_spec(name)))
    with pytest.raises(ClusterNotFound, match=r"there are: .*one, .*two"):
        KubeCluster.from_name("three", namespace=namespace)
    with pytest.raises(ClusterExists, match="there is a cluster 'one'"):
        KubeCluster(name="one", namespace=namespace, create_mode="CREATE_ONLY")


class TestWithAnOperator:
    """Failures of pods, told by the cluster itself."""

    @pytest.fixture(autouse=True)
    def _operator(self, operator_in_cluster):
        pass

    def test_a_right_that_is_missing_is_named_with_the_role_that_gives_it(
        self, kubernetes_api, namespace, tmp_path, monkeypatch
    ):
        reading = [{"apiGroups": ["kubernetes.dask.org"], "resources": ["*"], "verbs": ["get", "list", "watch"]}]
        token = account(kubernetes_api.kubectl, namespace, reading)
        config = bed.kubeconfig_with(kubernetes_api.kubeconfig, tmp_path / "config", user={"token": token})
        monkeypatch.setenv("KUBECONFIG", str(config))
        with pytest.raises(
            Forbidden, match=r'resources: \["(daskclusters|pods)"\], verbs: \["(create|list)"\]'
        ) as caught:
            KubeCluster(name="c", namespace=namespace)
        sentence, _, manifest = str(caught.value).split("\n", 2)
        assert sentence.startswith(f"system:serviceaccount:{namespace}:user may not")
        kubernetes_api.kubectl("apply", "-f", "-", input=manifest)
        with KubeCluster(name="c", namespace=namespace, n_workers=1) as cluster, cluster.get_client() as client:
            assert client.submit(sum, [1, 2]).result(timeout=180) == 3

    def test_an_image_name_that_is_none_does_not_wait_for_the_deadline(self, namespace, clusters):
        with pytest.raises(StartFailed, match="No Such/Image!") as caught:
            KubeCluster(name="c", namespace=namespace, image="No Such/Image!", resource_timeout=100)
        assert not isinstance(caught.value, StartTimeout)
        assert clusters() == []

    def test_an_image_that_cannot_be_pulled_is_named(self, namespace, clusters):
        with pytest.raises(StartFailed, match="'nosuch/image:1' cannot be pulled"):  # at once where there is a registry
            KubeCluster(name="c", namespace=namespace, image="nosuch/image:1", resource_timeout=20)
        assert clusters() == []

    def test_a_pod_that_fits_nowhere_is_told_in_the_schedulers_words(self, namespace):
        said = r"within 20 s: pod c-scheduler-\S+ is Unschedulable: .*Insufficient cpu"
        with pytest.raises(StartTimeout, match=said):
            resources = {"requests": {"cpu": "900"}}
            KubeCluster(name="c", namespace=namespace, resources=resources, resource_timeout=20)

    def test_a_quantity_that_is_none_is_certain(self, namespace):
        with pytest.raises(StartFailed, match="quantities must match") as caught:
            KubeCluster(name="c", namespace=namespace, resources={"limits": {"cpu": "two"}}, resource_timeout=100)
        assert not isinstance(caught.value, StartTimeout)

    def test_a_command_that_the_image_lacks_is_certain(self, namespace):
        spec = make_cluster_spec("c")
        spec["spec"]["scheduler"]["spec"]["containers"][0]["args"] = ["dask-skeduler"]
        with pytest.raises(StartFailed, match="dask-skeduler") as caught:
            KubeCluster(custom_cluster_spec=spec, namespace=namespace, resource_timeout=100)
        assert not isinstance(caught.value, StartTimeout)

    def test_a_scheduler_that_dies_is_told_with_its_last_words(self, namespace):
        spec = make_cluster_spec("c")
        spec["spec"]["scheduler"]["spec"]["containers"][0]["args"] = ["sh", "-c", "echo my last words; exit 3"]
        with pytest.raises(StartFailed, match=r"(?s)exit code 3.*my last words"):
            KubeCluster(custom_cluster_spec=spec, namespace=namespace, resource_timeout=20)

    def test_no_token_is_in_any_message_or_repr(self, namespace, kubernetes_api):
        with KubeCluster(name="c", namespace=namespace) as cluster:
            secret = json.loads(kubernetes_api.kubectl("-n", namespace, "get", "secret", "c-token", "-o", "json"))
            token = base64.b64decode(secret["data"]["token"]).decode()
            assert cluster.security.token == token
            shown = [repr(cluster), cluster._repr_html_(), repr(cluster.security), repr(cluster.get_logs())]
            assert not any(token in text for text in shown)
