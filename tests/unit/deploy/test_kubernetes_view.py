"""What is read out of the objects that the watches bring."""

import asyncio

import pytest
from daskfleet.deploy.kubernetes.api import Event, _differences, resource_path
from daskfleet.deploy.kubernetes.progress import Progress
from daskfleet.deploy.kubernetes.view import View


def thing(name, *, at="2026-01-01T00:00:01Z", labels=None, version="1", deleted=False, **rest):
    metadata = {"name": name, "namespace": "n", "creationTimestamp": at, "labels": labels or {}}
    metadata |= {"resourceVersion": version} | ({"deletionTimestamp": at} if deleted else {})
    return {"metadata": metadata, **rest}


def pod(name, component, *, phase="Running", node="node", conditions=(), **options):
    labels = {"dask.org/component": component}
    return thing(
        name,
        labels=labels,
        status={"phase": phase, "conditions": conditions},
        spec={"nodeName": node} if node else {},
        **options,
    )


@pytest.fixture
def view():
    return View(None, "n", "c")


def test_the_scheduler_is_the_newest_that_stays(view):
    view.note("DaskCluster", thing("c", at="2026-01-01T00:00:00Z"))
    view.note("pods", pod("old", "scheduler", at="2025-12-31T23:59:59Z"))  # of an earlier cluster of this name
    assert view.scheduler() is None
    view.note("pods", pod("first", "scheduler"))
    view.note("pods", pod("second", "scheduler", at="2026-01-01T00:00:09Z", phase="Pending", node=None))
    assert view.scheduler()["metadata"]["name"] == "second"
    assert view.placed_scheduler() is None and view.running_scheduler() is None
    view.note("pods", pod("second", "scheduler", at="2026-01-01T00:00:09Z", phase="Pending"))
    assert view.placed_scheduler() and view.running_scheduler() is None
    view.note("pods", pod("second", "scheduler", at="2026-01-01T00:00:09Z", deleted=True))
    assert view.running_scheduler()["metadata"]["name"] == "first"


def test_workers_and_replicas(view):
    view.note("pods", pod("w1", "worker"))
    view.note("pods", pod("w2", "worker", deleted=True))
    for name, replicas in (("c-default", 2), ("c-gpu", 3)):
        view.note("DaskWorkerGroup", thing(name, spec={"worker": {"replicas": replicas}}))
    assert [worker["metadata"]["name"] for worker in view.workers()] == ["w1"]
    assert view.replicas() == 5


def test_a_cluster_is_going_when_all_its_pods_are(view):
    view.note("pods", pod("w", "worker"))
    assert not view.going()
    view.note("pods", pod("w", "worker", deleted=True))
    assert view.going()
    view.note("DaskCluster", thing("c"))
    assert not view.going()


async def test_waiting_ends_with_the_change_that_was_waited_for(view):
    waiting = asyncio.ensure_future(view.wait_until(view.scheduler))
    view.note("pods", pod("w", "worker"))
    await asyncio.sleep(0)
    assert not waiting.done()
    view.note("pods", pod("s", "scheduler"))
    assert (await waiting)["metadata"]["name"] == "s"


def test_progress_has_a_row_for_each_pod_the_scheduler_first(view):
    progress = Progress(view)
    assert progress.rows() == [("waiting for the operator", "", "")]
    held_up = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "too little <cpu>"}
    view.note("pods", pod("w", "worker", phase="Pending", conditions=[held_up]))
    view.note("pods", pod("s", "scheduler"))
    reason = "too little <cpu>"
    assert progress.rows() == [("s", "Running", ""), ("w", "Pending", reason)]
    shown = progress._bundle()
    assert shown["text/plain"].endswith("s Running, w Pending")
    assert "<td>w</td><td>Pending</td><td>too little &lt;cpu&gt;</td>" in shown["text/html"]


def test_a_new_list_after_a_gap_is_told_as_what_changed_meanwhile():
    known = {}
    a, b, later = thing("a"), thing("b"), thing("b", version="2")
    assert _differences(known, [a, b]) == [Event("ADDED", a), Event("ADDED", b)]
    assert _differences(known, [a, b]) == []
    assert _differences(known, [later]) == [Event("DELETED", a), Event("MODIFIED", later)]
    assert known == {"b": later}


def test_paths():
    assert resource_path("pods", "n", "p", "log") == "/api/v1/namespaces/n/pods/p/log"
    assert resource_path("DaskCluster", None) == "/apis/kubernetes.dask.org/v1/daskclusters"
    assert resource_path("secrets", "n", "../x") == "/api/v1/namespaces/n/secrets/..%2Fx"
