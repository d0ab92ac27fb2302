"""The operator in the cluster, from its image and with its rights, and real schedulers and workers under it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from daskfleet import KubeCluster
from daskfleet.deploy.kubernetes import spec
from operator_bed import Json, Namespace, eventually

SAMPLES = Path(__file__).parents[2] / "crds" / "samples"

# Run in a runner pod: tasks that record each run of theirs on disk of no worker, but in the result.
WORK = """
import time
from daskfleet import Client
def work(n):
    time.sleep(0.05)
    return n
with Client() as client:
    client.wait_for_workers(WORKERS, timeout=180)
    print("begun", flush=True)
    results = client.gather(client.map(work, range(TASKS), pure=False))
    assert results == list(range(TASKS)), "a task was lost"
    print("all", len(results), "results", flush=True)
"""


@pytest.fixture
def lab(operator_in_cluster: Any, namespace: str) -> Namespace:
    return Namespace(operator_in_cluster, namespace)


def cluster(name: str, workers: int, **spec: Any) -> Json:
    made: Json = yaml.safe_load((SAMPLES / "daskcluster.yaml").read_text())
    made["metadata"]["name"] = name
    del made["spec"]["security"]  # as manifests that were written for dask-kubernetes
    made["spec"]["worker"]["replicas"] = workers
    made["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] = name
    made["spec"] |= spec
    return made


def group(name: str, cluster: str, workers: int) -> Json:
    made: Json = yaml.safe_load((SAMPLES / "daskworkergroup.yaml").read_text())
    made["metadata"]["name"] = name
    made["spec"]["cluster"] = cluster
    made["spec"]["worker"]["replicas"] = workers
    return made


def job(name: str, program: str, workers: int, **spec: Any) -> Json:
    made: Json = yaml.safe_load((SAMPLES / "daskjob.yaml").read_text())
    made["metadata"]["name"] = name
    made["spec"]["job"]["spec"]["containers"][0]["args"] = ["python", "-u", "-c", program]
    made["spec"]["cluster"]["spec"]["worker"]["replicas"] = workers
    made["spec"]["cluster"]["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] = name
    made["spec"] |= spec
    return made


def ready(lab: Namespace, group: str) -> list[Json]:
    def is_ready(pod: Json) -> bool:
        conditions = pod.get("status", {}).get("conditions", [])
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    return [pod for pod in lab.workers(group) if is_ready(pod)]


def registered(lab: Namespace, name: str) -> list[str]:
    """Names of the workers the scheduler knows."""
    path = f"/api/v1/namespaces/{lab.name}/services/{name}-scheduler:8787/proxy/api/v1/get_workers"
    try:
        answer = lab.kubectl("get", "--raw", path)
    except Exception as error:
        raise AssertionError(str(error)) from error
    return [worker["name"] for worker in json.loads(answer)["workers"]]


def runner_log(lab: Namespace, name: str) -> str:
    if lab.get("pod", f"{name}-runner").get("status", {}).get("phase") not in ("Running", "Succeeded", "Failed"):
        return ""
    return lab.kubectl("logs", f"{name}-runner")


def says(lab: Namespace, name: str, words: str) -> bool:
    log = runner_log(lab, name)
    assert words in log, f"{lab.get('djb', name).get('status')}: {log}"
    return True


def test_a_cluster_runs_scales_and_goes(lab: Namespace) -> None:
    lab.apply(cluster("run", 2))
    eventually(lambda: lab.get("dsk", "run").get("status", {}).get("phase") == "Running", "phase Running", 180)
    names = eventually(lambda: len(found := registered(lab, "run")) == 2 and found, "two workers at the scheduler", 180)
    assert sorted(names) == sorted(pod["metadata"]["name"] for pod in lab.workers("run-default"))
    lab.apply(group("run-other", "run", 1))
    (other,) = eventually(lambda: lab.workers("run-other"), "a worker of another group")
    lab.kubectl("scale", "daskworkergroup", "run-default", "--replicas=4")
    eventually(lambda: len(registered(lab, "run")) == 5, "five workers at the scheduler", 180)
    lab.kubectl("scale", "daskworkergroup", "run-default", "--replicas=1")
    eventually(lambda: len(registered(lab, "run")) == 2, "two workers at the scheduler", 180)
    (left,) = eventually(lambda: len(found := lab.workers("run-default")) == 1 and found, "one pod")
    # Who goes is chosen within the group alone.
    assert sorted(registered(lab, "run")) == sorted([left["metadata"]["name"], other["metadata"]["name"]])

    def counts() -> tuple[int, int]:
        status = lab.get("daskworkergroup", "run-default")["status"]
        return status["replicas"], status["readyReplicas"]

    eventually(lambda: counts() == (1, 1), "the status of the group")
    eventually(lambda: lab.condition("dsk", "run", "Ready")["status"] == "True", "a ready cluster")
    lab.kubectl("delete", "dsk", "run")
    eventually(lambda: not lab.items("pods", "dask.org/cluster-name=run"), "no pods", 180)


def test_workers_and_scheduler_that_are_lost_come_back(lab: Namespace) -> None:
    lab.apply(cluster("lost", 2))
    before = eventually(lambda: len(found := registered(lab, "lost")) == 2 and found, "two workers", 180)
    lab.kubectl("delete", "pod", before[0], "--wait=false")
    eventually(lambda: len(now := registered(lab, "lost")) == 2 and before[0] not in now, "another worker", 180)
    served = eventually(
        lambda: (c := lab.condition("dsk", "lost", "SchedulerReady"))["status"] == "True" and c, "a scheduler"
    )
    lab.kubectl("delete", "pod", "-l", "dask.org/cluster-name=lost,dask.org/component=scheduler", "--wait=false")

    def served_again() -> bool:
        """That it was not ready meanwhile is in the condition, however short that was."""
        status = lab.get("dsk", "lost")["status"]
        (now,) = [condition for condition in status["conditions"] if condition["type"] == "SchedulerReady"]
        again = now["status"] == "True" and now["lastTransitionTime"] != served["lastTransitionTime"]
        return bool(again and status["phase"] == "Running")

    eventually(served_again, "another scheduler, and phase Running", 180)
    eventually(lambda: len(registered(lab, "lost")) == 2, "the workers at the new scheduler", 180)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_job_runs_to_its_end_and_takes_its_cluster_along(lab: Namespace, encrypted: bool) -> None:
    made: Json = yaml.safe_load((SAMPLES / "daskjob.yaml").read_text())
    made["spec"]["cluster"]["spec"]["security"] = {"tls": encrypted}
    lab.apply(made)
    eventually(lambda: lab.get("djb", "count").get("status", {}).get("jobStatus") == "Successful", "success", 240)
    assert runner_log(lab, "count").strip().splitlines()[-1] == str(sum(n * n for n in range(100)))
    status = lab.get("djb", "count")["status"]
    assert status["startTime"] <= status["endTime"]
    eventually(lambda: not lab.get("dsk", "count"), "the cluster to go", 180)


def test_a_job_that_fails_is_tried_again_and_then_failed(lab: Namespace) -> None:
    lab.apply(job("bad", "raise SystemExit(3)", 0, backoffLimit=1, ttlSecondsAfterFinished=5))
    ended = eventually(lambda: (s := lab.get("djb", "bad")["status"])["jobStatus"] == "Failed" and s, "failure", 240)
    assert ended["failed"] == 2
    eventually(lambda: not lab.get("djb", "bad"), "the job to go when its time has come", 180)


# Goes on until three of four workers are gone, and holds what each of them has done.
SHRINKING = """
import time
from daskfleet import Client
def work(n):
    time.sleep(0.05)
    return n
