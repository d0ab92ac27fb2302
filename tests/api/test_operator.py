"""The operator against a real API server. Pods need not run here: what is made, counted, said and deleted matters."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from operator_bed import (
    MANIFESTS,
    Namespace,
    OperatorProcess,
    cluster_manifest,
    eventually,
    free_port,
    operator,
    unplaced,
)

DASHBOARD = Path(__file__).parents[2] / "charts/daskfleet-operator/files/dashboard.json"


@pytest.fixture(scope="module")
def lab(kubernetes_api: Any, module_namespace: str) -> Namespace:
    return Namespace(kubernetes_api, module_namespace)


@pytest.fixture(scope="module")
def running(kubernetes_api: Any, lab: Namespace) -> Iterator[OperatorProcess]:
    with operator(kubernetes_api.kubeconfig, "--namespace", lab.name) as process:
        yield process


def owner_names(resource: dict[str, Any]) -> list[str]:
    return [f"{owner['kind']}/{owner['name']}" for owner in resource["metadata"]["ownerReferences"]]


def owned(lab: Namespace, kind: str, name: str, owner: str) -> None:
    eventually(lambda: owner_names(lab.get(kind, name)) == [owner], f"{kind} {name} as {owner}'s")


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]}


def test_a_manifest_for_dask_kubernetes_becomes_what_its_users_rely_on(
    lab: Namespace, running: OperatorProcess
) -> None:
    lab.apply(MANIFESTS / "upstream" / "cluster.yaml")
    workers = eventually(lambda: len(found := lab.workers("simple-default")) == 2 and found, "two worker pods")
    for pod in workers:
        labels = pod["metadata"]["labels"]
        assert labels["dask.org/cluster-name"] == "simple"
        assert labels["dask.org/component"] == "worker"
        assert labels["team"] == "astro" and labels["tier"] == "compute"
        assert pod["metadata"]["annotations"]["note"] == "kept"
        assert pod["metadata"]["name"].startswith("simple-default-worker-")
        assert environment(pod)["DASK_WORKER_NAME"] == pod["metadata"]["name"]
        address = f"tcp://simple-scheduler.{lab.name}.svc.cluster.local:8786"
        assert environment(pod)["DASK_SCHEDULER_ADDRESS"] == address
        assert owner_names(pod) == ["DaskWorkerGroup/simple-default"]
    for kind in ("deployment", "service", "poddisruptionbudget"):
        owned(lab, kind, "simple-scheduler", "DaskCluster/simple")
    owned(lab, "secret", "simple-token", "DaskCluster/simple")
    owned(lab, "daskworkergroup", "simple-default", "DaskCluster/simple")
    for kind, name in (("dsk", "simple"), ("daskworkergroup", "simple-default"), ("service", "simple-scheduler")):
        assert not lab.get(kind, name)["metadata"].get("finalizers")
    service = lab.get("service", "simple-scheduler")
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {
        "tcp-comm": 8786,
        "http-dashboard": 8787,
    }
    eventually(lambda: lab.get("dsk", "simple")["status"]["phase"] == "Pending", "phase Pending")


def test_more_groups_are_adopted_and_named_workers_keep_their_name(lab: Namespace, running: OperatorProcess) -> None:
    lab.apply(MANIFESTS / "upstream" / "workergroup.yaml")
    (pod,) = eventually(lambda: lab.workers("simple-extra"), "its worker")
    assert environment(pod)["DASK_WORKER_NAME"] == "named-by-hand"
    owned(lab, "daskworkergroup", "simple-extra", "DaskCluster/simple")
    group = lab.get("daskworkergroup", "simple-extra")
    assert group["metadata"]["labels"]["dask.org/cluster-name"] == "simple"


def test_kubectl_scale_works_on_groups_and_clusters_both_ways(lab: Namespace, running: OperatorProcess) -> None:
    lab.apply(cluster_manifest("scaled", 2))
    eventually(lambda: len(lab.workers("scaled-default")) == 2, "two workers")
    lab.kubectl("scale", "daskworkergroup", "scaled-default", "--replicas=5")
    before = eventually(lambda: len(found := lab.workers("scaled-default")) == 5 and found, "five workers")
    lab.kubectl("scale", "daskcluster", "scaled", "--replicas=3")
    after = eventually(lambda: len(found := lab.workers("scaled-default")) == 3 and found, "three workers")
    assert {pod["metadata"]["uid"] for pod in after} < {pod["metadata"]["uid"] for pod in before}
    status = eventually(
        lambda: (said := json.loads(lab.kubectl("get", "--raw", scale_path(lab)))["status"])["replicas"] == 3 and said,
        "the scale subresource",
    )
    eventually(lambda: len(lab.items("pods", status["selector"])) >= 3, "its pods")


def scale_path(lab: Namespace) -> str:
    return f"/apis/kubernetes.dask.org/v1/namespaces/{lab.name}/daskworkergroups/scaled-default/scale"


def test_deleted_objects_come_back(lab: Namespace, running: OperatorProcess) -> None:
    lab.apply(cluster_manifest("lost", 1))
    (pod,) = eventually(lambda: lab.workers("lost-default"), "its worker")
    eventually(lambda: lab.get("service", "lost-scheduler"), "its Service")
    lab.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
    eventually(
        lambda: [p for p in lab.workers("lost-default") if p["metadata"]["uid"] != pod["metadata"]["uid"]], "one"
    )
    for kind, name in (
        ("service", "lost-scheduler"),
        ("deployment", "lost-scheduler"),
        ("daskworkergroup", "lost-default"),
    ):
        uid = eventually(lambda k=kind, n=name: lab.get(k, n), f"{kind} {name}")["metadata"]["uid"]
        lab.kubectl("delete", kind, name, "--wait=false")
        eventually(lambda k=kind, n=name, u=uid: (f := lab.get(k, n)) and f["metadata"]["uid"] != u, f"{kind} {name}")
    group = lab.get("daskworkergroup", "lost-default")["metadata"]["uid"]

    def owners() -> list[str]:
        return [pod["metadata"]["ownerReferences"][0]["uid"] for pod in lab.workers("lost-default")]

    eventually(lambda: owners() == [group], "one worker, of the new group")


def test_an_image_that_cannot_be_pulled_is_said_and_makes_no_storm(lab: Namespace, running: OperatorProcess) -> None:
    made = running.requests("POST", "pods")
    lab.apply(cluster_manifest("noimage", 2, image="example.invalid/nothing:1"))
    for kind, name in (("daskworkergroup", "noimage-default"), ("daskcluster", "noimage")):
        failure = in_trouble(lab, kind, name, "ImagePullFailed")
        assert "example.invalid/nothing:1" in failure["message"]
        assert failure["observedGeneration"] == 1
        eventually(lambda n=name: "ImagePullFailed" in lab.events(n), f"the event on {name}")
    assert running.requests("POST", "pods") == made + 2


def in_trouble(lab: Namespace, kind: str, name: str, reason: str) -> dict[str, Any]:
    """The condition, once it tells of this failure: a slow kubelet may tell of another before."""

    def said() -> dict[str, Any]:
        failure = lab.condition(kind, name, "ReplicaFailure")
        assert (failure["status"], failure["reason"]) == ("True", reason), failure
        return failure

    return eventually(said, f"the failure of {kind} {name}")


def test_bad_templates_are_said_in_the_api_servers_words_and_nothing_is_started(
    lab: Namespace, running: OperatorProcess
) -> None:
    lab.apply(MANIFESTS / "templates")
    sentences = {
        path.stem: path.read_text().splitlines()[0].removeprefix("# says: ")
        for path in (MANIFESTS / "templates").glob("*.yaml")
    }

    def refused() -> dict[str, dict[str, Any]]:
        """What is said of each, by its condition Ready or, for a job, Complete."""
        found = [item for item in lab.items("daskclusters,daskjobs") if item["metadata"]["name"] in sentences]
        told = [(item, *item.get("status", {}).get("conditions", [])) for item in found]
        return {
            item["metadata"]["name"]: condition
            for item, *conditions in told
            for condition in conditions
            if condition["type"] in ("Ready", "Complete") and condition["reason"] in ("Refused", "Forbidden")
        }

    eventually(lambda: refused().keys() == sentences.keys(), "a condition on each")
    for name, condition in refused().items():
        assert condition["status"] == "False" and sentences[name] in condition["message"]
        eventually(lambda n=name, c=condition: c["reason"] in lab.events(n), f"the event on {name}")
    assert {lab.get("dsk", name)["status"]["phase"] for name in sentences if name != "runner"} == {"Error"}
    names = {item["metadata"]["labels"].get("dask.org/cluster-name") for item in lab.items("pods,deployments")}
    assert not names & sentences.keys()


def test_a_bad_template_that_is_mended_starts_the_cluster(lab: Namespace, running: OperatorProcess) -> None:
    manifest = cluster_manifest("mended", 2)
    manifest["spec"]["worker"]["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "lots"}}
    lab.apply(manifest)
    assert "quantities must match" in in_trouble(lab, "dsk", "mended", "Refused")["message"]
    del manifest["spec"]["worker"]["spec"]["containers"][0]["resources"]
    lab.apply(manifest)
    eventually(lambda: len(lab.workers("mended-default")) == 2, "workers of the mended template")
    eventually(lambda: lab.get("dsk", "mended")["status"]["phase"] == "Pending", "phase Pending")
    eventually(lambda: lab.condition("dsk", "mended", "ReplicaFailure")["reason"] != "Refused", "it to clear")


def test_a_running_cluster_outlives_an_edit_that_is_refused(lab: Namespace, running: OperatorProcess) -> None:
    lab.apply(cluster_manifest("outlives", 1))
    eventually(lambda: lab.workers("outlives-default"), "its worker")
    uid = eventually(lambda: lab.get("deployment", "outlives-scheduler"), "its scheduler")["metadata"]["uid"]
    edited = cluster_manifest("outlives", 1)
    edited["spec"]["scheduler"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "nowhere", "mountPath": "/x"}]
    lab.apply(edited)
    eventually(
        lambda: 'volumeMounts[0].name: Not found: "nowhere"' in lab.condition("dsk", "outlives", "Ready")["message"],
        "the condition",
    )
    kept = lab.get("deployment", "outlives-scheduler")
    assert kept["metadata"]["uid"] == uid and kept["metadata"]["generation"] == 1


def test_pod_security_is_said_before_anything_is_started(kubernetes_api: Any, namespace: str) -> None:
    lab = Namespace(kubernetes_api, namespace)
    lab.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    with operator(kubernetes_api.kubeconfig, "--namespace", namespace, "--cluster-domain", "corp.example"):
        lab.apply(cluster_manifest("lax", 1))
        failure = in_trouble(lab, "dsk", "lax", "Forbidden")
        assert 'violates PodSecurity "restricted' in failure["message"]
        assert lab.items("pods,deployments") == []
        lab.kubectl("label", "namespace", namespace, "--overwrite", "pod-security.kubernetes.io/enforce=privileged")
        (worker,) = eventually(lambda: lab.workers("lax-default"), "its worker")
        address = f"tcp://lax-scheduler.{namespace}.svc.corp.example:8786"
        assert environment(worker)["DASK_SCHEDULER_ADDRESS"] == address
        eventually(lambda: lab.condition("dsk", "lax", "ReplicaFailure")["reason"] != "Forbidden", "it to clear")


def test_a_quota_is_said_and_obeyed_and_clears(kubernetes_api: Any, namespace: str) -> None:
    lab = Namespace(kubernetes_api, namespace)
    lab.kubectl("create", "quota", "few", "--hard=pods=3")
    with operator(kubernetes_api.kubeconfig, "--namespace", namespace) as process:
        lab.apply(unplaced(cluster_manifest("many", 2)))  # nobody but a clock wakes the operator
        eventually(lambda: len(lab.items("pods")) == 3, "its pods")
        lab.kubectl("scale", "daskworkergroup", "many-default", "--replicas=8")
        failure = in_trouble(lab, "daskworkergroup", "many-default", "QuotaExceeded")
        assert "exceeded quota: few" in failure["message"]
        assert process.requests("POST", "pods") < 40
        lab.kubectl("patch", "quota", "few", "--type=merge", "-p", '{"spec":{"hard":{"pods":"20"}}}')
        eventually(lambda: len(lab.workers("many-default")) == 8, "all workers", seconds=180)
        eventually(
            lambda: lab.condition("daskworkergroup", "many-default", "ReplicaFailure")["reason"] != "QuotaExceeded",
            "the condition to clear",
        )


def test_a_taken_name_is_said_and_what_has_it_is_left_alone(lab: Namespace, running: OperatorProcess) -> None:
    lab.kubectl("create", "deployment", "taken-scheduler", "--image=example.invalid/mine:1")
    lab.apply(cluster_manifest("taken", 0))
    ready = eventually(lambda: (c := lab.condition("dsk", "taken", "Ready")).get("reason") == "NameTaken" and c, "it")
    assert "'taken-scheduler' exists" in ready["message"]
    containers = lab.get("deployment", "taken-scheduler")["spec"]["template"]["spec"]["containers"]
    assert containers[0]["image"] == "example.invalid/mine:1"


def test_deleting_the_cluster_takes_everything_of_it_and_nothing_else(lab: Namespace, running: OperatorProcess) -> None:
    lab.apply(cluster_manifest("gone", 2))
    lab.apply(cluster_manifest("stays", 1))
    eventually(lambda: len(lab.workers("gone-default")) == 2 and len(lab.workers("stays-default")) == 1, "workers")
    lab.kubectl("delete", "dsk", "gone")
    kinds = "pods,services,deployments,secrets,poddisruptionbudgets,daskworkergroups"
    eventually(lambda: not lab.items(kinds, "dask.org/cluster-name=gone"), "nothing of the cluster", seconds=180)
    assert len(lab.workers("stays-default")) == 1


def test_a_group_without_its_cluster_says_so_until_the_cluster_comes(lab: Namespace, running: OperatorProcess) -> None:
    group = yaml.safe_load((MANIFESTS / "upstream" / "workergroup.yaml").read_text())
    group["metadata"]["name"], group["spec"]["cluster"] = "early", "later"
    lab.apply(group)
    ready = eventually(lambda: lab.condition("daskworkergroup", "early", "Ready"), "a condition")
    assert ready["reason"] == "ClusterNotFound" and "'later' does not exist" in ready["message"]
    lab.apply(cluster_manifest("later", 0))
    eventually(lambda: lab.workers("early"), "its worker")


def test_suspend_takes_the_pods_and_gives_them_back(lab: Namespace, running: OperatorProcess) -> None:
    lab.apply(cluster_manifest("paused", 2))
    eventually(lambda: len(lab.workers("paused-default")) == 2, "two workers")
    lab.kubectl("patch", "dsk", "paused", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    eventually(lambda: not lab.workers("paused-default"), "no workers")
    eventually(lambda: lab.get("deployment", "paused-scheduler")["spec"]["replicas"] == 0, "no scheduler")
    assert eventually(lambda: lab.get("dsk", "paused")["status"]["phase"] == "Suspended", "the phase")
    lab.kubectl("patch", "dsk", "paused", "--type=merge", "-p", '{"spec":{"suspend":null}}')
    eventually(lambda: len(lab.workers("paused-default")) == 2, "two workers again")
    eventually(lambda: lab.get("deployment", "paused-scheduler")["spec"]["replicas"] == 1, "the scheduler again")


def test_each_edit_of_the_cluster_reaches_workers_and_scheduler(lab: Namespace, running: OperatorProcess) -> None:
    manifest = cluster_manifest("edited", 2)
    lab.apply(manifest)
    eventually(lambda: len(lab.workers("edited-default")) == 2, "two workers")
    edits: dict[str, Any] = {
        "image": "example.invalid/new:1",
        "args": ["sleep", "5"],
        "env": [{"name": "EDITED", "value": "yes"}],
        "resources": {"requests": {"cpu": "3m"}},
    }

    def reached(spec: dict[str, Any], field: str) -> bool:
        (container,) = spec["containers"]
        return bool(container.get(field) == edits[field] or (field == "env" and edits["env"][0] in container["env"]))

    for field, value in edits.items():
        for half in ("worker", "scheduler"):
            manifest["spec"][half]["spec"]["containers"][0][field] = value
        lab.apply(manifest)
        eventually(
            lambda f=field: [reached(pod["spec"], f) for pod in lab.workers("edited-default")] == [True] * 2,
            f"two workers with the edited {field}",
        )
        eventually(
            lambda f=field: reached(lab.get("deployment", "edited-scheduler")["spec"]["template"]["spec"], f),
            f"the scheduler with the edited {field}",
        )


def test_an_edit_of_the_service_reaches_it(lab: Namespace, running: OperatorProcess) -> None:
    manifest = cluster_manifest("ports", 0)
    lab.apply(manifest)
    eventually(lambda: lab.get("service", "ports-scheduler"), "the Service")
    manifest["spec"]["scheduler"]["service"]["ports"].append({"name": "jupyter", "port": 8888})
    lab.apply(manifest)
    eventually(lambda: len(lab.get("service", "ports-scheduler")["spec"]["ports"]) == 3, "a third port")


def test_two_autoscalers_on_one_group(lab: Namespace, running: OperatorProcess) -> None:
    lab.apply(cluster_manifest("auto", 1))
    for name in ("first", "second"):
        spec = {"cluster": "auto", "minimum": 1, "maximum": 3}
        metadata = {"name": name}
        lab.apply(
            {"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskAutoscaler", "metadata": metadata, "spec": spec}
        )
        eventually(lambda n=name: lab.condition("daskautoscaler", n, "Ready"), f"a condition on {name}")
    conflict = eventually(
        lambda: (c := lab.condition("daskautoscaler", "second", "Ready"))["reason"] == "ConflictingAutoscaler" and c,
        "the conflict",
    )
    assert "'first'" in conflict["message"]
    eventually(lambda: "ConflictingAutoscaler" in lab.events("second"), "the event")
    owned(lab, "daskautoscaler", "first", "DaskCluster/auto")
    lab.kubectl("delete", "daskautoscaler", "first")
    eventually(
        lambda: lab.condition("daskautoscaler", "second", "Ready")["reason"] != "ConflictingAutoscaler", "it to clear"
    )


def test_an_autoscaler_without_its_cluster_or_group_says_so(lab: Namespace, running: OperatorProcess) -> None:
    head = {"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskAutoscaler", "metadata": {"name": "alone"}}
    lab.apply({**head, "spec": {"cluster": "absent", "workerGroup": "gpu", "minimum": 0, "maximum": 1}})

    def said(reason: str) -> str:
        condition = lab.condition("daskautoscaler", "alone", "Ready")
        return condition["message"] if condition["reason"] == reason else ""

    assert "'absent' does not exist" in eventually(lambda: said("ClusterNotFound"), "what is missing")
    lab.apply(cluster_manifest("absent", 0))
    assert "no DaskWorkerGroup named 'gpu'" in eventually(lambda: said("WorkerGroupNotFound"), "what is missing then")
    group = yaml.safe_load((MANIFESTS / "upstream" / "workergroup.yaml").read_text())
    group["metadata"]["name"], group["spec"]["cluster"] = "absent-gpu", "absent"
    lab.apply(group)
    eventually(lambda: said("SchedulerStarting"), "nothing to be missing")


def test_a_job_makes_its_cluster_and_runner_and_suspends(lab: Namespace, running: OperatorProcess) -> None:
    lab.apply(MANIFESTS / "upstream" / "job.yaml")
    runner = eventually(lambda: lab.get("pod", "simple-job-runner"), "the runner")
    assert owner_names(runner) == ["DaskJob/simple-job"]
    assert runner["metadata"]["labels"]["dask.org/component"] == "job-runner"
    assert runner["spec"]["restartPolicy"] == "OnFailure"
    owned(lab, "dsk", "simple-job", "DaskJob/simple-job")
    eventually(
        lambda: lab.get("djb", "simple-job").get("status", {}).get("jobStatus") == "ClusterCreated", "the status"
    )
    lab.kubectl("patch", "djb", "simple-job", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    eventually(
        lambda: not lab.get("dsk", "simple-job") and not lab.get("pod", "simple-job-runner"), "nothing left", 180
    )
    lab.kubectl("patch", "djb", "simple-job", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    eventually(lambda: lab.get("pod", "simple-job-runner"), "the runner again")


def test_a_job_whose_cluster_exists_says_so(lab: Namespace, running: OperatorProcess) -> None:
    lab.apply(cluster_manifest("same", 0))
    job = yaml.safe_load((MANIFESTS / "upstream" / "job.yaml").read_text())
    job["metadata"]["name"] = "same"
    lab.apply(job)
    # That the cluster is there may be seen after the job.
    eventually(lambda: lab.condition("djb", "same", "Complete")["reason"] == "ClusterExists", "the condition")
    assert not lab.get("pod", "same-runner")
    lab.kubectl("delete", "dsk", "same")
    eventually(lambda: lab.get("pod", "same-runner"), "its runner, now that the name is free")
    eventually(lambda: lab.condition("djb", "same", "Complete")["reason"] != "ClusterExists", "it to clear")


def test_an_edit_of_a_job_reaches_its_cluster_and_mends_its_runner(lab: Namespace, running: OperatorProcess) -> None:
    job = yaml.safe_load((MANIFESTS / "upstream" / "job.yaml").read_text())
    job["metadata"]["name"] = "bad"
    job["spec"]["cluster"]["spec"]["worker"]["replicas"] = 1
    containers = [job["spec"]["job"], job["spec"]["cluster"]["spec"]["worker"]]
    for half in containers:
        half["spec"]["containers"][0]["image"] = "example.invalid/nothing:1"
    lab.apply(job)
    # What is wrong with its cluster is said, too, until the runner has been tried.
    said = eventually(
        lambda: (c := lab.condition("djb", "bad", "Complete")) and "bad-runner: the image" in c["message"] and c,
        "the condition",
    )
    assert said["reason"] == "ImagePullFailed"
    eventually(lambda: "ImagePullFailed" in lab.events("bad"), "the event")
    for half in containers:
        half["spec"]["containers"][0]["image"] = "example.invalid/other:1"
    lab.apply(job)

    def images() -> list[str]:
        pods = [lab.get("pod", "bad-runner"), *lab.workers("bad-default")]
        return [pod["spec"]["containers"][0]["image"] for pod in pods if pod]

    eventually(lambda: images() == ["example.invalid/other:1"] * 2, "the edited runner and worker")


# --- what happens to the operator itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("kill_after", [0.05, 0.2])
def test_killed_in_the_middle_of_a_scale_down_the_next_one_finishes_it(
    kubernetes_api: Any, namespace: str, kill_after: float
) -> None:
    lab = Namespace(kubernetes_api, namespace)
    options = ("--namespace", namespace)
    with operator(kubernetes_api.kubeconfig, *options) as first:
        lab.apply(unplaced(cluster_manifest("c", 8)))
        before = eventually(lambda: len(found := lab.workers("c-default")) == 8 and found, "eight workers")
        lab.kubectl("scale", "daskworkergroup", "c-default", "--replicas=3")
        threading.Event().wait(kill_after)
        first.kill()
    intended = {
        pod["metadata"]["uid"]
        for pod in lab.items("pods", "dask.org/workergroup-name=c-default")
        if any(condition["type"] == "kubernetes.dask.org/Retiring" for condition in pod["status"].get("conditions", ()))
    }
    with operator(kubernetes_api.kubeconfig, *options) as second:
        after = eventually(lambda: len(found := lab.workers("c-default")) == 3 and found, "three workers")
        second.kill()  # in its first second kopf takes five to end in order
    left = {pod["metadata"]["uid"] for pod in after}
    assert left <= {pod["metadata"]["uid"] for pod in before}
    assert not left & intended


def test_standby_takes_over_when_the_leader_dies(kubernetes_api: Any, namespace: str) -> None:
    lab = Namespace(kubernetes_api, namespace)
    options = ("--namespace", namespace, "--leader-elect", "--lease-namespace", namespace, "--lease-seconds", "30")
    with (
        operator(kubernetes_api.kubeconfig, *options) as first,
        operator(kubernetes_api.kubeconfig, *options, ready="standing by") as second,
    ):
        lab.apply(unplaced(cluster_manifest("ha", 1)))
        eventually(lambda: len(lab.workers("ha-default")) == 1, "one worker")
        assert second.requests("POST", "pods") == 0
        lab.kubectl("scale", "daskworkergroup", "ha-default", "--replicas=80")
        lab.apply(unplaced(cluster_manifest("ha-too", 20)))
        eventually(lambda: len(lab.workers("ha-default")) > 2, "some of the workers")
        first.kill()  # in the middle of the others
        second.wait_for("leading", seconds=180)
        groups = {"ha-default": 80, "ha-too-default": 20}
        for name, size in groups.items():
            eventually(lambda n=name, s=size: len(lab.workers(n)) == s, f"{size} workers of {name}", seconds=180)
            status = eventually(lambda n=name: lab.get("daskworkergroup", n).get("status"), "its status")
            assert status["replicas"] <= size
        # No pod too many was made: what the dead one had in flight is counted, too.
        assert len(lab.items("pods", "dask.org/component=worker")) == sum(groups.values())


def test_a_leader_that_ends_in_order_hands_over_at_once(kubernetes_api: Any, namespace: str) -> None:
    options = ("--namespace", namespace, "--leader-elect", "--lease-namespace", namespace, "--lease-seconds", "3600")
    with (
        operator(kubernetes_api.kubeconfig, *options) as first,
        operator(kubernetes_api.kubeconfig, *options, ready="standing by") as second,
    ):
        assert first.stop() == 0
        second.wait_for("leading")


class FreezingProxy:
    """Passes TCP on to the API server, until told to hold every byte back while the connections stay open."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = parts.hostname, parts.port
        self.port = free_port()
        self._flowing = threading.Event()
        self._flowing.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection(*self._target)
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                while not self._flowing.is_set():
                    await asyncio.sleep(0.05)
                sink.write(data)
                await sink.drain()
        sink.close()


