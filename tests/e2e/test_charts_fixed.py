"""The fixed cluster's chart on a real cluster, in a namespace that only takes restricted pods."""

import base64
import json
import platform
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from daskfleet import KubeCluster
from helm_bed import CHARTS, Helm, Jupyter, Refused, left_in, port_forward

from tests.cluster import Cluster, tools

CHART = str(CHARTS / "daskfleet")
SMALL = {"requests": {"cpu": "20m", "memory": "128Mi"}}
VALUES = {
    "scheduler": {"resources": SMALL},
    "worker": {"replicas": 2, "resources": SMALL, "threads_per_worker": 1},
    "jupyter": {"resources": SMALL, "extraConfig": 'c.ContentsManager.untitled_notebook = "Configured"'},
}
WAIT = ("--wait", "--timeout=400s")


@dataclass
class Release:
    """A release of the chart, named ``rel``."""

    cluster: Cluster
    namespace: str
    helm: Helm
    notes: str

    def kubectl(self, *words: str) -> str:
        return self.cluster.kubectl("-n", self.namespace, *words)

    def secret(self, name: str) -> dict[str, str]:
        data = json.loads(self.kubectl("get", "secret", name, "-o", "json"))["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def pods(self) -> set[str]:
        return set(self.kubectl("get", "pods", "-o", "name").split())


@pytest.fixture(scope="module")
def release(helm: str, cluster_with_images: Cluster, notebook_image: str, module_namespace: str) -> Iterator[Release]:
    label = "pod-security.kubernetes.io/enforce=restricted"
    cluster_with_images.kubectl("label", "namespace", module_namespace, label)
    charted = Helm(helm, cluster_with_images, module_namespace)
    notes = charted("install", "rel", CHART, *WAIT, values=VALUES)
    yield Release(cluster_with_images, module_namespace, charted, notes)


@pytest.fixture(scope="module")
def token(release: Release) -> str:
    """Jupyter's token, by the command in the notes."""
    [line] = [line.strip() for line in release.notes.splitlines() if "get secret" in line]
    command = line.replace("kubectl", f"{tools.kubectl()} --kubeconfig={release.cluster.kubeconfig}", 1)
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout


WORK = [
    "from daskfleet import Client\nclient = Client()\nclient.wait_for_workers(2, timeout=180)\n"
    "print(len(client.scheduler_info()['workers']))",
    "import dask.array as da\nx = da.arange(1_000_000, chunks=100_000)\nprint(int((x ** 2 % 7).sum().compute()))",
    "import dask.dataframe as dd, pandas as pd\n"
    "frame = dd.from_pandas(pd.DataFrame({'key': [i % 5 for i in range(1000)], 'value': range(1000)}), npartitions=8)\n"
    "print(frame.groupby('key').value.sum().compute().to_dict())",
    "import platform\nprint(sorted(client.run(platform.node).values()))",
    "print(client.dashboard_link)",
]


async def test_a_notebook_computes_on_the_cluster(release: Release, token: str) -> None:
    with port_forward(release.cluster, release.namespace, "service/rel-jupyter", 80) as url:
        async with Jupyter.at(url, "wrong") as stranger:
            with pytest.raises(AssertionError, match="403"):
                await stranger.ask("GET", "/api/contents")
        async with Jupyter.at(url, token) as jupyter:
            assert "<title>JupyterLab</title>" in await jupyter.ask("GET", "/lab")
            workers, total, sums, hosts, link = await jupyter.run_notebook("work.ipynb", WORK)
            assert int(workers) == 2
            assert int(total) == sum(i * i % 7 for i in range(1_000_000))
            assert sums.strip() == str({key: sum(range(key, 1000, 5)) for key in range(5)})
            assert hosts.count("rel-worker-") == 2
            identity = await jupyter.ask("GET", link.strip().replace("/status", "/json/identity.json"))
            assert identity["type"] == "Scheduler"  # the dashboard's server, by way of Jupyter
            made = await jupyter.ask("POST", "/api/contents", {"type": "notebook"})
            assert made["name"] == "Configured.ipynb"  # extraConfig is read


async def test_kubecluster_in_the_notebook_has_the_rights_it_needs(release: Release, token: str) -> None:
    cells = [
        "from daskfleet import KubeCluster\ncluster = KubeCluster.from_name('rel')\nprint(cluster.scheduler_address)",
        "print(cluster.get_client().submit(sum, [1, 2, 3]).result(timeout=180))",
        "print(bool(cluster.get_logs()))\ncluster.close()",
    ]
    with port_forward(release.cluster, release.namespace, "service/rel-jupyter", 80) as url:
        async with Jupyter.at(url, token) as jupyter:
            address, total, logs = await jupyter.run_notebook("adopt.ipynb", cells)
    assert address.strip().endswith(":8786")
    assert (total.strip(), logs.strip()) == ("6", "True")


def test_the_commands_of_the_notes_work(release: Release) -> None:
    helm = release.helm.command[0]
    programs = {"kubectl": f"{tools.kubectl()} --kubeconfig={release.cluster.kubeconfig}"}
    programs["helm"] = f"{helm} --kubeconfig={release.cluster.kubeconfig}"
    commands = [line.strip() for line in release.notes.splitlines() if line.startswith(("  kubectl ", "  helm "))]
    ran = []
    for command in commands:
        program, rest = command.split(" ", 1)
        if "port-forward" in command:
            _, service, ports = rest.rsplit(" ", 2)
            with port_forward(release.cluster, release.namespace, service, int(ports.split(":")[-1])) as url:
                assert urllib.request.urlopen(url, timeout=60).status == 200
        else:  # `helm test` and `helm upgrade` have tests of their own
            ran.append(f"{programs[program]} {rest.replace(' CHART ', f' {CHART} --dry-run=server ')}")
    for command in (words for words in ran if " test rel" not in words):
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert len(commands) == 6


def test_all_that_can_be_switched_on_is_taken_by_the_api_server(release: Release) -> None:
    on = {"enabled": True, "tls": True, "ingressClassName": "nginx", "annotations": {"a": "b"}}
    values = {
        "tls": {"enabled": True},
        "networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {}}]},
        "webUI": {"ingress": on},
        "jupyter": {"ingress": on},
        "additional_worker_groups": [{"name": "big", "mounts": {"volumes": [{"name": "d", "emptyDir": {}}]}}],
    }
    rendered = release.helm("template", "other", CHART, "--kube-version=1.34.0", values=values)
    dry = ("apply", "--dry-run=server", "-f", "-")
    taken = release.cluster.kubectl("-n", release.namespace, *dry, input=rendered)
    assert taken.count("ingress.networking.k8s.io/") == 2
    assert "deployment.apps/other-worker-big" in taken


def test_helm_test(release: Release) -> None:
    assert "Succeeded" in release.helm("test", "rel", "--timeout=360s")
    assert "pod/rel-test" not in release.pods()


def test_an_upgrade_changes_workers_and_keeps_everything_else(release: Release) -> None:
    before, secrets = release.pods(), [release.secret(name) for name in ("rel-token", "rel-jupyter")]
    with KubeCluster.from_name(f"{release.namespace}/rel") as cluster, cluster.get_client() as client:
        kept = client.scatter([[i] for i in range(20)])
        group = {"name": "tagged", "replicas": 1, "extraArgs": ["--resources", "TAG=1"], "resources": SMALL}
        values = VALUES | {"worker": VALUES["worker"] | {"replicas": 3}, "additional_worker_groups": [group]}
        release.helm("upgrade", "rel", CHART, *WAIT, values=values)
        cluster.wait_for_workers(4, timeout=180)
        assert client.gather(kept) == [[i] for i in range(20)]
        pods = release.pods()
        assert before < pods
        assert sum(name.startswith("pod/rel-worker-tagged-") for name in pods - before) == 1
        assert [release.secret(name) for name in ("rel-token", "rel-jupyter")] == secrets
        where = client.submit(platform.node, resources={"TAG": 1}).result(timeout=180)
        assert where.startswith("rel-worker-tagged-")


def test_an_operator_beside_it_leaves_it_alone(release: Release) -> None:
    before = release.pods()
    values = {"rbac": {"cluster": False}, "crds": {"install": False}, "fullnameOverride": "op"}
    release.helm("install", "op", str(CHARTS / "daskfleet-operator"), *WAIT, values=values)
    while "working on" not in release.kubectl("logs", "deployment/op"):  # it leads, its caches are filled
        time.sleep(0.2)
    release.kubectl("label", "deployment", "rel-worker", "rel-scheduler", "touched=yes")  # the operator sees it
    release.helm("uninstall", "op", "--wait")
    release.kubectl("wait", "--for=delete", "pods", "-l", "app.kubernetes.io/instance=op", "--timeout=180s")
    release.kubectl("delete", "lease", "daskfleet-operator", "--ignore-not-found")
    assert release.pods() == before


def test_a_second_release_in_the_namespace_with_certificates(release: Release) -> None:
    values = {**VALUES, "tls": {"enabled": True}, "worker": VALUES["worker"] | {"replicas": 1}}
    release.helm("install", "more", CHART, *WAIT, values=values | {"jupyter": {"enabled": False}})
    certificates = release.secret("more-tls")
    assert "Succeeded" in release.helm("test", "more", "--timeout=360s")
    log = release.kubectl("logs", "deployment/more-worker")
    assert f"registered with the scheduler at tls://more-scheduler.{release.namespace}.svc:8786" in log
    with KubeCluster.from_name(f"{release.namespace}/more") as cluster, cluster.get_client() as client:
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        assert client.submit(sum, [1, 2, 3]).result(timeout=180) == 6
    release.helm("upgrade", "more", CHART, values=values | {"jupyter": {"enabled": False}})
    assert release.secret("more-tls") == certificates
    assert "Succeeded" in release.helm("test", "rel", "--timeout=360s")
    release.helm("uninstall", "more", "--wait")
    release.kubectl("wait", "--for=delete", "pods", "-l", "release=more", "--timeout=240s")
    assert not {name for name in left_in(release.cluster, release.namespace) if "/more-" in name}


def test_wrong_values_install_nothing(release: Release) -> None:
    with pytest.raises(Refused, match="at '/worker/replicas': got string, want integer"):
        release.helm("install", "bad", CHART, values={"worker": {"replicas": "three"}})
    assert "bad" not in release.helm("list", "--all", "--short")


def test_uninstall_leaves_nothing(release: Release) -> None:
    release.helm("uninstall", "rel", "--wait", "--timeout=240s")
    release.kubectl("wait", "--for=delete", "pods", "--all", "--timeout=240s")
    assert left_in(release.cluster, release.namespace) == set()
