"""Looking at the cluster: who has what, versions, stacks, profiles, logs, reports, dumps; moving data."""

from __future__ import annotations

import gzip
import io
import re
import time
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dask.array as da
import msgpack
import numpy as np
import pytest
import yaml
from daskfleet import (
    Client,
    LocalCluster,
    get_task_metadata,
    get_task_stream,
    get_worker,
    performance_report,
    progress,
)
from daskfleet.exceptions import VersionMismatch
from daskfleet.versions import VersionMismatchWarning, mismatches, versions

from tests.eventual import eventually


def busy(seconds: float) -> int:
    deadline, n = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        n += 1
    return n


def fail() -> None:
    raise ValueError("on purpose")


def test_who_has_what(client: Client) -> None:
    first, second = sorted(client.nthreads())
    a = client.submit(np.zeros, 1000, key="a", workers=[first])
    b = client.submit(np.ones, 1000, key="b", workers=[second])
    client.gather([a, b])
    assert client.who_has([a, b]) == {"a": (first,), "b": (second,)}
    assert client.who_has()["a"] == (first,)
    assert client.has_what([first]) == {first: ("a",)}
    assert set(client.has_what()) == {first, second}
    assert client.nthreads() == client.ncores() == {first: 1, second: 1}
    assert client.nthreads([second]) == {second: 1}
    assert client.nbytes(summary=False) == {"a": 8000, "b": 8000}
    assert client.nbytes(["a"], summary=False) == {"a": 8000}
    assert sum(client.nbytes().values()) == 16_000
    info = client.scheduler_info()
    assert list(client.scheduler_info(n_workers=1)["workers"]) == list(info["workers"])[:1]
    assert info["address"] == client.scheduler_address and set(info["workers"]) == {first, second}


def test_processing_and_call_stack(client: Client) -> None:
    client.run(busy, 0.0)  # so that the task does not spend its time importing this module
    future = client.submit(busy, 60, key="busy-1", pure=False)

    def seen() -> dict[str, Any]:
        return stacks if "in busy" in str(stacks := client.call_stack()) else {}

    ((address, by_key),) = eventually(seen).items()
    assert client.processing()[address] == ("busy-1",)
    assert list(by_key) == ["busy-1"]
    assert "in busy" in by_key["busy-1"][0]
    assert client.call_stack(keys=["other"]) == {}
    assert client.call_stack(future)[address]
    future.cancel(force=True)


def test_profile_of_the_servers(client: Client) -> None:
    asked = {"server": {"server": True}, "scheduler": {"scheduler": True}}
    for which, options in asked.items():
        assert client.profile(**options)["count"] >= 0
        deadline = time.monotonic() + 90
        while not (profile := client.profile(**options))["count"] and time.monotonic() < deadline:
            client.gather(client.map(lambda n: n, range(200), pure=False))
        assert profile["children"], which
    assert set(client.profile(server=True, merge_workers=False)) == set(client.nthreads())
    assert client.profile(scheduler=True, plot=True)[1].save


