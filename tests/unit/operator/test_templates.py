"""plan/templates.py, scheduler.py, groups.py: what users wrote becomes what dask-kubernetes would have made."""

from __future__ import annotations

import copy
from dataclasses import replace

from daskfleet_operator import names
from daskfleet_operator.kube.objects import Deployment, Pod, Service, template_of
from daskfleet_operator.plan import groups, model, scheduler, templates
from operator_builders import KEY, NOW, Json, cluster, group, made_objects, observed, pod, scheduler_pod


def annotated() -> Json:
    made = cluster()
    made["metadata"] |= {
        "labels": {"test-label": "label-value"},
        "annotations": {"test-annotation": "a", "kopf.zalando.org/x": "no", "kubectl.kubernetes.io/y": "no"},
    }
    made["spec"]["scheduler"]["metadata"] = {"labels": {"scheduler-label": "s"}, "annotations": {"scheduler-note": "s"}}
    made["spec"]["worker"]["metadata"] = {"labels": {"worker-label": "w"}, "annotations": {"worker-note": "w"}}
    return made


def test_scheduler_gets_the_clusters_metadata_its_own_and_the_reserved_labels() -> None:
    made = scheduler.deployment(KEY, annotated())
    pod_meta = made["spec"]["template"]["metadata"]
    assert pod_meta["labels"] == {
        "test-label": "label-value",
        "scheduler-label": "s",
        "dask.org/cluster-name": "c",
        "dask.org/component": "scheduler",
        "sidecar.istio.io/inject": "false",
    }
    assert pod_meta["annotations"].pop(names.TEMPLATE) == scheduler.scheduler_hash(annotated())
    assert pod_meta["annotations"] == {"test-annotation": "a", "scheduler-note": "s"}
    assert made["spec"]["selector"]["matchLabels"].items() <= pod_meta["labels"].items()
    assert made["metadata"]["ownerReferences"][0]["uid"] == "cluster-uid"


def test_labels_of_cluster_group_and_template_reach_the_workers() -> None:
    source = annotated()
    default = groups.default_group(KEY, source)
    default["metadata"]["uid"] = "g"
    made = groups.worker_pod(KEY, source, default, "cluster.local")
    assert made["metadata"]["labels"] == {
        "test-label": "label-value",
        "worker-label": "w",
        "dask.org/cluster-name": "c",
        "dask.org/component": "worker",
        "dask.org/workergroup-name": "c-default",
        "sidecar.istio.io/inject": "false",
    }
    notes = made["metadata"]["annotations"]
    assert notes.pop(names.TEMPLATE)
    assert notes == {"test-annotation": "a", "worker-note": "w", names.SAFE_TO_EVICT: "true", names.WAVE: "1"}


def test_users_may_forbid_eviction() -> None:
    source = group()
    source["spec"]["worker"]["metadata"] = {"annotations": {names.SAFE_TO_EVICT: "false"}}
    assert groups.worker_pod(KEY, cluster(), source, "x")["metadata"]["annotations"][names.SAFE_TO_EVICT] == "false"


def test_environment_is_appended_last_and_only_where_absent() -> None:
    source = group()
    source["spec"]["worker"]["spec"]["containers"] = [
        {"name": "worker", "env": [{"name": "MINE", "value": "1"}]},
        {"name": "sidecar", "env": [{"name": "DASK_WORKER_NAME", "value": "test-worker"}]},
    ]
    before = copy.deepcopy(source)
    made = groups.named(groups.worker_pod(KEY, cluster(), source, "corp.example"), "w-1")
    worker, sidecar = (
        {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}
        for container in made["spec"]["containers"]
    )
    token = {"secretKeyRef": {"name": "c-token", "key": "token"}}
    assert list(worker.items()) == [
        ("MINE", "1"),
        ("DASK_WORKER_NAME", "w-1"),
        ("DASK_SCHEDULER_ADDRESS", "tcp://c-scheduler.lab.svc.corp.example:8786"),
        ("DASKFLEET_TOKEN", token),
    ]
    assert sidecar["DASK_WORKER_NAME"] == "test-worker"
    assert source == before


