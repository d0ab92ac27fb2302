"""plan/job.py"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from daskfleet_operator import names
from daskfleet_operator.kube.objects import Pod
from daskfleet_operator.plan import job, model, trial
from daskfleet_operator.plan.conditions import timestamp
from daskfleet_operator.plan.model import Memory, Observed
from operator_builders import KEY, NOW, Json, cluster, group, pod


def daskjob(status: Json | None = None, **spec: Any) -> Json:
    made = {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskJob",
        "metadata": {"name": "c", "namespace": "lab", "uid": "job-uid", "generation": 1},
        "spec": {
            "job": {"spec": {"containers": [{"name": "job", "image": "i"}]}},
            "cluster": {"spec": cluster()["spec"]},
            **spec,
        },
    }
    return made | ({"status": status} if status else {})


def own_cluster() -> Json:
    made = cluster()
    made["metadata"]["ownerReferences"] = [{"uid": "job-uid", "controller": True}]
    made["metadata"]["annotations"] = {names.TEMPLATE: job.cluster_hash(daskjob())}
    return made


def runner(**facts: Any) -> Pod:
    template = job.runner_hash(daskjob())
    return pod("c-runner", component=names.JOB_RUNNER, group="", owner="job-uid", template=template, **facts)


def seen(j: Json, *pods: Pod, with_cluster: Json | None = None) -> Observed:
    return Observed(key=KEY, cluster=with_cluster, job=j, pods=pods, memory=Memory())


def plan(j: Json, *pods: Pod, with_cluster: Json | None = None, now: float = NOW) -> list[model.Action]:
    return job.plan_job(seen(j, *pods, with_cluster=with_cluster), j, now)[0]


def status(j: Json, *pods: Pod, with_cluster: Json | None = None) -> Json:
    return job.job_status(seen(j, *pods, with_cluster=with_cluster), j, NOW).status


def test_first_the_cluster_then_the_runner() -> None:
    (shown,) = plan(daskjob())
    assert isinstance(shown, model.TryTemplate) and shown.what == trial.RUNNER
    taken = replace(seen(daskjob()), memory=Memory(approved={trial.RUNNER: shown.fingerprint}))
    (action,) = job.plan_job(taken, daskjob(), NOW)[0]
    assert isinstance(action, model.Create) and action.kind.name == "DaskCluster"
    assert action.body["metadata"]["ownerReferences"][0]["uid"] == "job-uid"
    (action,) = plan(daskjob(), with_cluster=own_cluster())
    assert isinstance(action, model.Create) and action.name == "c-runner"
    env = [item["name"] for item in action.body["spec"]["containers"][0]["env"]]
    assert env == [names.ADDRESS_ENV, names.TOKEN_ENV]
    assert action.body["metadata"]["labels"][names.COMPONENT_LABEL] == "job-runner"


def test_a_runner_that_the_api_server_refuses_starts_no_cluster() -> None:
    refused = model.Refusal("Invalid", "spec.containers[0].image: Required value", NOW, 1, 1)
    state = replace(seen(daskjob()), memory=Memory(refusals={trial.RUNNER: refused}))
    assert job.plan_job(state, daskjob(), NOW + 0.5) == ([], NOW + 1.0)
    assert len(job.plan_job(state, daskjob(), NOW + 1)[0]) == 1
    (said,) = job.job_status(state, daskjob(), NOW).status["conditions"]
    assert (said["reason"], said["message"]) == ("Refused", refused.message)


def test_phases_follow_the_runner() -> None:
    mine = own_cluster()
    assert status(daskjob())["jobStatus"] == "JobCreated"
    assert status(daskjob(), with_cluster=mine)["jobStatus"] == "ClusterCreated"
    running = status(daskjob(), runner(), with_cluster=mine)
    assert (running["jobStatus"], running["startTime"]) == ("Running", timestamp(NOW))
    assert running["jobRunnerPodName"] == "c-runner" and running["clusterName"] == "c"
    done = status(daskjob(running), runner(phase="Succeeded", ready=False), with_cluster=mine)
    assert (done["jobStatus"], done["endTime"]) == ("Successful", timestamp(NOW))
    failed = status(daskjob(running), runner(phase="Failed", ready=False), with_cluster=mine)
    assert failed["jobStatus"] == "Failed"


def test_when_it_has_ended_the_cluster_goes_and_the_runner_stays() -> None:
    ended = daskjob({"jobStatus": "Successful", "endTime": timestamp(NOW)})
    (action,) = plan(ended, runner(phase="Succeeded"), with_cluster=own_cluster())
    assert isinstance(action, model.Delete) and action.kind.name == "DaskCluster"
    assert plan(ended, runner(phase="Succeeded")) == []


def test_a_failed_runner_is_made_anew_as_often_as_asked() -> None:
    mine = own_cluster()
    failed = runner(phase="Failed", ready=False)
    fresh = daskjob(backoffLimit=1)
    assert plan(fresh, failed, with_cluster=mine) == []  # not before the status tells of it
    counted = status(fresh, failed, with_cluster=mine)
    assert (counted["failed"], counted["jobStatus"]) == (1, "ClusterCreated")
    again = daskjob(counted, backoffLimit=1)
    assert [type(action) for action in plan(again, failed, with_cluster=mine)] == [model.DeletePod]
    assert plan(again, with_cluster=mine) == []  # the delay
    assert len(plan(again, with_cluster=mine, now=NOW + 2)) == 1
    second = replace(failed, uid="another")
    assert status(again, second, with_cluster=mine)["jobStatus"] == "Failed"


def test_a_failure_is_counted_once_however_often_it_is_seen() -> None:
    failed = runner(phase="Failed", ready=False)
    once = status(daskjob(backoffLimit=3), failed, with_cluster=own_cluster())
    twice = status(daskjob(once, backoffLimit=3), failed, with_cluster=own_cluster())
    assert twice["failed"] == 1


def test_the_kubelet_restarts_as_in_dask_kubernetes_unless_a_limit_is_set() -> None:
    assert job.runner_pod(seen(daskjob()), daskjob())["spec"]["restartPolicy"] == "OnFailure"
    limited = daskjob(backoffLimit=0)
    assert job.runner_pod(seen(limited), limited)["spec"]["restartPolicy"] == "Never"


def test_ttl_ends_the_job_itself() -> None:
    ended = daskjob({"jobStatus": "Failed", "endTime": timestamp(NOW - 61)}, ttlSecondsAfterFinished=60)
    (action,) = plan(ended)
    assert isinstance(action, model.Delete) and action.kind.name == "DaskJob"
    later = daskjob({"jobStatus": "Failed", "endTime": timestamp(NOW - 10)}, ttlSecondsAfterFinished=60)
    actions, wake_at = job.plan_job(seen(later), later, NOW)
    assert actions == [] and wake_at == NOW + 50


def test_a_cluster_of_that_name_that_is_not_the_jobs_is_left_alone_and_named() -> None:
    assert plan(daskjob(), with_cluster=cluster()) == []
    (said,) = status(daskjob(), with_cluster=cluster())["conditions"]
    assert said["reason"] == "ClusterExists"


def test_suspended_it_has_neither_cluster_nor_runner() -> None:
    suspended = daskjob(suspend=True)
    actions = plan(suspended, runner(), with_cluster=own_cluster())
    assert [type(action) for action in actions] == [model.DeletePod, model.Delete]
    assert status(suspended)["jobStatus"] == "Suspended"
    assert plan(suspended) == []


def edited(**spec: Any) -> Json:
    """The job after an edit of its runner and its cluster."""
    made = daskjob(**spec)
    made["metadata"]["generation"] = 2
    made["spec"]["job"] = {"spec": {"containers": [{"name": "job", "image": "new"}]}}
    made["spec"]["cluster"] = {"spec": cluster(5)["spec"]}
    return made


def test_an_edit_reaches_the_cluster_and_a_runner_that_does_not_work() -> None:
    mine = own_cluster()
    (handed,) = plan(edited(), runner(), with_cluster=mine)  # a runner that works is left to its work
    assert isinstance(handed, model.Patch) and isinstance(handed.body, list)
    assert handed.body[0] == {"op": "replace", "path": "/spec", "value": cluster(5)["spec"]}
    mine["metadata"]["annotations"] = handed.body[1]["value"]
    assert plan(edited(), runner(), with_cluster=mine) == []
    for facts in ({"phase": "Pending", "ready": False}, {"trouble": ("CrashLoop", "it fell")}):
        (action,) = plan(edited(), runner(**facts), with_cluster=mine)
        assert isinstance(action, model.DeletePod)
        leaving = runner(**facts, deleting=True)
        assert plan(edited(), leaving, with_cluster=mine) == []
        ended = replace(leaving, phase="Failed")
        assert status(edited(), ended, with_cluster=mine)["jobStatus"] == "ClusterCreated"  # no attempt was used up
    assert plan(daskjob(), runner(phase="Pending", ready=False), with_cluster=own_cluster()) == []


def test_what_the_api_server_refuses_is_tried_again_and_forgotten_when_it_is_taken_back() -> None:
    def told(j: Json, c: Json, **refusals: model.Refusal) -> Observed:
        return replace(seen(j, with_cluster=c), memory=Memory(refusals={f"{k}/c": r for k, r in refusals.items()}))

    refused = model.Refusal("Invalid", "security cannot be changed", NOW, 1, 2)
    state = replace(told(edited(), own_cluster(), DaskCluster=refused), pods=(runner(),))
    assert job.plan_job(state, edited(), NOW) == ([], NOW + 1)
    assert len(job.plan_job(state, edited(), NOW + 1)[0]) == 1
    (said,) = job.job_status(state, edited(), NOW).status["conditions"]
    assert said["message"] == "security cannot be changed"
    (forgotten,) = job.plan_job(state, daskjob(), NOW)[0]
    assert forgotten == model.Forget("DaskCluster/c")
    quota = model.Refusal("Forbidden", "exceeded quota", NOW, 1, 1)
    waiting = replace(seen(daskjob(), with_cluster=own_cluster()), memory=Memory(refusals={"Pod/c-runner": quota}))
    assert job.plan_job(waiting, daskjob(), NOW) == ([], NOW + 1)
    assert len(job.plan_job(waiting, daskjob(), NOW + 1)[0]) == 1


def test_what_is_wrong_with_its_cluster_is_said_of_the_job() -> None:
    broken = pod("c-default-worker-1", ready=False, trouble=("ImagePullFailed", "no such image"))
    state = replace(seen(daskjob(), runner(), broken, with_cluster=own_cluster()), groups=(group(),))
    told = job.job_status(state, daskjob(), NOW)
    (said,) = told.status["conditions"]
    assert (said["reason"], said["message"], told.status["jobStatus"]) == (
        "ImagePullFailed",
        "no such image",
        "Running",
    )
    assert [event.reason for event in told.events] == ["ImagePullFailed"]
