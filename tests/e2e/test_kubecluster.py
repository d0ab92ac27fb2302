"""KubeCluster against the operator in the cluster and real pods, as users use it."""

import asyncio
import functools
import gc
import json
import signal
import subprocess
import sys
import urllib.request

import daskfleet
import kubeclusters as bed
import pytest
import yaml
from click.testing import CliRunner
from daskfleet import KubeCluster
from daskfleet.cli.clusters import main as daskfleet_command
from daskfleet.deploy.kubernetes import ClusterNotFound, make_cluster_spec, make_worker_spec
from daskfleet.deploy.kubernetes.spec import make_worker_group_spec
from operator_bed import Namespace

from tests.eventual import eventually

square = functools.partial(pow, exp=2)  # a function that pods have, too

pytestmark = pytest.mark.usefixtures("operator_in_cluster")


@pytest.fixture
def get(kubernetes_api, namespace):
    """Objects of a kind in the namespace, as JSON."""
    return Namespace(kubernetes_api, namespace).items


def test_work_on_a_cluster_that_grows_and_shrinks(namespace, get):
    with KubeCluster(name="c", namespace=namespace, n_workers=2) as cluster, cluster.get_client() as client:
        assert sum(client.gather(client.map(square, range(100)))) == sum(map(square, range(100)))
        cluster.wait_for_workers(2, timeout=180)
        cluster.scale(4)
        assert len(cluster.plan) == 4
        cluster.wait_for_workers(4, timeout=180)
        kept = client.scatter([[i] for i in range(20)])  # nothing could compute these again
        pods = {pod["metadata"]["name"] for pod in get("pods", "dask.org/component=worker")}
        assert len(pods) == 4
        eventually(lambda: cluster.observed == cluster.requested == pods)
        cluster.scale(1)
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 1 and len(cluster.requested) == 1)
        assert client.gather(kept) == [[i] for i in range(20)]  # handed over by those that went
        shown = repr(cluster)
        assert shown.startswith("KubeCluster(c, 'tls://127.0.0.1:") and "workers=1" in shown
    assert cluster.status == "closed"
    assert get("daskclusters") == []
    assert all(pod["metadata"].get("deletionTimestamp") for pod in get("pods"))


async def test_all_of_it_asynchronously(namespace):
    async with KubeCluster(name="c", namespace=namespace, n_workers=1, asynchronous=True) as cluster:
        await cluster.wait_for_workers(1, timeout=180)
        async with cluster.get_client() as client:
            assert await client.submit(square, 7) == 49
        await cluster.scale(2)
        await cluster.wait_for_workers(2, timeout=180)
        _ = cluster.scheduler_info  # cannot wait: gives the last look, and looks again
        assert len(cluster.scheduler_info["workers"]) == 2
        logs = await cluster.get_logs()
        assert {"c", *cluster.requested} <= set(logs)


def test_a_cluster_outlives_its_session_and_is_found_again(namespace, get):
    KubeCluster(name="c", namespace=namespace, n_workers=1, shutdown_on_close=False).close()
    assert [cluster["metadata"]["name"] for cluster in get("daskclusters")] == ["c"]
    with KubeCluster.from_name(f"{namespace}/c") as again, again.get_client() as client:
        assert client.submit(square, 3).result() == 9
    assert len(get("daskclusters")) == 1
    KubeCluster(name="c", namespace=namespace).close()  # connects, and deletes as it closes
    assert get("daskclusters") == []


def test_a_name_can_be_used_again_at_once(namespace):
    for _ in range(3):
        with KubeCluster(name="c", namespace=namespace, n_workers=1) as cluster, cluster.get_client() as client:
            assert client.submit(square, 2).result() == 4


def test_a_manifest_written_to_a_file_is_the_same_cluster(namespace, kubernetes_api, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(make_cluster_spec("c", n_workers=1, env={"COLOUR": "blue"})))
    kubernetes_api.kubectl("-n", namespace, "apply", "-f", str(path))
    with KubeCluster(name="c", namespace=namespace) as cluster, cluster.get_client() as client:
        assert client.submit(lambda: __import__("os").environ["COLOUR"]).result() == "blue"
    with KubeCluster(custom_cluster_spec=path, namespace=namespace) as cluster:
        assert cluster.name == "c"
        cluster.wait_for_workers(1, timeout=180)


