"""dask-labextension's own cluster manager, as its panel in JupyterLab drives it, with KubeCluster as its factory."""

import json
import subprocess
import sys
import zipfile

import pytest

VERSION = "7.0.0"

# Its package imports Jupyter's server as well, which its manager has no use for: the manager alone is imported.
SCRIPT = """
import asyncio, json, sys, types
import daskfleet
daskfleet.as_distributed()
package = sys.modules["dask_labextension"] = types.ModuleType("dask_labextension")
package.__path__ = [sys.argv[1]]

async def until(look):
    async with asyncio.timeout(60):
        while not (found := look()):
            await asyncio.sleep(0.05)
    return found

async def main():
    import dask, dask_labextension.config
    dask.config.set({"labextension.factory": {
        "module": "daskfleet", "class": "KubeCluster", "args": [],
        "kwargs": {"name": "panel", "namespace": sys.argv[2], "resource-timeout": 60},
    }})
    from dask_labextension.manager import DaskClusterManager
    async with DaskClusterManager() as manager:
        model = await manager.start_cluster("one", {"workers": 1})
        assert model["name"] == "KubeCluster 1" and model["dashboard_link"].endswith("/status"), model
        model = await until(lambda: (m := manager.get_cluster("one"))["workers"] == 1 and m)
        assert model["cores"] >= 1 and model["scheduler_address"].startswith("tcp://"), model
        await manager.scale_cluster("one", 2)
        await until(lambda: manager.list_clusters()[0]["workers"] == 2)
        model = manager.adapt_cluster("one", 0, 3)
        assert model["adapt"] == {"minimum": 0, "maximum": 3}, model
        json.dumps(manager.list_clusters())  # what its HTTP handler sends
        await manager.close_cluster("one")
        assert manager.list_clusters() == []
        await manager.start_cluster("two", {"adapt": {"minimum": 0, "maximum": 1}})
        assert manager.get_cluster("two")["adapt"] == {"minimum": 0, "maximum": 1}
    print("done")

asyncio.run(main())
"""


@pytest.mark.usefixtures("operator_in_cluster")
def test_its_panel_starts_scales_adapts_and_ends_clusters(namespace, kubernetes_api, tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    subprocess.run([*pip, "--dest", tmp_path, f"dask-labextension=={VERSION}"], check=True, timeout=100)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "dask_labextension"), namespace]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.stdout == "done\n", done.stderr
    left = json.loads(kubernetes_api.kubectl("-n", namespace, "get", "daskclusters", "-o", "json"))
    assert left["items"] == []
