"""Plugins of the scheduler, the workers and the nannies; files; restarts."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from daskfleet import (
    Client,
    Environ,
    InstallPlugin,
    LocalCluster,
    NannyPlugin,
    PipInstall,
    SchedulerPlugin,
    UploadDirectory,
    UploadFile,
    WorkerPlugin,
    get_worker,
)
from daskfleet.exceptions import DaskfleetError

from tests.eventual import eventually


class Recorder(SchedulerPlugin):
    name = "recorder"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def start(self, scheduler: Any) -> None:
        await asyncio.sleep(0)
        self.seen.append("start")
        scheduler.recorder = self

    def add_client(self, scheduler: Any, client: str) -> None:
        self.seen.append("add_client")

    def remove_client(self, scheduler: Any, client: str) -> None:
        self.seen.append("remove_client")

    def update_graph(self, scheduler: Any, *, client: str, keys: Any, **kwargs: Any) -> None:
        self.seen.append(("update_graph", list(keys)))

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        self.seen.append((key, start, finish))

    def log_event(self, topic: str, msg: Any) -> None:
        self.seen.append(("log_event", topic))

    def restart(self, scheduler: Any) -> None:
        self.seen.append("restart")

    def close(self) -> None:
        self.seen.append("close")

    async def add_worker(self, scheduler: Any, worker: str) -> None:
        self.seen.append(("add_worker", worker))

    def remove_worker(self, scheduler: Any, worker: str, *, stimulus_id: str, **kwargs: Any) -> None:
        self.seen.append(("remove_worker", worker))


async def test_scheduler_plugin(aclient: Client) -> None:
    await aclient.register_plugin(Recorder())
    scheduler = aclient.cluster.scheduler
    assert await aclient.submit(int, 5, key="five") == 5
    await aclient.log_event("topic", 1)
    async with Client(aclient.cluster, asynchronous=True, set_as_default=False):
        pass
    await aclient.cluster.scale(3)
    await aclient.wait_for_workers(3, timeout=60)
    await aclient.cluster.scale(2)
    recorder = scheduler.plugins["recorder"]
    assert "recorder" in scheduler.plugins and "other" not in scheduler.plugins
    for _ in range(500):
        if any(row[0] == "remove_worker" for row in recorder.seen) and "remove_client" in recorder.seen:
            break
        await asyncio.sleep(0.01)
    seen = recorder.seen
    steps = [row for row in seen if row[0] == "five"]
    assert [finish for _, _, finish in steps][:4] == ["waiting", "queued", "processing", "memory"]
    assert steps[-1][2] in ("released", "forgotten", "memory")
    assert seen[0] == "start" and "add_client" in seen and ("update_graph", ["five"]) in seen
    assert ("log_event", "topic") in seen
    assert any(row[0] == "add_worker" for row in seen) and any(row[0] == "remove_worker" for row in seen)
    await aclient.unregister_scheduler_plugin("recorder")
    assert seen[-1] == "close"
    assert "_enter" not in vars(scheduler.state)  # nobody watches, nothing is wrapped
    with pytest.raises(ValueError, match="no scheduler plugin 'recorder'"):
        await aclient.unregister_scheduler_plugin("recorder")


async def test_valid_workers_downscaling(aclient: Client) -> None:
    class Keep(SchedulerPlugin):
        def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
            return [worker for worker in workers if worker.name != "0"]

    await aclient.register_plugin(Keep())
    assert [worker.name for worker in aclient.cluster.scheduler.workers_to_close(2)] == ["1"]


async def test_a_failing_plugin_is_no_trouble_to_others(aclient: Client, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SchedulerPlugin):
        def transition(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("broken plugin")

    await aclient.register_plugin(Broken())
    assert await aclient.submit(int, 6) == 6
    assert "broken plugin" in caplog.text


def test_plugins_must_be_plugins(client: Client) -> None:
    with pytest.raises(TypeError, match="no plugin"):
        client.register_plugin(5)
    with pytest.raises(TypeError, match="instance"):
        client.register_plugin(Recorder)


class Setup(WorkerPlugin):
    def __init__(self, value: int, name: str = "setup", idempotent: bool = False) -> None:
        self.value, self.name, self.idempotent = value, name, idempotent

    async def setup(self, worker: Any) -> None:
        await asyncio.sleep(0.01)
        worker.value = self.value

    def teardown(self, worker: Any) -> None:
        worker.value = None


def value() -> Any:
    return getattr(get_worker(), "value", None)


def test_worker_plugin(client: Client) -> None:
    client.register_plugin(Setup(1))
    assert set(client.run(value).values()) == {1}
    client.register_plugin(Setup(2))
    assert set(client.run(value).values()) == {2}
    client.register_plugin(Setup(3, idempotent=True))
    assert set(client.run(value).values()) == {2}
    client.restart()  # new processes get it before their first task
    client.wait_for_workers(2, timeout=90)
    assert set(client.gather(client.map(lambda i: value(), range(10), pure=False))) == {2}
    client.unregister_worker_plugin("setup")
    assert set(client.run(value).values()) == {None}
    with pytest.raises(ValueError, match="no worker plugin 'setup'"):
        client.unregister_worker_plugin("setup")


def test_a_worker_plugin_that_fails(client: Client) -> None:
    class Bad(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            raise OSError("no disk")

    with pytest.raises(DaskfleetError, match=r"failed on 2 workers: tcp://.*OSError: no disk"):
        client.register_plugin(Bad(), name="bad")
    client.unregister_worker_plugin("bad")


async def test_worker_plugin_transitions(aclient: Client) -> None:
    seen: list[Any] = []

    class Watch(WorkerPlugin):
        def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
            seen.append((key, start, finish))

        def __reduce__(self) -> Any:
            return lambda: watch, ()

    watch = Watch()
    worker = aclient.cluster.workers["0"]
    worker.plugins.own["watch"] = watch
    worker.plugins._watch()
    await aclient.submit(int, 9, key="nine", workers=["0"])
    with pytest.raises(ValueError, match="invalid"):
        await aclient.submit(int, "x", key="bad", workers=["0"])
    assert seen == [
        ("nine", "waiting", "ready"),
        ("nine", "executing", "memory"),
        ("bad", "waiting", "ready"),
        ("bad", "executing", "error"),
    ]
    await worker.plugins.remove("worker", "watch")
    assert "finished" not in vars(worker.machine)


def test_register_worker_callbacks(client: Client) -> None:
    client.register_worker_callbacks(lambda dask_worker: setattr(dask_worker, "value", "called"))
    assert set(client.run(value).values()) == {"called"}


def test_nanny_plugin(client: Client, tmp_path: Path) -> None:
    class Beside(NannyPlugin):
        def __init__(self, path: str) -> None:
            self.path = path

        def setup(self, nanny: Any) -> None:
            Path(self.path, f"up-{nanny.name}").touch()

        def teardown(self, nanny: Any) -> None:
            Path(self.path, f"down-{nanny.name}").touch()

    client.register_plugin(Beside(str(tmp_path)), name="beside")
    assert len(list(tmp_path.glob("up-*"))) == 2
    client.unregister_worker_plugin("beside", nanny=True)
    assert len(list(tmp_path.glob("down-*"))) == 2


def test_environ_restarts_workers(client: Client) -> None:
    before = set(client.run(os.getpid).values())
    client.register_plugin(Environ({"MY_SETTING": 5}))

    def two_new() -> bool:
        return len(pids := set(client.run(os.getpid, on_error="ignore").values())) == 2 and not pids & before

    eventually(two_new)
    assert set(client.run(os.getenv, "MY_SETTING").values()) == {"5"}
    client.unregister_worker_plugin("Environ", nanny=True)


def test_upload_file(client: Client, tmp_path: Path) -> None:
    module = tmp_path / "my_uploaded_module.py"
    module.write_text("def f():\n    return 1\n")

    def use() -> int:
        import my_uploaded_module  # type: ignore[import-not-found]

        return int(my_uploaded_module.f())

    client.upload_file(module)
    assert client.submit(use, pure=False).result(timeout=60) == 1
    module.write_text("def f():\n    return 2  # longer\n")
    client.register_plugin(UploadFile(module))
    assert set(client.run(use).values()) == {2}


def test_upload_directory(client: Client, tmp_path: Path) -> None:
    package = tmp_path / "project" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("answer = 42\n")
    (tmp_path / "project" / "data.txt").write_text("text")
    (tmp_path / "project" / "tests").mkdir()
    (tmp_path / "project" / "tests" / "left_out").touch()
    client.register_plugin(UploadDirectory(tmp_path / "project", update_path=True))

    def look() -> tuple[int, list[str]]:
        import my_package  # type: ignore[import-not-found]

        folder = Path(get_worker().local_directory, "project")
        return my_package.answer, sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix != ".pyc")

    answer, files = client.submit(look, pure=False).result(timeout=60)
    assert answer == 42
    assert "data.txt" in files and "my_package/__init__.py" in files and "tests/left_out" not in files


def test_install_plugin(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "installed")

    def install() -> None:
        with open(path, "a") as stream:
            stream.write(f"{time.time()} ")
            time.sleep(0.05)
            stream.write(f"{time.time()}\n")

    client.register_plugin(InstallPlugin(install))
    spans = sorted(tuple(map(float, line.split())) for line in Path(path).read_text().splitlines())
    assert len(spans) == 2
    assert spans[0][1] <= spans[1][0]  # one at a time on a machine


def test_pip_install(client: Client) -> None:
    client.register_plugin(PipInstall(["click"], pip_options=["--no-index", "--disable-pip-version-check"]))
    with pytest.raises(DaskfleetError, match="no-such-package-of-ours"):
        client.register_plugin(PipInstall(["no-such-package-of-ours"], pip_options=["--no-index"]))
    for name in ("click", "no-such-package-of-ours"):  # or every worker of a later test would begin with pip
        client.unregister_worker_plugin(f"pip-install-{name}")


def test_restart(client: Client) -> None:
    before = set(client.run(os.getpid).values())
    future = client.submit(int, 77)
    future.result(timeout=60)
    assert client.restart(timeout=180) is client
    assert future.status == "cancelled"
    after = set(client.run(os.getpid).values())
    assert len(after) == 2 and not after & before
    assert client.submit(int, 77).result(timeout=60) == 77


def test_restart_workers(client: Client) -> None:
    first, second = client.run(os.getpid).items()
    kept = client.submit(list, range(10), workers=[first[0]], key="data-on-first")
    kept.result(timeout=60)
    name = client.scheduler_info()["workers"][first[0]]["name"]
    assert client.restart_workers([name], timeout=180) == {name: "OK"}
    after = client.run(os.getpid)
    assert second[1] in after.values() and first[1] not in after.values()
    assert kept.result(timeout=60) == list(range(10))
    with pytest.raises(ValueError, match=r"no worker '7', 'nosuch'; there are: 0, 1$"):
        client.restart_workers([name, "nosuch", 7])
    assert client.run(os.getpid) == after


async def test_restart_without_nannies(aclient: Client) -> None:
    future = aclient.submit(int, 5)
    await future
    await aclient.restart(timeout=60)
    assert future.status == "cancelled"
    assert not any(worker.machine.data for worker in aclient.cluster.workers.values())
    assert await aclient.submit(int, 5) == 5


def test_a_cluster_of_its_own_closes_with_plugins(tmp_path: Path) -> None:
    class Closing(SchedulerPlugin):
        def __init__(self, path: str) -> None:
            self.path = path

        async def before_close(self) -> None:
            Path(self.path, "before").touch()

        def close(self) -> None:
            Path(self.path, "closed").touch()

    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(Closing(str(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "closed"]
