"""Packages that only the workers have, installed in real pods from an index in the same cluster."""

import base64
import io
import json
import tarfile
import warnings

import kubeclusters as bed
import pytest
from daskfleet import KubeCluster
from daskfleet.deploy.kubernetes import StartFailed, make_worker_spec
from daskfleet.deploy.kubernetes.install import RATTLER
from daskfleet.versions import VersionMismatchWarning

from tests import channels, wheels
from tests.eventual import eventually

SERVE = """
import base64, http.server, pathlib, sys
pathlib.Path(sys.argv[1]).write_bytes(base64.b64decode(sys.argv[2]))
http.server.test(http.server.SimpleHTTPRequestHandler, http.server.ThreadingHTTPServer, port=8000)
"""


UNPACK = """
import base64, io, sys, tarfile
tarfile.open(fileobj=io.BytesIO(base64.b64decode(sys.stdin.read()))).extractall()
"""


@pytest.fixture
def host(operator_in_cluster, namespace, tmp_path):
    """The address of a pod that serves a package."""
    wheel = wheels.build(tmp_path, "colour", "1.0", "name = 'blue'\n")
    served = base64.b64encode(wheel.read_bytes()).decode()
    container = {"name": "index", "image": bed.DEFAULT_IMAGE, "workingDir": "/tmp"}
    container["command"] = ["python3", "-c", SERVE, wheel.name, served]
    container["readinessProbe"] = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "index"}, "spec": spec}
    kubectl = operator_in_cluster.kubectl
    kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(pod))
    kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/index", "--timeout=180s")
    return kubectl("-n", namespace, "get", "pod", "index", "-o", "jsonpath={.status.podIP}").strip()


@pytest.fixture
def requirements(host, tmp_path):
    """A requirements file with that package."""
    path = tmp_path / "requirements.txt"
    path.write_text(f"--no-index\n--find-links http://{host}:8000/\n--trusted-host {host}\ncolour==1.0\n")
    return path


colour = lambda: __import__("colour").name  # noqa: E731  a function that pods cannot import travels whole


def test_workers_have_it_once_for_each_node_and_what_differs_is_named_at_connect(
    requirements, namespace, operator_in_cluster, tmp_path
):
    kubectl = operator_in_cluster.kubectl
    cache = {"hostPath": {"path": str(tmp_path / "cache"), "type": "DirectoryOrCreate"}}
    options = {"namespace": namespace, "environment": requirements, "environment_cache": cache}
    with KubeCluster(name="c", n_workers=2, **options) as cluster:
        cluster.wait_for_workers(2, timeout=180)
        with warnings.catch_warnings(record=True) as caught, cluster.get_client() as client:
            warnings.simplefilter("always")
            assert set(client.run(colour).values()) == {"blue"}
            told = eventually(lambda: [str(w.message) for w in caught if w.category is VersionMismatchWarning])
        assert any(line.split() == ["colour", "None", "None", "1.0"] for line in told[0].splitlines()), told
        pods = sorted(cluster.requested)
        logs = "".join(kubectl("-n", namespace, "logs", pod, "-c", "environment") for pod in pods).splitlines()
        said = sorted(line.split(" ", 2)[2] for line in logs if line.startswith("environment "))
        assert said == ["is installed", "is installed already"]
        cluster.add_worker_group("more", n_workers=1)  # with the same environment
        cluster.wait_for_workers(3, timeout=180)
        with cluster.get_client() as client:
            assert len(client.run(colour)) == 3


def test_it_is_each_pods_own_by_default_and_why_it_fails_is_told(requirements, namespace, operator_in_cluster):
    label = "pod-security.kubernetes.io/enforce=baseline"  # which forbids hostPath
    operator_in_cluster.kubectl("label", "namespace", namespace, label)
    with KubeCluster(name="c", namespace=namespace, n_workers=1, environment=requirements) as cluster:
        with cluster.get_client() as client:
            assert client.submit(colour).result(timeout=180) == "blue"
        requirements.write_text(requirements.read_text() + "no-such-package\n")
        cluster.add_worker_group("bad", custom_spec=make_worker_spec(n_workers=1, environment=requirements))
        with pytest.raises((StartFailed, TimeoutError), match=r"its initContainer environment ended.*no-such-package"):
            cluster.wait_for_workers(2, timeout=40)


def test_an_image_without_conda_gets_a_conda_environment_from_a_channel(host, namespace, operator_in_cluster, tmp_path):
    kubectl = operator_in_cluster.kubectl
    index = ("-n", namespace, "exec", "-i", "index", "--", "python3", "-c")
    served = tmp_path / "served"
    channels.build(served / "channel", kubectl(*index, "import sys; print('%d.%d' % sys.version_info[:2])").strip())
    wheels.download(served, RATTLER)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(served, ".")
    kubectl(*index, UNPACK, input=base64.b64encode(packed.getvalue()).decode())
    path = tmp_path / "conda.yml"
    path.write_text(f"channels: ['http://{host}:8000/channel']\ndependencies: [colour=1.0]\n")
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": f"http://{host}:8000/", "PIP_TRUSTED_HOST": host}
    with (
        KubeCluster(name="c", namespace=namespace, n_workers=1, environment=path, env=pip) as cluster,
        cluster.get_client() as client,
    ):
        assert client.submit(colour).result(timeout=180) == "blue"
        (pod,) = cluster.requested
        log = kubectl("-n", namespace, "logs", pod, "-c", "environment")
    assert f"http://{host}:8000/channel/noarch/colour-1.0-0.tar.bz2" in log.splitlines()


# A notebook in the cluster whose user has installed a package.
INSIDE = """
import sys
from daskfleet import KubeCluster
index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": sys.argv[1], "PIP_TRUSTED_HOST": sys.argv[2]}
with KubeCluster(name="inside", n_workers=1, environment="local", env=index) as cluster:
    with cluster.get_client() as client:
        name = client.submit(lambda: __import__("colour").name).result(timeout=180)
    print("SEEN", cluster.namespace, cluster.scheduler_address, name)
"""


def test_inside_a_pod_its_own_packages_travel_and_its_own_account_and_services_are_used(
    requirements, namespace, operator_in_cluster
):
    kubectl = operator_in_cluster.kubectl
    lines = requirements.read_text().splitlines()
    install = f"python3 -m pip install --quiet --target /tmp/mine {' '.join(lines)}"
    link, host = lines[1].split()[1], lines[2].split()[1]
    script = f'{install} && PYTHONPATH=/tmp/mine exec python3 -c "$0" {link} {host}'
    bed.run_in_pod(kubectl, namespace, ["sh", "-c", script, INSIDE])
    status = ("-n", namespace, "get", "pod", "notebook", "-o", "jsonpath={.status.phase}")
    eventually(lambda: kubectl(*status) in ("Succeeded", "Failed"), 240)
    log = kubectl("-n", namespace, "logs", "notebook")
    assert f"SEEN {namespace} tls://inside-scheduler.{namespace}.svc:8786 blue" in log, log