with Client() as client:
    client.wait_for_workers(4, timeout=180)
    print("begun", flush=True)
    kept, end = [], time.monotonic() + 240
    while len(client.scheduler_info()["workers"]) > 1 or len(kept) < 120:
        assert time.monotonic() < end, "the workers stay"
        kept += client.map(work, range(len(kept), len(kept) + 60), pure=False)
        client.gather(kept[-120:-60])  # there is always work left
    assert client.gather(kept) == list(range(len(kept))), "a task was lost"
    print("all results", flush=True)
"""


def test_no_task_is_lost_when_workers_are_taken_away_under_load(lab: Namespace) -> None:
    lab.apply(job("shrink", SHRINKING, 4, backoffLimit=0))
    eventually(lambda: says(lab, "shrink", "begun"), "the work to begin", 240)
    lab.kubectl("scale", "daskworkergroup", "shrink-default", "--replicas=1")
    eventually(
        lambda: lab.get("djb", "shrink")["status"]["jobStatus"] in ("Successful", "Failed"), "the end of the work", 100
    )
    assert "all results" in runner_log(lab, "shrink")


def test_an_edit_rolls_workers_and_scheduler_and_work_goes_on(lab: Namespace) -> None:
    program = WORK.replace("WORKERS", "2").replace("TASKS", "300")
    manifest = cluster("roll", 2)
    lab.apply(manifest)
    eventually(lambda: len(registered(lab, "roll")) == 2, "two workers", 180)
    before = {pod["metadata"]["uid"] for pod in lab.workers("roll-default")}
    env = [
        {"name": "DASK_SCHEDULER_ADDRESS", "value": f"tcp://roll-scheduler.{lab.name}.svc.cluster.local:8786"},
        {
            "name": "DASKFLEET_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": "roll-token", "key": "token"}},
        },
    ]
    image = manifest["spec"]["worker"]["spec"]["containers"][0]["image"]
    container = {"name": "work", "image": image, "args": ["python", "-u", "-c", program], "env": env}
    spec = {"restartPolicy": "Never", "containers": [container]}
    lab.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "work"}, "spec": spec})
    eventually(lambda: lab.get("pod", "work")["status"]["phase"] == "Running", "the program to start", 180)
    eventually(lambda: "begun" in lab.kubectl("logs", "work"), "the work to begin", 180)
    for half, args in (("worker", ["--nthreads", "2"]), ("scheduler", ["--port", "8786"])):
        (edited,) = manifest["spec"][half]["spec"]["containers"]
        edited["image"] = f"docker.io/{image}"  # the same by another name
        edited["env"] = [{"name": "EDITED", "value": "yes"}]
        edited["resources"] = {"requests": {"cpu": "30m", "memory": "128Mi"}}
        edited["args"] += args
    lab.apply(manifest)
    generation = lab.get("dsk", "roll")["metadata"]["generation"]

    def rolled() -> bool:
        scheduler = lab.get("deployment", "roll-scheduler")["spec"]["template"]["spec"]["containers"][0]["image"]
        workers = {pod["metadata"]["uid"] for pod in lab.workers("roll-default")}
        if scheduler != image and workers & before:
            pytest.fail("the scheduler was changed before the workers")
        said = lab.condition("dsk", "roll", "Ready")
        return bool(said["observedGeneration"] == generation and said["status"] == "True" and not workers & before)

    eventually(rolled, "a cluster that is ready after its edit", 240)
    pods = [*lab.workers("roll-default"), *lab.items("pods", "dask.org/cluster-name=roll,dask.org/component=scheduler")]
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    assert [pod["spec"]["containers"][0]["image"] for pod in staying] == [f"docker.io/{image}"] * 3
    eventually(lambda: lab.get("pod", "work")["status"]["phase"] in ("Succeeded", "Failed"), "the end of the work", 240)
    assert "all 300 results" in lab.kubectl("logs", "work")


# Two waves of work. The first has many tasks, which wait until there are workers enough, and one that goes on while
# these are taken away; after each wave all are. Each run of a task is told to the scheduler, as that outlives workers.
WAVES = """
import time
from daskfleet import Client, Event, get_worker
def work(n, until, seconds):
    get_worker().log_event("ran", n)
    until.wait(seconds)
    time.sleep(0.2)
    return n
