"""What a user keeps when a scheduler is lost, and when the operator runs outside of the pods' network."""

from __future__ import annotations

import functools
import time
from typing import Any

from daskfleet import KubeCluster
from operator_bed import Namespace, eventually, operator

RESOURCES = {"requests": {"cpu": "50m", "memory": "128Mi"}}
SCHEDULER = "dask.org/component=scheduler"
slow = functools.partial(time.sleep, 0.2)  # functions that pods have, too
square = functools.partial(pow, exp=2)


def test_work_and_data_outlive_the_scheduler(operator_in_cluster: Any, namespace: str) -> None:
    lab = Namespace(operator_in_cluster, namespace)
    lab.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    with (
        KubeCluster(name="c", namespace=namespace, n_workers=2, resources=RESOURCES) as cluster,
        cluster.get_client() as client,
    ):
        cluster.wait_for_workers(2, timeout=180)
        workers = {pod["metadata"]["uid"] for pod in lab.workers("c-default")}
        kept = client.scatter([[n] for n in range(10)])  # nothing could compute these again
        squares = client.map(square, range(20))
        client.gather(squares)
        client.publish_dataset(squares=squares)
        running = client.map(lambda n, wait: (wait(), n)[1], range(60), wait=slow, pure=False)
        (pod,) = lab.items("pods", SCHEDULER)
        lab.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
        assert client.gather(running) == list(range(60))
        assert client.gather(kept) == [[n] for n in range(10)]
        assert client.gather(client.get_dataset("squares")) == [n * n for n in range(20)]
        (other,) = lab.items("pods", SCHEDULER)
        assert other["metadata"]["uid"] != pod["metadata"]["uid"]
        assert {pod["metadata"]["uid"] for pod in lab.workers("c-default")} == workers  # they joined again
        eventually(lambda: lab.condition("dsk", "c", "Ready")["status"] == "True", "a ready cluster")


def test_an_operator_outside_of_the_pods_network_takes_workers_away_with_their_data_moved_and_their_tasks_done(
    cluster_with_images: Any, namespace: str
) -> None:
    def work(n: int) -> int:
        from daskfleet import get_worker

        get_worker().log_event("ran", n)
        time.sleep(3)
        return n

    lab, options = Namespace(cluster_with_images, namespace), ("--namespace", namespace)
    with (
        operator(cluster_with_images.kubeconfig, *options) as process,
        KubeCluster(
            name="c", namespace=namespace, n_workers=3, resources=RESOURCES, shutdown_on_close=False
        ) as cluster,
        cluster.get_client() as client,
    ):
        cluster.wait_for_workers(3, timeout=180)
        kept = client.scatter([[n] for n in range(12)])  # spread over all of them
        running = [
            client.submit(work, n, workers=[address], allow_other_workers=True, pure=False)
            for n, address in enumerate(client.scheduler_info()["workers"])
        ]
        eventually(lambda: len(client.get_events("ran")) == 3, "a task on each")
        lab.kubectl("scale", "daskworkergroup", "c-default", "--replicas=1")
        eventually(lambda: len(client.scheduler_info()["workers"]) == 1, "one worker", 180)
        assert client.gather(kept) == [[n] for n in range(12)]
        assert client.gather(running) == [0, 1, 2]
        assert sorted(n for _, n in client.get_events("ran")) == [0, 1, 2]  # what ran was waited for
        assert "tried again" not in process.output() and "timed out" not in process.output()
    lab.kubectl("delete", "secret", "c-token")
    begun = {pod["metadata"]["uid"] for pod in lab.items("pods", SCHEDULER)}

    def failure(reason: str) -> bool:
        return lab.condition("dsk", "c", "ReplicaFailure")["reason"] == reason

    with operator(cluster_with_images.kubeconfig, *options):
        eventually(lambda: failure("TokenLost"), "that new workers cannot join")
        lab.kubectl("scale", "daskworkergroup", "c-default", "--replicas=2")
        lab.kubectl("delete", "pods", "-l", "dask.org/cluster-name=c", "--wait=false")  # as the condition says
        eventually(
            lambda: not begun & {pod["metadata"]["uid"] for pod in lab.items("pods", SCHEDULER)}, "it to go", 180
        )
        eventually(lambda: failure("NoFailure"), "it to clear")
        eventually(lambda: lab.condition("dsk", "c", "Ready")["status"] == "True", "another scheduler", 180)
        with KubeCluster.from_name("c", namespace=namespace) as again, again.get_client() as client:
            again.wait_for_workers(2, timeout=180)
            assert client.submit(sum, [1, 2, 3]).result(timeout=180) == 6