def test_worker_groups(namespace, get):
    with KubeCluster(name="c", namespace=namespace) as cluster, cluster.get_client() as client:
        cluster.add_worker_group("red", n_workers=1, env={"COLOUR": "red"})
        assert client.submit(lambda: __import__("os").environ["COLOUR"]).result() == "red"
        cluster.add_worker_group("blue", custom_spec=make_worker_spec(n_workers=0))
        cluster.scale(1, worker_group="blue")
        cluster.wait_for_workers(2, timeout=180)
        with pytest.raises(ClusterNotFound, match="no worker group 'green'; it has: blue, default, red"):
            cluster.scale(1, worker_group="green")
        cluster.delete_worker_group("red")
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 1)
        assert {group["metadata"]["name"] for group in get("daskworkergroups")} == {"c-default", "c-blue"}


def test_adapt_hands_the_number_to_the_operator_until_scale_takes_it_back(namespace, get):
    with KubeCluster(name="c", namespace=namespace) as cluster, cluster.get_client() as client:
        cluster.adapt(minimum=0, maximum=2)
        (autoscaler,) = get("daskautoscalers")
        assert autoscaler["spec"].items() >= {"cluster": "c", "minimum": 0, "maximum": 2}.items()
        assert client.submit(square, 5).result(timeout=180) == 25  # nobody scaled but the operator
        cluster.adapt(minimum=1, maximum=3)
        assert get("daskautoscalers")[0]["spec"]["maximum"] == 3
        cluster.adapt(enabled=False)
        assert get("daskautoscalers") == []
        cluster.adapt(minimum=1, maximum=3)
        cluster.scale(2)
        assert get("daskautoscalers") == []


def test_waiting_for_workers_that_cannot_come_says_why(namespace):
    with KubeCluster(name="c", namespace=namespace) as cluster:
        cluster.add_worker_group("big", n_workers=1, resources={"requests": {"cpu": "900"}})
        with pytest.raises(TimeoutError, match=r"0 of 1 workers after 2 s: .*Insufficient cpu"):
            cluster.wait_for_workers(1, timeout=2)


def test_a_cluster_that_is_dropped_is_deleted(namespace, get):
    cluster = KubeCluster(name="c", namespace=namespace)
    del cluster
    gc.collect()
    eventually(lambda: not get("daskclusters"))


SCRIPT = """
from daskfleet import KubeCluster
cluster = KubeCluster(name="c", namespace={namespace!r}, {options})
print("up", flush=True)
"""


def test_the_end_of_the_interpreter_deletes_the_cluster(namespace, get):
    script = SCRIPT.format(namespace=namespace, options="")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
    assert (done.stdout, done.stderr) == ("up\n", "")
    assert get("daskclusters") == []


def test_a_new_scheduler_is_found_behind_the_same_address(namespace, kubernetes_api):
    with KubeCluster(name="c", namespace=namespace, n_workers=1) as cluster:
        cluster.wait_for_workers(1, timeout=180)
        address, first = cluster.scheduler_address, cluster.scheduler_info["id"]
        selector = "dask.org/component=scheduler"
        kubernetes_api.kubectl("-n", namespace, "delete", "pod", "-l", selector, "--wait=false")
        eventually(lambda: cluster.scheduler_info["id"] != first)
        assert cluster.scheduler_address == address
        with cluster.get_client() as client:
            assert client.submit(square, 4).result() == 16


async def test_an_api_server_that_restarts_is_waited_for(namespace, kubernetes_api, tmp_path, monkeypatch):
    relay = bed.Relay(*bed.api_address(kubernetes_api.kubeconfig))
    await relay.start()
    config = bed.kubeconfig_with(
        kubernetes_api.kubeconfig, tmp_path / "config", server=f"https://127.0.0.1:{relay.port}"
    )
    monkeypatch.setenv("KUBECONFIG", str(config))
    async with KubeCluster(name="c", namespace=namespace, asynchronous=True) as cluster:
        await relay.stop()
        scaling = asyncio.ensure_future(cluster.scale(1))
        await asyncio.sleep(1)
        assert not scaling.done()
        await relay.start()
        await scaling
        await cluster.wait_for_workers(1, timeout=180)
    await relay.stop()


