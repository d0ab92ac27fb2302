"""Upstream's engine under the same resources: ``distributed`` itself in the pods, and its own client here."""

import importlib.metadata
import json

import kubeclusters
import pytest
import upstream_bed as bed
from daskfleet import KubeCluster

IMAGE = "daskfleet/test-distributed:1"
DASHBOARD = ["bokeh", "jinja2", "markupsafe", "contourpy", "pillow", "xyzservices", "narwhals"]
REQUIREMENTS = [f"distributed=={importlib.metadata.version('dask')}", *bed.NEEDED, *DASHBOARD]


@pytest.fixture(scope="module")
def upstream(operator_in_cluster):
    """Bring an image with `distributed` onto the cluster; return the folder that it is installed in here."""
    return bed.provide(operator_in_cluster, IMAGE, REQUIREMENTS)


SCRIPT = """
import urllib.request
from daskfleet import KubeCluster
with KubeCluster(name="c", namespace={namespace!r}, image={image!r}, engine="dask", n_workers=1, tls=True) as cluster:
    with cluster.get_client() as client:
        assert type(client).__module__ == "distributed.client", type(client)
        assert all(address.startswith("tls://") for address in client.scheduler_info()["workers"])
        assert client.gather(client.map(lambda x: x + 1, range(10))) == list(range(1, 11))
        cluster.scale(3)
        cluster.wait_for_workers(3, timeout=180)
        kept = client.map(lambda x: x * 2, range(30))
        cluster.scale(1)
        while len(cluster.scheduler_info["workers"]) > 1:
            pass
        assert client.gather(kept) == [2 * x for x in range(30)]
    with urllib.request.urlopen(cluster.dashboard_link, timeout=90) as page:
        shown = page.read().decode()
    assert "Dask Diagnostic UI" in shown and "static/js/bokeh" in shown, shown[:1000]
    again = KubeCluster.from_name("c", namespace={namespace!r})
    assert again.engine == "dask"
    again.close()
print("done")
"""


def test_work_and_scaling_with_upstreams_own_client(upstream, namespace):
    done = bed.run_program(SCRIPT.format(namespace=namespace, image=IMAGE), upstream, 400)
    assert done.stdout == "done\n", done.stderr


RELEASE = """
from daskfleet import KubeCluster
def size():
    return len(cluster.scheduler_info["workers"])
with KubeCluster(name="rel", namespace={namespace!r}) as cluster, cluster.get_client() as client:
    assert cluster.adapt(minimum=3, maximum=3) is None
    cluster.wait_for_workers(3, timeout=180)
    kept = client.scatter([[item] for item in range(30)], broadcast=False)
    cluster.scale(1)
    while size() > 1:
        pass
    assert client.gather(kept) == [[item] for item in range(30)]
print("done")
"""


def test_a_release_of_dasks_own_chart_is_adopted(upstream, namespace, operator_in_cluster):
    labels = kubeclusters.LABELS["dask"]
    # The chart's own values have no such variable: distributed serves what adaptive scaling asks for when told to.
    routes = [f"distributed.http.{name}" for name in ("health", "scheduler.json", "scheduler.info", "scheduler.api")]
    served = [{"name": "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES", "value": str(routes)}]
    items = [
        kubeclusters.deployment(
            "rel-scheduler", labels("rel", "scheduler"), ["dask", "scheduler"], served, image=IMAGE
        ),
        kubeclusters.deployment(
            "rel-worker", labels("rel", "worker"), ["dask", "worker"], kubeclusters.address(namespace), 2, IMAGE
        ),
        kubeclusters.service("rel-scheduler", labels("rel", "scheduler")),
    ]
    listing = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    operator_in_cluster.kubectl("-n", namespace, "apply", "-f", "-", input=listing)
    done = bed.run_program(RELEASE.format(namespace=namespace), upstream, 400)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.usefixtures("upstream")
def test_without_distributed_the_client_says_what_to_install(namespace):
    with (
        KubeCluster(name="c", namespace=namespace, image=IMAGE, engine="dask") as cluster,
        pytest.raises(ImportError, match="pip install distributed"),
    ):
        cluster.get_client()
