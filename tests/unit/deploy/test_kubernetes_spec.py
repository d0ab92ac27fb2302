"""The resources that the SDK writes, and the names that it takes."""

import pytest
import yaml
from daskfleet.deploy.kubernetes import InvalidName, make_cluster_spec, make_scheduler_spec, make_worker_spec
from daskfleet.deploy.kubernetes.spec import (
    DEFAULT_IMAGE,
    check_name,
    group_name,
    make_autoscaler_spec,
    make_worker_group_spec,
    new_name,
)


def test_pods_get_no_credentials_of_the_kubernetes_api():
    assert make_worker_spec()["spec"]["automountServiceAccountToken"] is False
    assert make_scheduler_spec("c")["spec"]["automountServiceAccountToken"] is False


def test_pods_of_our_image_fit_the_restricted_standard_and_others_are_left_alone():
    for made in (make_worker_spec(), make_scheduler_spec("c")):
        (container,) = made["spec"]["containers"]
        context = container["securityContext"]
        assert context["runAsNonRoot"] and not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]} and context["seccompProfile"] == {"type": "RuntimeDefault"}
    for other in (make_worker_spec("mine:1"), make_worker_spec(engine="dask")):
        assert "securityContext" not in other["spec"]["containers"][0]


@pytest.mark.parametrize("name", ["a", "dask", "my-cluster-1", "1a", "x" * 53])
def test_names_that_kubernetes_takes(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "My Cluster", "a.b", "-a", "a-", "ä", "a_b", "x" * 54, "a\n"])
def test_names_that_it_does_not_take(name):
    with pytest.raises(InvalidName) as caught:
        check_name(name)
    assert isinstance(caught.value, ValueError)
    assert repr(name) in str(caught.value)


def test_a_mistyped_name_comes_with_one_that_works():
    with pytest.raises(InvalidName, match="for example 'my-first-cluster'"):
        check_name("My first_Cluster!")


def test_random_names_are_names_and_differ(monkeypatch):
    monkeypatch.setenv("LOGNAME", "Jürgen O'Neill the third of all the Neills")
    names = {check_name(new_name()) for _ in range(20)}
    assert len(names) == 20


def test_cluster_spec_is_plain_data_with_all_that_was_asked_for():
    spec = make_cluster_spec(
        "c",
        image="reg/img:1",
        n_workers=3,
        resources={"limits": {"memory": "2Gi"}},
        env={"A": 1},
        worker_command="dask-worker --nthreads 4",
        scheduler_service_type="NodePort",
        idle_timeout=30,
    )
    assert yaml.safe_load(yaml.safe_dump(spec)) == spec
    assert (spec["kind"], spec["metadata"]["name"], spec["spec"]["idleTimeout"]) == ("DaskCluster", "c", 30)
    worker, scheduler = spec["spec"]["worker"], spec["spec"]["scheduler"]
    assert worker["replicas"] == 3
    (container,) = worker["spec"]["containers"]
    assert container["image"] == "reg/img:1"
    assert container["env"] == [{"name": "A", "value": "1"}]
    assert container["resources"] == {"limits": {"memory": "2Gi"}}
    assert container["args"][:5] == ["dask-worker", "--nthreads", "4", "--name", "$(DASK_WORKER_NAME)"]
    assert container["args"][-2:] == ["--dashboard-address", "8788"]
    assert scheduler["service"]["type"] == "NodePort"
    assert scheduler["service"]["selector"] == {"dask.org/cluster-name": "c", "dask.org/component": "scheduler"}
    ports = {port["name"]: port["port"] for port in scheduler["service"]["ports"]}
    assert ports == {"tcp-comm": 8786, "http-dashboard": 8787}


def test_the_default_image_is_of_this_version():
    assert make_worker_spec()["spec"]["containers"][0]["image"] == DEFAULT_IMAGE
    assert DEFAULT_IMAGE.startswith("daskfleet/runtime:") and not DEFAULT_IMAGE.endswith(":latest")


def test_environment_may_be_a_list_as_in_pods():
    entry = {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    assert make_worker_spec(env=[entry])["spec"]["containers"][0]["env"] == [entry]


def test_jupyter_is_an_argument_of_the_scheduler():
    assert "--jupyter" in make_scheduler_spec("c", jupyter=True)["spec"]["containers"][0]["args"]
    assert "--jupyter" not in make_scheduler_spec("c")["spec"]["containers"][0]["args"]


def test_impossible_numbers_and_types_are_refused():
    with pytest.raises(ValueError, match="n_workers=-1"):
        make_worker_spec(n_workers=-1)
    with pytest.raises(ValueError, match="one of ClusterIP, NodePort, LoadBalancer"):
        make_scheduler_spec("c", scheduler_service_type="Nodeport")
    with pytest.raises(ValueError, match="minimum=3, maximum=2"):
        make_autoscaler_spec("c", 3, 2)
    with pytest.raises(ValueError, match="not endless"):
        make_autoscaler_spec("c", 0, float("inf"))


def test_worker_groups_are_named_after_their_cluster_once():
    group = make_worker_group_spec("c", "gpu", make_worker_spec(n_workers=2))
    assert group["metadata"]["name"] == "c-gpu" == group_name("c", "c-gpu")
    assert group["metadata"]["labels"]["dask.org/cluster-name"] == "c"
    assert group["spec"]["cluster"] == "c" and group["spec"]["worker"]["replicas"] == 2


def test_the_engine_decides_image_and_commands():
    spec = make_cluster_spec("c", engine="dask")["spec"]
    scheduler, worker = (spec[part]["spec"]["containers"][0] for part in ("scheduler", "worker"))
    assert scheduler["args"][:2] == ["dask", "scheduler"] and worker["args"][:2] == ["dask", "worker"]
    assert scheduler["image"] == worker["image"] != DEFAULT_IMAGE
    with pytest.raises(ValueError, match="engine='ray': one of daskfleet, dask"):
        make_worker_spec(engine="ray")