def test_profile(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client.run(busy, 0.0)
    started = time.time()
    client.gather(client.map(busy, [0.8, 0.8], pure=False))
    profile = client.profile("busy", start=started - 20)
    assert profile["count"] >= 3
    call = max(profile["children"].values(), key=lambda call: call["count"])
    assert call["description"]["name"] == "busy" and call["count"] >= 3
    assert client.profile("nothing")["count"] == 0
    each, figure = client.profile(merge_workers=False, filename=str(tmp_path / "profile.html"))
    assert set(each) == set(client.nthreads())
    assert "busy" in (tmp_path / "profile.html").read_text()
    assert "busy" in figure._repr_html_() and "samples" in repr(figure)
    monkeypatch.chdir(tmp_path)
    same, figure = client.profile("busy", start=started - 20, plot="save")
    assert same == profile
    assert "busy" in (tmp_path / "dask-profile.html").read_text()


def test_versions(client: Client) -> None:
    seen = client.get_versions(check=True)
    assert seen["client"] == seen["scheduler"]
    assert seen["client"]["packages"] == versions() and seen["client"]["host"]["python"]
    assert set(seen["workers"]) == set(client.nthreads())
    more = client.get_versions(packages=["click", "nosuch"])
    for told in (more["client"], more["scheduler"], *more["workers"].values()):
        assert told["packages"]["click"] and told["packages"]["nosuch"] is None

    def pretend(dask_worker: Any) -> None:
        async def other(packages: Any = ()) -> dict[str, str | None]:
            return {**versions(), "pandas": "0.25"}

        dask_worker.handle("versions", other)

    first = next(iter(client.nthreads()))
    client.run(pretend, workers=[first])
    with pytest.raises(VersionMismatch, match=r"pandas +[\d.]+ +[\d.]+ +0\.25, "):
        client.get_versions(check=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Client(client.cluster, set_as_default=False) as other:
            eventually(lambda: caught)
            assert other.status == "running"
    assert [warning.category for warning in caught] == [VersionMismatchWarning]
    client.restart_workers([first])


def test_a_table_of_mismatches() -> None:
    same = {"python": "3.12.1", "dask": "1", "numpy": "2"}
    assert mismatches(same, same, {"a": same}) == ""
    assert mismatches(same, {**same, "numpy": None}, {"a": same}) == ""  # the scheduler needs none of the user's
    table = mismatches(same, {**same, "dask": "2"}, {"a": same, "b": {**same, "python": "3.11.0"}})
    assert table.splitlines() == [
        "Package  Client  Scheduler  Workers",
        "-------  ------  ---------  --------------",
        "python   3.12.1  3.12.1     3.11.0, 3.12.1",
        "dask     1       2          1",
    ]


def test_logs(client: Client) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        client.submit(fail, pure=False).result(timeout=60)

    def log() -> None:
        import logging

        logging.getLogger("daskfleet.test").warning("look here")

    client.run(log)
    logs = client.get_worker_logs()
    assert set(logs) == set(client.nthreads())
    assert all(("WARNING", lines[-1][1]) == lines[-1] and "look here" in lines[-1][1] for lines in logs.values())
    assert all(len(lines) == 1 for lines in client.get_worker_logs(n=1).values())
    client.run_on_scheduler(log)
    assert any("look here" in line and level == "WARNING" for level, line in client.get_scheduler_logs())
    assert client.get_scheduler_logs(n=0) == ()


def test_nannies_logs(client: Client) -> None:
    def log(dask_worker: Any) -> None:
        import logging

        logging.getLogger("daskfleet.test").warning("from beside %s", dask_worker.name)

    first = client.scheduler_info()["workers"].popitem()[1]
    client.run(log, nanny=True, workers=[first["address"]])
    logs = client.get_worker_logs(nanny=True, workers=[first["address"]])
    assert f"from beside {first['name']}" in logs[first["address"]][-1][1]
    assert client.get_worker_logs(n=0, nanny=True) == dict.fromkeys(client.nthreads(), ())
    assert "from beside" not in str(client.get_worker_logs())


def test_replicate(client: Client) -> None:
    futures = client.scatter([np.arange(1000), np.arange(2000)], workers=[next(iter(client.nthreads()))])
    client.replicate(futures)
    assert all(len(holders) == 2 for holders in client.who_has(futures).values())
    pending = client.submit(np.ones, 500, pure=False)
    client.replicate(pending, n=2, branching_factor=1)  # waits for it
    assert len(client.who_has(pending)[pending.key]) == 2


def test_rebalance(client: Client) -> None:
    first, second = client.nthreads()
    futures = client.map(lambda i: np.full(10_000, i), range(10), workers=[first], pure=False)
    client.gather(futures)
    assert len(client.has_what()[second]) == 0
    client.rebalance()
    held = client.has_what()
    assert len(held[first]) == len(held[second]) == 5
    assert [int(value[0]) for value in client.gather(futures)] == list(range(10))


def test_task_stream(client: Client, tmp_path: Path) -> None:
    started = time.time()
    with get_task_stream(plot="save", filename=str(tmp_path / "stream.html")) as stream:
        client.gather(client.map(busy, [0.02] * 4, pure=False))
        with pytest.raises(ValueError, match="on purpose"):
            client.submit(fail, pure=False).result(timeout=60)
    assert len(stream.data) == 5
    assert {record["name"] for record in stream.data} == {"busy", "fail"}
    assert {record["worker"] for record in stream.data} <= set(client.nthreads())
    assert all(started - 1 < record["start"] <= record["stop"] for record in stream.data)
    assert [record["status"] for record in stream.data].count("error") == 1
    assert "<svg" in (tmp_path / "stream.html").read_text() and "5 tasks" in repr(stream.figure)
    assert len(client.get_task_stream(start=started)) == 5
    assert len(client.get_task_stream(count=2)) == 2


def test_task_metadata(client: Client) -> None:
    with get_task_metadata() as tasks:
        client.submit(busy, 0.01, key="good", pure=False).result(timeout=60)
        with pytest.raises(ValueError, match="on purpose"):
            client.submit(fail, key="bad", pure=False).result(timeout=60)
    assert tasks.state == {"good": "memory", "bad": "erred"}
    assert tasks.metadata["good"]["type"] == "int"


class Checker(HTMLParser):
    """Whether elements close in order, and nothing is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert not any(name in ("src", "href") for name, _ in attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_performance_report(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with performance_report(str(path)):
        da.ones((200, 200), chunks=50).sum().compute()
        client.submit(busy, 0.3, pure=False).result(timeout=60)
    page = path.read_text()
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    for text in ("Performance report", "Timeline", "busy", "Versions", "numpy", "2 with 2 threads"):
        assert text in page
    assert re.search(r"Threads busy</td><td>\d+%", page)


async def test_reports_asynchronous(aclient: Client, tmp_path: Path) -> None:
    async with performance_report(str(tmp_path / "report.html")), get_task_stream() as stream:
        assert await aclient.submit(int, 5) == 5
    assert len(stream.data) == 1
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("format", ["msgpack", "yaml"])
def test_dump(client: Client, tmp_path: Path, format: str) -> None:
    future = client.submit(np.ones, 10, key=("x", 1))
    future.result(timeout=60)
    name = client.dump_cluster_state(str(tmp_path / "dump"), format=format)
    if format == "yaml":
        state = yaml.safe_load(Path(name).read_text())
    else:
        with gzip.open(name) as stream:
            state = msgpack.unpack(stream, strict_map_key=False)
    assert set(state["workers"]) == set(client.nthreads())
    (task,) = state["scheduler"]["tasks"]
    assert list(task["key"]) == ["x", 1] and task["state"] == "memory" and len(task["who_has"]) == 1
    with pytest.raises(ValueError, match="expected msgpack or yaml"):
        client.dump_cluster_state(format="json")


def test_dump_without_some_of_it(client: Client, tmp_path: Path) -> None:
    name = client.dump_cluster_state(str(tmp_path / "dump"), exclude=["versions", "events", "id"], format="yaml")
    state = yaml.safe_load(Path(name).read_text())
    assert set(state) == {"scheduler", "workers"}
    assert "tasks" in state["scheduler"] and not {"events", "id"} & set(state["scheduler"])


def test_dump_written_by_the_scheduler(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskfleet.client.looking.write_dump", None)  # it is not the client that writes
    for filename, written in ((str(tmp_path / "dump"), True), ((tmp_path / "url").as_uri(), None)):
        name = client.dump_cluster_state(filename, write_from_scheduler=written, format="yaml")
        state = yaml.safe_load(Path(name.removeprefix("file://")).read_text())
        assert set(state["workers"]) == set(client.nthreads())
        assert state["versions"]["client"]["python"]


def test_write_scheduler_file(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    client.write_scheduler_file(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    with Client(scheduler_file=str(path), set_as_default=False) as other:
        assert other.submit(int, 3).result(timeout=60) == 3


def test_progress(client: Client) -> None:
    out = io.StringIO()
    futures = client.map(busy, [0.1] * 6, pure=False)
    assert progress(futures, out=out) is None
    assert all(future.done() for future in futures)
    lines = out.getvalue().split("\r")
    assert lines[-1].startswith("[" + "#" * 40 + "] 6/6 done")
    assert "/6 done" in lines[1]
    out = io.StringIO()
    progress(client.submit(fail, pure=False), out=out)
    assert "1/1 done, 1 failed" in out.getvalue()


async def test_progress_asynchronous(aclient: Client) -> None:
    out = io.StringIO()
    await progress(aclient.map(int, range(3)), out=out)
    assert "3/3 done" in out.getvalue()


async def test_looking_asynchronous(cluster: LocalCluster, tmp_path: Path) -> None:
    async with Client(cluster.scheduler_address, security=cluster.security, asynchronous=True) as client:
        future = client.submit(lambda: get_worker().address, key="where", pure=False)
        address = await future
        assert await client.who_has(future) == {"where": (address,)}
        assert (await client.has_what())[address] == ("where",)
        assert set(await client.nthreads()) == set(await client.processing())
        assert await client.nbytes(["where"], summary=False)
        assert (await client.get_versions())["workers"][address]
        assert await client.call_stack() == {}
        assert (await client.profile())["count"] >= 0
        assert (await client.profile(plot=True))[0]["count"] >= 0
        assert (await client.profile(server=True))["count"] >= 0
        assert (await client.profile(scheduler=True))["count"] >= 0
        assert await client.get_worker_logs()
        assert set(await client.get_worker_logs(nanny=True)) == set(await client.nthreads())
        assert set(await client.run(lambda dask_worker: dask_worker.name, nanny=True)) == set(await client.nthreads())
        dump = await client.dump_cluster_state(str(tmp_path / "dump"), write_from_scheduler=True)
        assert dump == str(tmp_path / "dump.msgpack.gz") and Path(dump).exists()
        assert await client.get_scheduler_logs() is not None
        await client.replicate(future)
        await client.rebalance([future])
        assert (await client.scheduler_info())["n_workers"] == 2