def test_the_command_over_clusters_in_two_namespaces(namespace, kubernetes_api, get, tmp_path):
    """One cluster with a scheduler, and one that has none and never will: both are listed, scaled and ended."""

    def run(*words, status=0):
        result = CliRunner().invoke(daskfleet_command, [str(word) for word in words])
        assert result.exit_code == status, (result.output, result.exception)
        return result.stderr if status else result.stdout

    other = f"{namespace}-other"
    kubernetes_api.kubectl("create", "namespace", other)
    dead = make_cluster_spec("c", image="No Such/Image!")
    kubernetes_api.kubectl("-n", other, "apply", "-f", "-", input=json.dumps(dead))
    path = tmp_path / "cluster.yaml"
    red = make_worker_group_spec("c", "red", make_worker_spec(n_workers=0))
    path.write_text(yaml.safe_dump_all([make_cluster_spec("c", n_workers=1), red]))
    assert run("create", "-f", path, "-n", namespace) == f"{namespace}/c created\n"
    assert f"there is a cluster 'c' in namespace '{namespace}'" in run("create", "-f", path, "-n", namespace, status=1)
    names = run("list", "-o", "name").splitlines()
    assert {f"{namespace}/c", f"{other}/c"} <= set(names)
    assert run("list", "-n", namespace, "-o", "name") == f"{namespace}/c\n"
    shown = f"{namespace}/c KubeCluster Running 1/1"
    eventually(lambda: shown in " ".join(run("list", "-n", namespace).split()))
    said = run("scale", "c", 2, status=1)
    assert said.startswith("Error: there are several clusters 'c': say which, ") and f"{other}/c" in said
    with pytest.raises(
        ClusterNotFound, match=f"no cluster 'c' in namespace 'default', but elsewhere: say .*'{other}/c'"
    ):
        KubeCluster.from_name("c", namespace="default")
    assert run("scale", "c", 1, "-n", other) == f"{other}/c scaled to 1\n"
    assert run("scale", f"{namespace}/c", 2) == f"{namespace}/c scaled to 2\n"
    run("scale", f"{namespace}/c", 1, "--worker-group", "red")
    replicas = {group["metadata"]["name"]: group["spec"]["worker"]["replicas"] for group in get("daskworkergroups")}
    assert replicas == {"c-default": 2, "c-red": 1}
    run("adapt", f"{namespace}/c", "--maximum", 3)
    assert [autoscaler["spec"]["maximum"] for autoscaler in get("daskautoscalers")] == [3]
    run("adapt", f"{namespace}/c", "--off")
    assert get("daskautoscalers") == []
    assert "Scheduler at" in run("logs", f"{namespace}/c", "--no-workers")
    with daskfleet.get_cluster(f"{namespace}/c") as cluster, cluster.get_client() as client:
        assert client.submit(square, 3).result() == 9
    assert run("delete", f"{namespace}/c", f"{other}/c") == f"{namespace}/c deleted\n{other}/c deleted\n"
    eventually(lambda: not get("daskclusters"))
    assert "there is no cluster" in run("delete", f"{namespace}/c", status=1)
    kubernetes_api.kubectl("delete", "namespace", other, "--wait=false")


def test_the_dashboard_is_forwarded_until_ctrl_c_and_logs_are_followed_to_the_clusters_end(namespace):
    def start(*words):
        command = [sys.executable, "-m", "daskfleet.cli.clusters", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    with KubeCluster(name="c", namespace=namespace) as cluster:
        forwarding, following = start("dashboard", f"{namespace}/c"), start("logs", f"{namespace}/c", "--follow")
        link = forwarding.stdout.readline().strip()
        with urllib.request.urlopen(link, timeout=60) as page:
            assert page.status == 200
        forwarding.send_signal(signal.SIGINT)
        assert forwarding.communicate(timeout=90) == ("", "Forwarding until Ctrl-C.\n")
        assert forwarding.returncode == 0
        assert following.stdout.readline().startswith("c-scheduler-")
        cluster.scale(1)
        assert next(
            line for line in following.stdout if line.startswith("c-default-worker-") and "Start worker" in line
        )
    _, errors = following.communicate(timeout=180)
    assert (following.returncode, errors) == (0, "")