def test_two_pods_of_one_template_share_nothing_but_the_template() -> None:
    template = groups.worker_pod(KEY, cluster(), group(), "x")
    first, second = groups.named(template, "w-1"), groups.named(template, "w-2")
    assert first["metadata"]["name"] == "w-1" and second["metadata"]["name"] == "w-2"
    assert first["spec"]["containers"][0]["env"][0]["value"] == "w-1"


def test_unknown_pod_fields_pass_through() -> None:
    source = group()
    source["spec"]["worker"]["spec"]["fieldOfTomorrow"] = {"a": 1}
    assert groups.worker_pod(KEY, cluster(), source, "x")["spec"]["fieldOfTomorrow"] == {"a": 1}


def test_upstreams_api_routes_are_switched_on_by_env_unless_set() -> None:
    env = scheduler.deployment(KEY, cluster())["spec"]["template"]["spec"]["containers"][0]["env"]
    (routes,) = (item["value"] for item in env if item["name"] == names.ROUTES_ENV)
    assert "'distributed.http.scheduler.api'" in routes


def test_the_service_is_the_users_and_leads_to_a_scheduler_that_starts() -> None:
    source = cluster()
    made = scheduler.service(KEY, source, scheduler.service_spec(source, True))
    assert made["spec"]["publishNotReadyAddresses"] is True
    source["spec"]["scheduler"]["service"]["publishNotReadyAddresses"] = False
    made = scheduler.service(KEY, source, scheduler.service_spec(source, True))
    assert made["spec"]["publishNotReadyAddresses"] is False


def test_the_service_gets_its_selector_with_the_schedulers_first_address_and_keeps_it() -> None:
    source = cluster()
    source["spec"]["scheduler"]["service"]["selector"] = labels = {"dask.org/component": "scheduler"}

    def written(*pods: Pod, known: Service | None = None) -> Json | None:
        state = replace(observed(source), pods=pods, service=known)
        actions = scheduler.plan_scheduler(state, source, True, True, NOW)
        return next((action.body["spec"] for action in actions if action.kind.name == "Service"), None)

    starting, started = scheduler_pod(ip=None, ready=False), scheduler_pod()
    early = scheduler.service(KEY, source, scheduler.service_spec(source, False))
    waiting = replace(made_objects(source)["service"], template=template_of(early), selects=False)
    complete = made_objects(source)["service"]
    assert written(starting) == early["spec"] and "selector" not in early["spec"]
    assert written(starting, known=waiting) is None
    for body in (written(started, known=waiting), written(started)):
        assert body is not None and body["selector"] == labels
    assert written(started, known=complete) is None
    assert written(starting, known=complete) is None, "a scheduler that is replaced keeps its Service"
    source["spec"]["scheduler"]["service"]["type"] = "LoadBalancer"
    assert scheduler.selects(replace(observed(source), pods=(), service=None), source)


def test_nothing_to_do_for_a_cluster_at_rest() -> None:
    assert scheduler.plan_scheduler(observed(), cluster(), True, True, NOW) == []


def test_everything_is_made_at_once_for_a_new_cluster() -> None:
    fresh = observed(deployment=None, service=None, budget=None, groups=(), memory=model.Memory())
    actions = scheduler.plan_scheduler(fresh, cluster(), True, True, NOW)
    actions += groups.plan_groups(fresh, cluster(), True, NOW)
    made = [(type(action).__name__, getattr(action, "kind", None) and action.kind.name) for action in actions]
    assert made == [
        ("EnsureToken", None),
        ("Create", "Deployment"),
        ("Create", "Service"),
        ("Create", "PodDisruptionBudget"),
        ("Create", "DaskWorkerGroup"),
    ]


def test_an_edited_scheduler_waits_for_the_workers() -> None:
    edited = cluster()
    edited["spec"]["scheduler"]["spec"]["containers"][0]["image"] = "new"
    state = observed()
    assert scheduler.plan_scheduler(state, edited, True, False, NOW) == []
    (action,) = scheduler.plan_scheduler(state, edited, True, True, NOW)
    assert isinstance(action, model.Replace) and action.kind.name == "Deployment"


