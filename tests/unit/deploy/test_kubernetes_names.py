"""Every parameter and method that dask-kubernetes has is here under its name, and does what it says there."""

import asyncio
import inspect

import dask
import pytest
import yaml
from daskfleet import KubeCluster
from daskfleet.deploy.kubernetes import CreateMode, make_cluster_spec, make_scheduler_spec, make_worker_spec

MODE = CreateMode.CREATE_OR_CONNECT


def made(**options):
    """A cluster object that has not been started: nothing is sent before it is awaited."""
    return KubeCluster(**{"asynchronous": True, **options})


def scheduler(cluster):
    return cluster._spec["spec"]["scheduler"]["spec"]["containers"][0]


def worker(cluster):
    return cluster._spec["spec"]["worker"]["spec"]["containers"][0]


def both(what):
    return lambda cluster: [scheduler(cluster)[what], worker(cluster)[what]]


LIMITS = {"limits": {"memory": "2Gi"}}
BLUE = [{"name": "COLOUR", "value": "blue"}]
CUSTOM = make_cluster_spec("custom", n_workers=7)

#: Parameter, a value of it, where it shows, what shows then, and what shows without it.
PARAMETERS = [
    ("name", "c", lambda c: c._spec["metadata"]["name"] == c.name and c.name[:5], "c", "dask-"),
    ("namespace", "ns", lambda c: c.namespace, "ns", None),
    ("image", "reg/x:1", both("image"), ["reg/x:1"] * 2, None),
    ("n_workers", 3, lambda c: c._spec["spec"]["worker"]["replicas"], 3, 0),
    ("resources", LIMITS, both("resources"), [LIMITS] * 2, [{}] * 2),
    ("env", {"COLOUR": "blue"}, lambda c: [each["env"][:1] for each in (scheduler(c), worker(c))], [BLUE] * 2, None),
    ("worker_command", "my worker", lambda c: worker(c)["args"][:2], ["my", "worker"], ["dask-worker", "--name"]),
    ("port_forward_cluster_ip", True, lambda c: c._forward, True, None),
    ("create_mode", "CONNECT_ONLY", lambda c: c.create_mode, CreateMode.CONNECT_ONLY, MODE),
    ("shutdown_on_close", False, lambda c: c.shutdown_on_close, False, True),
    ("idle_timeout", 60, lambda c: c._spec["spec"]["idleTimeout"], 60, 3600),
    ("resource_timeout", 5, lambda c: c.resource_timeout, 5.0, 60.0),
    (
        "scheduler_service_type",
        "NodePort",
        lambda c: c._spec["spec"]["scheduler"]["service"]["type"],
        "NodePort",
        "ClusterIP",
    ),
    ("custom_cluster_spec", CUSTOM, lambda c: c._spec["spec"]["worker"]["replicas"], 7, 0),
    ("scheduler_forward_port", 18786, lambda c: c._forward_port, 18786, 0),
    ("jupyter", True, lambda c: "--jupyter" in scheduler(c)["args"], True, False),
    ("quiet", True, lambda c: c.quiet, True, False),
    ("asynchronous", True, lambda c: c.asynchronous, True, True),
]
NOT_CONFIGURABLE = ("port_forward_cluster_ip", "jupyter", "quiet", "asynchronous")


@pytest.mark.parametrize(("name", "value", "look", "shows", "default"), PARAMETERS, ids=[row[0] for row in PARAMETERS])
def test_a_parameter_shows_where_it_should(name, value, look, shows, default):
    assert look(made(**{name: value})) == shows
    if default is not None:
        assert look(made()) == default


def test_only_what_ends_with_its_session_is_ended_when_that_was_killed():
    def ends(**options):
        cluster = made(**options)
        names = [entry["name"] for entry in cluster._spec["spec"]["scheduler"]["spec"]["containers"][0]["env"]]
        return cluster._spec["spec"]["idleTimeout"], "DASK_DISTRIBUTED__SCHEDULER__IDLE_WITH_CLIENTS" in names

    assert ends() == (3600, True)
    assert ends(shutdown_on_close=False) == ends(idle_timeout=0) == ends(engine="dask") == (0, False)
    assert ends(idle_timeout=60) == (60, False)
    assert ends(custom_cluster_spec=CUSTOM) == (0, False)
    with dask.config.set({"kubernetes.idle-timeout": 0}):
        assert ends() == (0, False)


CONFIGURABLE = [row for row in PARAMETERS if row[0] not in NOT_CONFIGURABLE]


@pytest.mark.parametrize(("name", "value", "look", "shows", "_"), CONFIGURABLE, ids=[row[0] for row in CONFIGURABLE])
def test_a_default_comes_from_dasks_configuration(name, value, look, shows, _):
    with dask.config.set({f"kubernetes.{name.replace('_', '-')}": value}):
        assert look(made()) == shows


async def test_a_loop_can_be_given():
    loop = asyncio.get_running_loop()
    assert made(loop=loop).loop is loop


def test_a_manifest_may_be_a_file_and_names_the_cluster_and_its_namespace(tmp_path):
    manifest = {**CUSTOM, "metadata": {"name": "custom", "namespace": "ns"}}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(manifest))
    cluster = made(custom_cluster_spec=tmp_path / "cluster.yaml")
    assert (cluster.name, cluster.namespace) == ("custom", "ns")
    assert made(custom_cluster_spec=manifest, namespace="other").namespace == "other"


WORKER_GROUP = ("name", "n_workers", "image", "resources", "worker_command", "env", "custom_spec")
CLUSTER = ("name", "image", "n_workers", "resources", "env", "worker_command")


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (KubeCluster.scale, ("n", "worker_group")),
        (KubeCluster.adapt, ("minimum", "maximum")),
        (KubeCluster.get_logs, ("cluster", "scheduler", "workers")),
        (KubeCluster.close, ("timeout",)),
        (KubeCluster.from_name, ("name",)),
        (KubeCluster.add_worker_group, WORKER_GROUP),
        (KubeCluster.delete_worker_group, ("name",)),
        (make_cluster_spec, (*CLUSTER, "scheduler_service_type", "idle_timeout", "jupyter")),
        (make_worker_spec, ("image", "n_workers", "resources", "env", "worker_command")),
        (make_scheduler_spec, ("name", "image", "resources", "env", "scheduler_service_type", "jupyter")),
    ],
)
def test_methods_take_the_parameters_that_they_take_there(function, names):
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    assert known[: len(names)] == list(names)


def test_defaults_of_methods():
    def defaults(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    assert defaults(KubeCluster.scale)["worker_group"] == "default"
    assert defaults(KubeCluster.add_worker_group)["n_workers"] == 3
    assert isinstance(KubeCluster.dashboard_link, property) and isinstance(KubeCluster.jupyter_link, property)
