"""Clusters whose session ends before they do, and what people see while one starts."""

import os
import pty
import re
import signal
import subprocess
import sys

import pytest
from daskfleet import KubeCluster
from operator_bed import Namespace

from tests.eventual import eventually

pytestmark = pytest.mark.usefixtures("operator_in_cluster")

NOTEBOOK = """
import time
from daskfleet import KubeCluster
cluster = KubeCluster(name="kept", namespace={namespace!r}, n_workers=1, idle_timeout=30, shutdown_on_close=False)
client = cluster.get_client()
client.publish_dataset(answer=client.submit(sum, [1, 2, 3]), wanted=client.submit(time.sleep, 5))
print("published", flush=True)
time.sleep(100)
"""
HALF_WAY = """
from daskfleet import KubeCluster
from daskfleet.deploy.kubernetes import spec
spec.ABANDONED_AFTER = 2
KubeCluster(name="half", namespace={namespace!r})
"""


def test_results_outlive_a_killed_notebook_and_what_nobody_comes_back_to_ends(namespace, kubernetes_api):
    def clusters():
        return {item["metadata"]["name"] for item in Namespace(kubernetes_api, namespace).items("daskclusters")}

    def start(script):
        return subprocess.Popen([sys.executable, "-c", script.format(namespace=namespace)], stdout=subprocess.PIPE)

    half, notebook = start(HALF_WAY), start(NOTEBOOK)
    eventually(lambda: "half" in clusters())
    half.kill()
    assert notebook.stdout.readline() == b"published\n"
    notebook.kill()
    half.communicate()
    notebook.communicate()
    with KubeCluster.from_name("kept", namespace=namespace) as cluster, cluster.get_client() as client:
        assert client.get_dataset("answer").result() == 6
        assert sorted(client.list_datasets()) == ["answer", "wanted"]
        client.get_dataset("wanted").result()
    eventually(lambda: not clusters())


def test_a_terminal_shows_pods_their_phases_and_reasons(namespace):
    script = f"""
from daskfleet import KubeCluster
KubeCluster(name="c", namespace={namespace!r}, image="nosuch/image:1", resource_timeout=20)
"""
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=side, stderr=subprocess.PIPE, env=environment)
    os.close(side)
    shown = b""
    try:
        while chunk := os.read(main, 65536):
            shown += chunk
    except OSError:  # the terminal's other end is closed
        pass
    finally:
        os.close(main)
        said = process.communicate(timeout=180)[1].decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert f"Starting {namespace}/c (" in text
    assert re.search(r"c-scheduler-\S+ +(ErrImagePull|ImagePullBackOff) +.*nosuch/image:1", text), text
    assert "'nosuch/image:1' cannot be pulled" in said and process.returncode == 1


def test_ctrl_c_while_it_starts_leaves_nothing(namespace, kubernetes_api):
    script = f"""
from daskfleet import KubeCluster
KubeCluster(name="c", namespace={namespace!r}, image="nosuch/image:1")
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    get = ("-n", namespace, "get", "daskclusters", "-o", "name")
    eventually(lambda: kubernetes_api.kubectl(*get))
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=180)[1]
    eventually(lambda: not kubernetes_api.kubectl(*get))
