"""What users are told, and which of it is certain."""

import pytest
import yaml
from daskfleet.deploy.kubernetes import errors
from daskfleet.deploy.kubernetes.diagnosis import phase, pod_problem, reconciled, resource_problem


def pod(*, waiting=None, terminated=None, last=None, restarts=0, phase="Pending", conditions=(), image="reg/x:1"):
    state = {}
    if waiting:
        state["waiting"] = waiting
    if terminated:
        state["terminated"] = terminated
    container = {"image": image, "state": state, "restartCount": restarts, "lastState": {"terminated": last or {}}}
    return {
        "metadata": {"name": "p"},
        "status": {"phase": phase, "conditions": list(conditions), "containerStatuses": [container]},
    }


@pytest.mark.parametrize(
    ("reason", "message", "certain"),
    [
        ("ErrImagePull", 'failed to resolve reference "reg/x:1": reg/x:1: not found', True),
        (
            "ImagePullBackOff",
            "Back-off pulling image: ErrImagePull: pull access denied, repository does not exist",
            True,
        ),
        ("InvalidImageName", 'couldn\'t parse image name "X"', True),
        ("ErrImageNeverPull", "not present with pull policy of Never", True),
        ("ErrImagePull", "dial tcp: lookup reg: no such host", True),
        ("ErrImagePull", "received unexpected HTTP status: 503 Service Unavailable", False),
        ("ErrImagePull", "dial tcp 1.2.3.4:443: i/o timeout", False),
        ("ImagePullBackOff", 'Back-off pulling image "reg/x:1"', False),
    ],
)
def test_an_image_that_does_not_exist_is_certain_and_a_busy_registry_is_not(reason, message, certain):
    problem = pod_problem(pod(waiting={"reason": reason, "message": message}))
    assert problem.certain is certain
    assert "'reg/x:1'" in problem.sentence and reason in problem.sentence


def test_a_starting_pod_has_no_problem():
    assert pod_problem(pod(waiting={"reason": "ContainerCreating"})) is None
    assert pod_problem(pod(phase="Running")) is None


def test_unschedulable_is_told_in_the_schedulers_words_but_may_pass():
    said = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes: too little cpu",
    }
    problem = pod_problem({"metadata": {"name": "p"}, "status": {"phase": "Pending", "conditions": [said]}})
    assert not problem.certain
    assert problem.sentence == "pod p is Unschedulable: 0/1 nodes: too little cpu"


def test_one_death_may_be_an_accident_and_three_are_none():
    dead = {"exitCode": 1, "reason": "Error"}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off"}
    first, third = (pod_problem(pod(waiting=waiting, last=dead, restarts=n)) for n in (1, 3))
    assert (first.certain, third.certain) == (False, True)
    assert third.pod == "p" and third.previous and "exit code 1" in third.sentence


def test_a_container_that_runs_again_has_recovered_but_an_init_container_has_not():
    again = pod(last={"exitCode": 1, "message": "no such package"}, restarts=1)
    assert pod_problem(again) is None
    [container] = again["status"].pop("containerStatuses")
    again["status"]["initContainerStatuses"] = [{**container, "name": "environment"}]
    assert "its initContainer environment ended with exit code 1: no such package" in pod_problem(again).sentence


def test_a_command_that_the_image_lacks_is_certain_at_once():
    message = 'exec: "dask-schedule": executable file not found in $PATH: unknown'
    ended = {"exitCode": 128, "reason": "StartError", "message": message}
    assert pod_problem(pod(terminated=ended)).certain
    assert pod_problem(pod(waiting={"reason": "RunContainerError", "message": message})).certain
    assert not pod_problem(
        pod(waiting={"reason": "CreateContainerConfigError", "message": 'secret "x" not found'})
    ).certain


def cluster(phase=None, *conditions):
    status = {"phase": phase, "conditions": list(conditions)} if phase else {}
    return {"kind": "DaskCluster", "metadata": {"name": "c", "namespace": "n"}, "status": status}


