"""What ``make demo`` shows is true: the sample, the job, and the scaling by kubectl."""

import pytest

from tests.cluster import Cluster, demo


def test_the_job_runs_and_kubectl_scales(
    operator_in_cluster: Cluster, namespace: str, capfd: pytest.CaptureFixture[str]
) -> None:
    demo.run_job(operator_in_cluster, namespace)
    assert capfd.readouterr().out.count("pandas agrees") == 3
    demo.scale(operator_in_cluster, namespace)
    assert capfd.readouterr().out.count("has joined after") == demo.MORE_WORKERS - demo.WORKERS
    selected = ["-n", namespace, "pods", "-l", f"dask.org/cluster-name={demo.NAME},dask.org/component=worker"]
    # The kubelet tells that a container runs up to a second after it does.
    running = "--for=jsonpath={.status.phase}=Running"
    waited = operator_in_cluster.kubectl("wait", running, *selected, "--timeout=240s", "-o", "name")
    assert len(waited.split()) == demo.MORE_WORKERS