def test_an_object_that_is_not_ours_is_never_touched() -> None:
    foreign = Deployment("c-scheduler", 1, None, "", None)
    assert scheduler.plan_scheduler(observed(deployment=foreign), cluster(), True, True, NOW) == []


def test_a_refused_object_is_tried_again_later_and_at_once_after_an_edit() -> None:
    refusal = model.Refusal("Invalid", "no", NOW, 3, 1)
    memory = model.Memory(token_ensured=NOW, refusals={"Service/c-scheduler": refusal})
    state = observed(service=None, memory=memory)
    assert scheduler.plan_scheduler(state, cluster(), True, True, NOW + 1) == []
    assert len(scheduler.plan_scheduler(state, cluster(), True, True, NOW + 5)) == 1
    edited = cluster()
    edited["metadata"]["generation"] = 2
    assert len(scheduler.plan_scheduler(state, edited, True, True, NOW + 1)) == 1


def test_a_pod_that_misses_the_token_has_it_made_again() -> None:
    trouble = ("ContainerConfigError", 'pod x: the container cannot be started: secret "c-token" not found')
    state = observed(pods=(pod(ready=False, trouble=trouble),))
    state = replace(state, memory=replace(state.memory, token_ensured=NOW - 100))
    assert scheduler.token_due_at(state) == NOW - 95
    assert scheduler.plan_scheduler(state, cluster(), True, True, NOW) == [scheduler.token(KEY, cluster())]
    state = replace(state, memory=replace(state.memory, token_ensured=NOW - 1))
    assert scheduler.plan_scheduler(state, cluster(), True, True, NOW) == []
    assert scheduler.secrets_due_at(state, cluster(), NOW) == NOW + 4


def test_a_scheduler_that_does_not_take_the_token_is_asked_again() -> None:
    state = observed()
    assert scheduler.token_due_at(state) is None
    state = replace(state, memory=replace(state.memory, token_refused_by="c-scheduler-x-uid", token_ensured=NOW - 1))
    assert scheduler.secrets_due_at(state, cluster(), NOW) == NOW + 4
    assert scheduler.plan_scheduler(state, cluster(), True, True, NOW + 4) == [scheduler.token(KEY, cluster())]


# --- the default group follows its cluster -------------------------------------------------------------------------


def followed(source: Json, default: Json) -> list[Json]:
    actions = groups.plan_groups(observed(source, groups=(default,)), source, True, NOW)
    assert all(isinstance(action, model.Patch) for action in actions)
    return [change for action in actions if isinstance(action, model.Patch) for change in action.body]


def test_a_group_that_was_scaled_by_hand_stays_so() -> None:
    default = group(2)
    default["spec"]["worker"]["replicas"] = 7
    assert followed(cluster(2), default) == []


def test_the_clusters_number_wins_when_it_changes() -> None:
    default = group(2)
    default["spec"]["worker"]["replicas"] = 7
    changes = {change["path"]: change["value"] for change in followed(cluster(5), default)}
    assert changes["/spec/worker/replicas"] == 5
    assert changes["/metadata/annotations"][names.REPLICAS] == "5"


def test_the_clusters_template_reaches_the_group() -> None:
    source = cluster()
    source["spec"]["worker"]["spec"]["containers"][0]["image"] = "new"
    changes = {change["path"]: change["value"] for change in followed(source, group())}
    assert changes["/spec/worker/spec"]["containers"][0]["image"] == "new"
    assert "/spec/worker/replicas" not in changes


def test_groups_of_users_are_adopted() -> None:
    mine = group(1, name="big")
    mine["metadata"] = {"name": "big", "namespace": "lab", "uid": "big-uid"}
    (action,) = groups.plan_groups(observed(groups=(group(), mine)), cluster(), True, NOW)
    assert isinstance(action, model.Patch) and isinstance(action.body, dict)
    assert action.body["metadata"]["labels"][names.CLUSTER_LABEL] == "c"
    assert action.body["metadata"]["ownerReferences"][0]["uid"] == "cluster-uid"


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert templates.fingerprint({"a": 1, "b": 2}) == templates.fingerprint({"b": 2, "a": 1})