def test_the_operators_own_sentence_is_passed_on():
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "Refused", "message": "cpu: must be a quantity"}
    problem = resource_problem(cluster("Error", failure))
    assert problem.certain and "DaskCluster n/c" in problem.sentence and "cpu: must be a quantity" in problem.sentence
    assert not resource_problem(cluster("Pending", failure)).certain
    starting = {"type": "Ready", "status": "False", "reason": "SchedulerStarting", "message": "is starting"}
    assert resource_problem(cluster("Pending", starting)) is None
    assert resource_problem(None) is None


def test_a_resource_without_a_phase_has_no_operator():
    assert not reconciled(cluster()) and not reconciled(None)
    assert reconciled(cluster("Created"))


def test_phase_is_what_kubectl_shows():
    assert phase(pod(waiting={"reason": "ImagePullBackOff"})) == "ImagePullBackOff"
    assert phase(pod(phase="Running")) == "Running"
    assert phase({"metadata": {"name": "p", "deletionTimestamp": "x"}, "status": {"phase": "Running"}}) == "Terminating"


def test_a_403_names_the_rule_that_is_missing():
    message = (
        'daskclusters.kubernetes.dask.org is forbidden: User "system:serviceaccount:n:me" cannot create resource '
        '"daskclusters" in API group "kubernetes.dask.org" in the namespace "n"'
    )
    error = errors.from_status(403, {"message": message})
    assert isinstance(error, errors.Forbidden) and isinstance(error, PermissionError)
    sentence, _, manifest = str(error).split("\n", 2)
    assert sentence == (
        "system:serviceaccount:n:me may not create daskclusters in namespace n; a Role bound to it needs the rule "
        '{apiGroups: ["kubernetes.dask.org"], resources: ["daskclusters"], verbs: ["create"]}'
    )
    role, binding = yaml.safe_load_all(manifest)
    assert (role["kind"], role["metadata"]["namespace"]) == ("Role", "n")
    assert {"apiGroups": ["kubernetes.dask.org"], "resources": ["*"], "verbs": ["*"]} in role["rules"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "namespace": "n", "name": "me"}]


def test_a_right_that_no_namespace_has_takes_a_cluster_role_of_it_alone():
    message = (
        'nodes is forbidden: User "me@example.com" cannot list resource "nodes" in API group "" at the cluster scope'
    )
    role, binding = yaml.safe_load_all(str(errors.from_status(403, {"message": message})).split("\n", 2)[2])
    assert role["kind"] == "ClusterRole" and "namespace" not in role["metadata"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
    assert binding["subjects"][0]["name"] == "me@example.com" and binding["roleRef"]["kind"] == "ClusterRole"


def test_a_right_that_kubecluster_does_not_need_is_added():
    said = errors.role_manifest("system:serviceaccount:n:me", "n", ("apps", "deployments", "patch"))
    role = next(yaml.safe_load_all(said))
    assert role["rules"][-1] == {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["patch"]}
    assert len(role["rules"]) == len(errors.USER_RULES) + 1


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (401, {"message": "Unauthorized"}, errors.Forbidden, "log in again"),
        (403, {"message": "exceeded quota: q"}, errors.Forbidden, "exceeded quota: q"),
        (404, {"details": {"kind": "namespaces", "name": "x"}}, errors.NamespaceNotFound, "kubectl create namespace x"),
        (422, {"message": "spec.x: Required value"}, errors.InvalidManifest, "spec.x: Required value"),
        (500, {}, errors.ApiError, "HTTP status 500"),
    ],
)
def test_answers_of_the_api_server(status, body, kind, says):
    error = errors.from_status(status, body)
    assert type(error) is kind and says in str(error) and error.status == status


def test_errors_are_what_the_standard_library_calls_them():
    for ours, builtin in (
        (errors.Unreachable, ConnectionError),
        (errors.InvalidName, ValueError),
        (errors.ClusterNotFound, LookupError),
        (errors.PortInUse, OSError),
        (errors.StartTimeout, TimeoutError),
    ):
        assert issubclass(ours, builtin) and issubclass(ours, errors.KubernetesError)
        assert str(ours("a sentence")) == "a sentence"