with Client() as client:
    workers = lambda: len(client.scheduler_info()["workers"])
    for first, last, most in (1, 60, 2), (101, 120, 1):
        many, few = Event(), Event()
        long = client.submit(work, last, few, 6, pure=False)
        short = client.map(lambda n: work(n, many, 90), range(first, last), pure=False)
        begun = time.monotonic()
        while not workers():
            time.sleep(0.05)
        print(f"first worker after {time.monotonic() - begun:.1f} s", flush=True)
        while workers() < most:
            assert time.monotonic() < begun + 240, f"{workers()} workers"
            time.sleep(0.05)
        many.set()
        assert client.gather(short) == list(range(first, last)), "a task was lost"
        while workers() > 1 and not long.done():
            time.sleep(0.05)
        few.set()
        assert long.result() == last
        del short, long
        print("done to", last, flush=True)
        while workers():
            time.sleep(0.1)
    ran = sorted(n for _, n in client.get_events("ran"))
    assert ran == [*range(1, 61), *range(101, 121)], ran
    print("each ran once", flush=True)
"""


def test_an_autoscaler_brings_workers_for_work_and_takes_them_away_without_losing_or_repeating_any(
    lab: Namespace,
) -> None:
    spec = {"cluster": "auto", "minimum": 0, "maximum": 4, "scaleDownDelaySeconds": 1, "cooldownSeconds": 0}
    head = {"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskAutoscaler", "metadata": {"name": "auto"}}
    lab.apply({**head, "spec": {**spec, "scaleDownPercent": 100, "workerGroup": "more"}})
    lab.apply(group("auto-more", "auto", 0))
    lab.apply(job("auto", WAVES, 0, backoffLimit=0))
    eventually(lambda: says(lab, "auto", "done to 60"), "the end of the first wave", 300)
    assert lab.items("pods", "dask.org/workergroup-name=auto-default") == []
    eventually(lambda: lab.get("djb", "auto")["status"]["jobStatus"] in ("Successful", "Failed"), "the end", 180)
    log = runner_log(lab, "auto")
    sys.stderr.write(log)  # how long the first worker took; `pytest -rA` shows it
    assert "each ran once" in log


def test_an_idle_cluster_is_ended_and_one_that_is_busy_or_in_use_is_not(
    lab: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.apply(cluster("idle", 1, idleTimeout=3))
    monkeypatch.setattr(spec, "ABANDONED_AFTER", 16)
    with KubeCluster(name="used", namespace=lab.name, quiet=True) as used, used.get_client() as user:
        made = KubeCluster(name="busy", namespace=lab.name, n_workers=1, idle_timeout=20, quiet=True)
        with made as busy, busy.get_client() as client:
            client.submit(time.sleep, 25).result(timeout=240)
            assert client.submit(sum, [1, 2]).result(timeout=180) == 3
        assert lab.get("dsk", "used") and user.scheduler_info()["workers"] == {}
    eventually(lambda: not lab.get("dsk", "idle"), "the idle cluster to go", 180)
