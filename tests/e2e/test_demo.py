"""What ``make demo`` shows is true: the sample, the job, and the scaling by kubectl."""

import json

import pytest

from tests.cluster import Cluster, demo


def test_the_job_runs_and_kubectl_scales(
    operator_in_cluster: Cluster, namespace: str, capfd: pytest.CaptureFixture[str]
) -> None:
    demo.run_job(operator_in_cluster, namespace)
    assert capfd.readouterr().out.count("pandas agrees") == 3
    demo.scale(operator_in_cluster, namespace)
    assert capfd.readouterr().out.count("has joined after") == demo.MORE_WORKERS - demo.WORKERS
    selected = ["-l", f"dask.org/cluster-name={demo.NAME},dask.org/component=worker"]
    pods = json.loads(operator_in_cluster.kubectl("-n", namespace, "get", "pods", *selected, "-o", "json"))["items"]
    assert len([pod for pod in pods if pod["status"]["phase"] == "Running"]) == demo.MORE_WORKERS
