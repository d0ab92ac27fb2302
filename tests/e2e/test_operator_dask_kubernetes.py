"""dask-kubernetes' own client against our operator, on upstream's engine: its users' programs go on working."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import upstream_bed as bed
from operator_bed import Namespace

from tests.benchmarks.kubernetes.peer.install import VERSION

IMAGE = "daskfleet/test-dask-kubernetes:1"
CLIENT = [f"dask-kubernetes=={VERSION}", f"dask=={VERSION}", f"distributed=={VERSION}"]

# Threads and timeouts are the machine's; all else is what its documents show.
PROGRAM = """
import time
import distributed
from dask_kubernetes.operator import KubeCluster, make_cluster_spec

def workers(client, count):
    end = time.monotonic() + 180
    while len(client.scheduler_info(n_workers=-1)["workers"]) != count:
        assert time.monotonic() < end, client.scheduler_info()
        time.sleep(0.1)

spec = make_cluster_spec("theirs", image={image!r}, n_workers=1, resources={{"requests": {{"cpu": "50m"}}}})
options = dict(namespace={namespace!r}, port_forward_cluster_ip=True, quiet=True)
with KubeCluster(custom_cluster_spec=spec, **options) as cluster, distributed.Client(cluster) as client:
    workers(client, 1)
    assert client.submit(sum, [1, 2, 3]).result(timeout=180) == 6
    cluster.scale(3)
    workers(client, 3)
    kept = client.map(lambda n: n * n, range(30))
    distributed.wait(kept)
    cluster.scale(1)
    workers(client, 1)
    assert client.gather(kept) == [n * n for n in range(30)]
    print("scaled", flush=True)
    cluster.add_worker_group("more", n_workers=1, image={image!r}, resources={{"requests": {{"cpu": "50m"}}}})
    workers(client, 2)
    cluster.delete_worker_group("more")
    workers(client, 1)
    print("grouped", flush=True)
    logs = cluster.get_logs()  # also of a pod that is still ending
    assert any("-scheduler-" in name for name in logs) and any("-default-worker-" in name for name in logs), list(logs)
    again = KubeCluster.from_name("theirs", shutdown_on_close=False, **options)
    assert again.name == "theirs"
    again.close()
    cluster.adapt(minimum=1, maximum=2)
    slow = client.map(lambda n: time.sleep(0.5) or n, range(400))  # more than can be done until the second is there
    workers(client, 2)
    print("adapted", flush=True)
    client.cancel(slow)
print("closed", flush=True)
"""


@pytest.fixture(scope="module")
def theirs(operator_in_cluster: Any) -> Path:
    """The folder of their client's packages; the image of their engine is on the cluster."""
    return bed.provide(operator_in_cluster, IMAGE, [*CLIENT[1:], *bed.NEEDED], CLIENT)


def test_create_scale_adapt_and_close(operator_in_cluster: Any, theirs: Path, namespace: str) -> None:
    done = bed.run_program(PROGRAM.format(image=IMAGE, namespace=namespace), theirs, 400)
    assert done.stdout.split() == ["scaled", "grouped", "adapted", "closed"], done.stdout + done.stderr[-4000:]
    lab = Namespace(operator_in_cluster, namespace)
    assert lab.items("daskclusters") == [] and lab.items("daskautoscalers") == []