@pytest.fixture
def proxied(kubernetes_api: Any, tmp_path: Path) -> Iterator[tuple[FreezingProxy, Path]]:
    """A proxy before the API server, and a kubeconfig that leads through it."""
    config = yaml.safe_load(Path(kubernetes_api.kubeconfig).read_text())
    entry = config["clusters"][0]["cluster"]
    proxy = FreezingProxy(entry["server"])
    server = urlsplit(entry["server"])
    entry["server"] = server._replace(netloc=f"127.0.0.1:{proxy.port}").geturl()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    yield proxy, kubeconfig
    proxy.close()


def test_liveness_fails_when_the_watches_are_dead_and_heals(
    proxied: tuple[FreezingProxy, Path], namespace: str
) -> None:
    proxy, kubeconfig = proxied
    with operator(kubeconfig, "--namespace", namespace, "--watch-period", "1") as process:
        eventually(lambda: process.http("/healthz") == (200, "ok"), "a passing probe")
        proxy.freeze()
        _, said = eventually(lambda: (a := process.http("/healthz"))[0] == 503 and a, "a failing probe")
        assert "silent" in said or "not answered" in said
        proxy.thaw()
        eventually(lambda: process.http("/healthz")[0] == 200, "a passing probe again", seconds=120)


def test_metrics_are_prometheus_text(lab: Namespace, running: OperatorProcess) -> None:
    lab.apply(cluster_manifest("counted", 0))
    eventually(lambda: lab.get("dsk", "counted").get("status", {}).get("phase"), "a phase")
    code, text = running.http("/metrics")
    assert code == 200
    for name in ("reconcile_seconds_bucket", "queue_depth", "api_requests_total", "clusters{", "leader 1"):
        assert f"daskfleet_operator_{name}" in text
    board = json.loads(DASHBOARD.read_text())
    asked = {target["expr"] for panel in board["panels"] for target in panel.get("targets", ())}
    wanted = {name for expression in asked for name in re.findall(r"(?:daskfleet_operator|process)_\w+", expression)}
    served = set(re.findall(r"^(?:# TYPE )?(\w+)", text, re.MULTILINE))
    assert len(wanted) > 8 and wanted <= served


def test_the_operator_needs_few_requests_per_worker(kubernetes_api: Any, namespace: str) -> None:
    lab = Namespace(kubernetes_api, namespace)
    with operator(kubernetes_api.kubeconfig, "--namespace", namespace) as process:
        lab.apply(cluster_manifest("big", 100))
        eventually(lambda: len(lab.workers("big-default")) == 100, "a hundred workers", seconds=180)
        total = sum(
            int(float(line.rsplit(" ", 1)[1]))
            for line in process.http("/metrics")[1].splitlines()
            if line.startswith("daskfleet_operator_api_requests_total{")
        )
        assert process.requests("POST", "pods") == 100
        assert total <= 300
