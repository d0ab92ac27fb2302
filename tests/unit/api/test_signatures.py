"""What distributed's users pass by name is taken by name here, and does what it says."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import daskfleet
import pytest
from daskfleet import (
    Adaptive,
    Client,
    Future,
    LocalCluster,
    Nanny,
    Scheduler,
    SchedulerPlugin,
    Security,
    Worker,
    WorkerPlugin,
    get_worker,
    performance_report,
    progress,
    warn,
)
from daskfleet.exceptions import DaskfleetError
from daskfleet.options import INSTEAD, WITHOUT_EFFECT

WHERE = "workers allow_other_workers"
RUN = f"key {WHERE} resources retries priority fifo_timeout actor actors pure"
TAKES = {
    "Client.submit": f"func {RUN}",
    "Client.map": f"func {RUN} batch_size",
    "Client.get": "dsk keys workers sync",
    "Client.compute": "collections sync optimize_graph",
    "Client.persist": "collections optimize_graph",
    "Client.gather": "futures errors direct asynchronous",
    "Client.scatter": "data workers broadcast direct hash timeout asynchronous",
    "Client.cancel": "futures asynchronous force reason msg",
    "Client.retry": "futures asynchronous",
    "Client.replicate": "futures n workers branching_factor",
    "Client.rebalance": "futures workers",
    "Client.publish_dataset": "name override",
    "Client.unpublish_dataset": "name",
    "Client.get_dataset": "name default",
    "Client.run": "function workers wait nanny on_error",
    "Client.run_on_scheduler": "function",
    "Client.upload_file": "filename load",
    "Client.register_worker_callbacks": "setup",
    "Client.register_plugin": "plugin name idempotent",
    "Client.unregister_worker_plugin": "name nanny",
    "Client.unregister_scheduler_plugin": "name",
    "Client.who_has": "futures",
    "Client.has_what": "workers",
    "Client.nthreads": "workers",
    "Client.ncores": "workers",
    "Client.processing": "workers",
    "Client.nbytes": "keys summary",
    "Client.call_stack": "futures keys",
    "Client.profile": "key start stop workers merge_workers plot filename server scheduler",
    "Client.scheduler_info": "n_workers",
    "Client.story": "on_error",
    "Client.get_versions": "check packages",
    "Client.get_task_stream": "start stop count plot filename bokeh_resources",
    "Client.get_worker_logs": "n workers nanny",
    "Client.get_scheduler_logs": "n",
    "Client.dump_cluster_state": "filename write_from_scheduler exclude format",
    "Client.log_event": "topic msg",
    "Client.get_events": "topic",
    "Client.subscribe_topic": "topic handler",
    "Client.unsubscribe_topic": "topic",
    "Client.set_metadata": "key value",
    "Client.get_metadata": "keys default",
    "Client.forward_logging": "logger_name level",
    "Client.close": "timeout",
    "Client.restart": "timeout wait_for_workers",
    "Client.restart_workers": "workers timeout raise_for_error",
    "Client.retire_workers": "workers close_workers",
    "Client.wait_for_workers": "n_workers timeout",
    "Client.write_scheduler_file": "scheduler_file",
    "Client.current": "allow_global",
    "Client.sync": "func asynchronous callback_timeout",
    "Future": "key client",
    "Future.result": "timeout",
    "Future.exception": "timeout",
    "Future.traceback": "timeout",
    "Future.cancel": "reason msg",
    "Future.add_done_callback": "fn",
    "as_completed": "futures loop with_results raise_errors timeout",
    "as_completed.next_batch": "block",
    "wait": "fs timeout return_when",
    "Variable": "name client",
    "Variable.get": "timeout",
    "Variable.set": "value timeout",
    "Queue": "name client maxsize",
    "Queue.get": "timeout batch",
    "Queue.put": "value timeout",
    "Lock": "name client",
    "Lock.acquire": "blocking timeout",
    "Event": "name client",
    "Event.wait": "timeout",
    "Semaphore": "max_leases name",
    "Semaphore.acquire": "timeout",
    "MultiLock": "names client",
    "MultiLock.acquire": "blocking timeout num_locks",
    "SchedulerPlugin.update_graph": "scheduler client keys",
    "SchedulerPlugin.transition": "key start finish stimulus_id",
    "SchedulerPlugin.remove_worker": "scheduler worker stimulus_id",
    "Scheduler.add_plugin": "plugin idempotent name",
    "LocalCluster": "name n_workers threads_per_worker processes loop host scheduler_port silence_logs "
    "dashboard_address worker_dashboard_address asynchronous security protocol interface worker_class scheduler_kwargs",
    "LocalCluster.scale": "n memory cores",
    "LocalCluster.adapt": "minimum maximum minimum_cores maximum_cores minimum_memory maximum_memory Adaptive",
    "LocalCluster.scale_up": "n",
    "LocalCluster.scale_down": "workers",
    "SpecCluster": "workers scheduler worker asynchronous loop security silence_logs name shutdown_on_close",
    "SpecCluster.scale": "n memory cores",
    "SpecCluster.adapt": "minimum maximum minimum_cores maximum_cores minimum_memory maximum_memory Adaptive",
    "SSHCluster": "hosts connect_options worker_options scheduler_options worker_class remote_python",
    "Adaptive": "cluster interval minimum maximum wait_count target_duration worker_key",
    "Security.temporary": "",
    "performance_report": "filename stacklevel mode storage_options",
    "get_task_stream": "client plot filename",
    "progress": "notebook multi complete group_by",
    "get_client": "address timeout resolve_address",
    "worker_client": "timeout separate_thread",
    "warn": "message category stacklevel source",
    "print": "sep end file flush",
}


@pytest.mark.parametrize("name", TAKES)
def test_parameters(name: str) -> None:
    taken = daskfleet
    for part in name.split("."):
        taken = getattr(taken, part)
    missing = set(TAKES[name].split()) - set(inspect.signature(taken).parameters)
    assert not missing


#: Parameters of distributed's constructors, release 2026.8.
CONSTRUCTORS = {
    "Scheduler": "services service_kwargs allowed_failures extensions validate scheduler_file security worker_ttl "
    "idle_timeout interface host port protocol dashboard_address dashboard http_prefix preload preload_argv plugins "
    "contact_address transition_counter_max jupyter",
    "Worker": "scheduler_port scheduler_file nthreads local_directory services name executor resources silence_logs "
    "death_timeout preload preload_argv security contact_address heartbeat_interval extensions metrics "
    "startup_information interface host port protocol dashboard_address dashboard http_prefix nanny plugins "
    "low_level_profiler validate profile_cycle_interval lifetime lifetime_stagger lifetime_restart "
    "transition_counter_max memory_limit data scheduler_sni WorkerStateClass",
    "Nanny": "scheduler_port worker_port preload_nanny preload_nanny_argv env",
    "LocalCluster": "start services worker_services service_kwargs blocked_handlers scheduler_sync_interval",
    "SpecCluster": "scheduler_sync_interval shutdown_scheduler",
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_parameters_of_constructors_are_taken_or_refused_with_what_to_do_instead(name: str) -> None:
    kind = getattr(daskfleet, name)
    theirs, ours = set(CONSTRUCTORS[name].split()), inspect.signature(kind).parameters
    address = {"Worker": ["tcp://127.0.0.1:1"]}.get(name, [])
    refused = theirs - set(ours) - WITHOUT_EFFECT
    assert refused <= set(INSTEAD)
    for parameter in refused:
        with pytest.raises(TypeError, match=rf"{name}\(\) takes no {parameter}=: .*(=|-|[A-Z]|there is not)"):
            kind(*address, **{parameter: "something"})
    if name in ("Scheduler", "Worker"):
        kind(*address, **dict.fromkeys(theirs & WITHOUT_EFFECT, 1), **dict.fromkeys(refused))
    if name not in ("LocalCluster", "Nanny"):  # whose workers say so
        with pytest.raises(TypeError, match=rf"{name}\(\) takes no nosuch=: help\({name}\) lists what there is"):
            kind(*address, nosuch=1)


class Told(WorkerPlugin):
    def setup(self, worker: Worker) -> None:
        self.worker = worker


async def test_what_constructors_take_does_what_it_says() -> None:
    watching, told = Watching(), Told()
    options = {"plugins": [watching], "worker_ttl": "1 minute", "idle_timeout": "1 hour", "dashboard": False}
    async with Scheduler(host=None, port=0, protocol=None, security={"token": "t"}, **options) as scheduler:
        assert scheduler.idle_timeout == 3600 and scheduler.http is None
        host, _, port = scheduler.address.partition("://")[2].rpartition(":")
        more = {"host": None, "port": None, "death_timeout": "1 minute", "dashboard": True, "http_prefix": "/w"}
        async with (
            Worker(host, int(port), nthreads=1, security={"token": "t"}, plugins=[told], **more) as worker,
            Client(scheduler.address, security={"token": "t"}, asynchronous=True, set_as_default=False) as client,
        ):
            assert await client.submit(int, key="seen") == 0
            assert told.worker is worker and watching.graphs == [["seen"]]
            assert worker._http.mounts.prefix == "/w"
        async with Nanny(host, int(port), worker_port=0, nthreads=1, security=Security(token="t")) as nanny:
            assert nanny.worker_address in scheduler.state.workers
        assert scheduler.address.startswith("tcp://")


def test_a_worker_that_cannot_be_made_ends_its_cluster_at_once() -> None:
    for wrong, why in (({"metrics": 1}, "write a WorkerPlugin"), ({"nosuch": 1}, "takes no nosuch=")):
        with pytest.raises(DaskfleetError, match=why):
            LocalCluster(n_workers=1, dashboard_address=None, **wrong)
    with pytest.raises(TypeError, match="worker_dashboard_address= says where"):
        LocalCluster(n_workers=1, worker_services={"x": 1})


def test_a_client_without_an_address_gives_its_security_to_its_cluster() -> None:
    options = {"n_workers": 1, "processes": False, "dashboard_address": None, "set_as_default": False}
    with Client(security=True, **options) as client:
        assert client.cluster.scheduler_address.startswith("tls://") and client.security.token
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
    with Client(security=Security(token="mine"), ip="127.0.0.1", host=None, **options) as client:
        assert client.cluster.security.token == "mine"


CLIENT = "address loop timeout set_as_default scheduler_file security asynchronous name heartbeat_interval serializers "
CLIENT += "deserializers extensions direct_to_workers connection_limit"


def test_parameters_of_the_client(cluster: LocalCluster) -> None:
    given = dict.fromkeys(CLIENT.split(), None)
    given |= {"address": cluster.scheduler_address, "security": cluster.security, "asynchronous": False}
    with Client(**given) as client:
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3


def key_of_this_task() -> str:
    return get_worker().get_current_task()


def test_what_they_do(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.submit(key_of_this_task, key="mine").result(timeout=60) == "mine"
    with pytest.raises(ValueError, match="inside a task"):
        client.run(lambda dask_worker: dask_worker.get_current_task())
    first = client.submit(int, 5, key="five")
    assert Future("five").result(timeout=60) == 5 == Future("five", client=client).result(timeout=60)
    with pytest.raises(TimeoutError):
        client.sync(asyncio.sleep, 60, callback_timeout="50ms")
    assert client.sync(asyncio.sleep, 0, result=3) == 3
    client.get_task_stream()
    client.submit(int, 6, key="six").result(timeout=60)
    monkeypatch.chdir(tmp_path)
    records, plot = client.get_task_stream(start="1 minute", plot="save")
    assert {record["key"] for record in records} == {"six"} and "1 tasks" in repr(plot)
    assert "six" in Path("task-stream.html").read_text()
    assert client.get_task_stream(stop="1 minute") == ()
    with performance_report("report.html", stacklevel=2, mode="inline", storage_options={}):
        progress(first, complete=False, group_by="spans", notebook=False)
    with pytest.warns(RuntimeWarning, match="here"):
        warn("here", RuntimeWarning, stacklevel=1, source=None)


def fails_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        raise ValueError("the first time")
    return "again"


def test_retry_and_plugins_by_their_names(client: Client, tmp_path: Path) -> None:
    future = client.submit(fails_once, str(tmp_path / "was here"), pure=False)
    with pytest.raises(ValueError, match="the first time"):
        future.result(timeout=60)
    client.retry([future])
    assert future.result(timeout=60) == "again" and future.executor is client is Client.current()
    plugin = Watching()
    client.register_plugin(plugin, name="mine")
    assert client.run_on_scheduler(lambda dask_scheduler: "mine" in dask_scheduler.plugins.own)
    client.unregister_scheduler_plugin("mine")
    with pytest.raises(ValueError, match="no scheduler plugin 'mine'"):
        client.unregister_scheduler_plugin(name="mine")


async def test_what_they_do_asynchronously(aclient: Client, tmp_path: Path) -> None:
    assert await aclient.submit(key_of_this_task, key="mine") == "mine"
    await aclient.submit(int, 5, key="five")
    with pytest.raises(TimeoutError):
        await aclient.sync(asyncio.sleep, 60, callback_timeout=0.05)
    future = await aclient.scatter(7, asynchronous=True)
    assert await Future(future.key, client=aclient) == 7
    await aclient.get_task_stream()
    await aclient.submit(int, 6, key="six")
    _, plot = await aclient.get_task_stream(filename=str(tmp_path / "stream.html"))
    assert "six" in (tmp_path / "stream.html").read_text() and "svg" in plot._repr_html_()


class Watching(SchedulerPlugin):
    name = "watching"

    def __init__(self) -> None:
        self.graphs: list[list[str]] = []

    def update_graph(self, scheduler, *, client, keys, tasks, annotations, priority, stimulus_id, **kwargs) -> None:
        assert set(tasks) == keys
        self.graphs.append(tasks)


async def test_a_preload_adds_a_plugin(aclient: Client) -> None:
    scheduler, plugin = aclient.cluster.scheduler, Watching()
    scheduler.add_plugin(plugin)
    with pytest.raises(ValueError, match="'watching' already"):
        scheduler.add_plugin(Watching())
    scheduler.add_plugin(Watching(), idempotent=True)
    await aclient.submit(int, key="seen")
    await scheduler.remove_plugin("watching")
    await aclient.submit(int, key="unseen")
    assert plugin.graphs == [["seen"]]


class Own(Adaptive):
    pass


async def test_a_local_cluster_is_sized_in_cores_and_memory() -> None:
    options = {"processes": False, "threads_per_worker": 2, "memory_limit": "1GB", "dashboard_address": None}
    async with LocalCluster(n_workers=1, asynchronous=True, **options) as cluster:
        await cluster.scale(cores=3)
        assert len(cluster.plan) == 2
        await cluster.scale(memory="2.5GB")
        assert len(cluster.plan) == 3
        await cluster.scale_up(2)
        assert len(cluster.plan) == 3
        await cluster.scale_down([next(iter(cluster.plan))])
        assert len(cluster.plan) == 2
        with pytest.raises(ValueError, match="how many workers, or how much memory"):
            cluster.scale()
        adaptive = cluster.adapt(minimum_cores=2, maximum_memory="4GB", Adaptive=Own)
        assert type(adaptive) is Own and (adaptive.minimum, adaptive.maximum) == (1, 4)
        adaptive.stop(reason="enough")
