"""The asynchronous form of what the other files here show in its blocking form."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import dask.array as da
import pytest
from daskfleet import (
    Client,
    Environ,
    Event,
    LocalCluster,
    Queue,
    Semaphore,
    Variable,
    WorkerPlugin,
    as_completed,
    get_task_stream,
    wait,
)

pytestmark = pytest.mark.asyncio


def double(x: int) -> int:
    return 2 * x


def fail_until(path: str) -> int:
    if not Path(path).exists():
        raise OSError("not there yet")
    return 7


async def test_map_compute_persist(aclient: Client) -> None:
    futures = aclient.map(double, range(4))
    assert sum([await future async for future in as_completed(futures)]) == 12
    done = await wait(futures, return_when="FIRST_COMPLETED")
    assert done.done
    array = aclient.persist(da.arange(10, chunks=5) + 1)
    await wait(aclient.futures_of(array))
    assert await aclient.compute(array.sum()) == 55
    assert (await aclient.gather(aclient.compute([array.sum(), array.max()]))) == [55, 10]


async def test_retry(aclient: Client, tmp_path: Path) -> None:
    path = tmp_path / "there"
    future = aclient.submit(fail_until, str(path), pure=False)
    later = aclient.submit(double, future)
    assert isinstance(await later.exception(), OSError)
    path.touch()
    await aclient.retry([later])
    assert await later == 14


async def test_retry_blocking(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "there"
    future = client.submit(fail_until, str(path), pure=False)
    with pytest.raises(OSError, match="not there yet"):
        future.result(timeout=60)
    path.touch()
    future.retry()
    assert future.result(timeout=60) == 7


async def test_datasets(aclient: Client) -> None:
    array = aclient.persist(da.ones(4, chunks=2))
    await aclient.publish_dataset(array, name="ones")
    assert await aclient.list_datasets() == ("ones",)
    assert await aclient.compute((await aclient.get_dataset("ones")).sum()) == 4
    await aclient.unpublish_dataset("ones")
    assert await aclient.list_datasets() == ()


async def test_code_and_plugins(aclient: Client, tmp_path: Path) -> None:
    module = tmp_path / "uploaded_asynchronously.py"
    module.write_text("x = 5\n")
    await aclient.upload_file(module)
    assert await aclient.submit(lambda: __import__("uploaded_asynchronously").x) == 5
    await aclient.register_worker_callbacks(lambda dask_worker: setattr(dask_worker, "set_up", True))
    assert set((await aclient.run(lambda dask_worker: dask_worker.set_up)).values()) == {True}

    class Mark(WorkerPlugin):
        def teardown(self, worker: Any) -> None:
            worker.set_up = False

    await aclient.register_plugin(Mark(), name="mark")
    await aclient.unregister_worker_plugin("mark")
    assert set((await aclient.run(lambda dask_worker: dask_worker.set_up)).values()) == {False}
    with pytest.raises(ValueError, match="mark"):
        await aclient.unregister_worker_plugin("mark")


async def test_looking(aclient: Client, tmp_path: Path) -> None:
    async with get_task_stream() as stream:
        await aclient.submit(double, 3, key="seen")
    assert [record["key"] for record in stream.data] == ["seen"]
    assert "seen" in [record["key"] for record in await aclient.get_task_stream()]
    path = Path(await aclient.dump_cluster_state(str(tmp_path / "dump"), format="yaml"))
    assert "scheduler" in path.read_text()
    await aclient.write_scheduler_file(str(tmp_path / "scheduler.json"))
    assert json.loads((tmp_path / "scheduler.json").read_text())["address"] == aclient.scheduler_address
    assert set((await aclient.ncores()).values()) == {1}


async def test_forward_logging(aclient: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "my.other.app"):
        await aclient.forward_logging("my.other.app", level=logging.INFO)
        await aclient.submit(lambda: logging.getLogger("my.other.app").info("from a task"), pure=False)
        await aclient.get_events("x")
        assert "from a task" in caplog.text
        await aclient.unforward_logging("my.other.app")


async def test_as_current(aclient: Client) -> None:
    async with Client(aclient.scheduler_address, security=aclient.security, asynchronous=True) as other:
        with aclient.as_current():
            assert Client.current() is aclient
        assert Client.current() is other


async def test_restart_workers_and_shutdown() -> None:
    async with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, asynchronous=True) as cluster:
        client = await Client(cluster, asynchronous=True)
        await client.register_plugin(Environ({"ASYNCHRONOUS": "yes"}))
        (name,) = (worker["name"] for worker in (await client.scheduler_info())["workers"].values())
        assert await client.restart_workers([name], timeout=180) == {name: "OK"}
        with pytest.raises(ValueError, match=f"no worker 'nosuch'; there are: {name}"):
            await client.restart_workers("nosuch")
        assert await client.submit(double, 4) == 8
        await client.shutdown()
        assert client.status == "closed"


async def test_what_clients_share(aclient: Client) -> None:
    variable, queue = Variable("v", client=aclient), Queue("q", client=aclient)
    await variable.set(3)
    assert await variable.get(timeout=5) == 3
    await variable.delete()
    with pytest.raises(TimeoutError):
        await variable.get(timeout=0.05)
    await queue.put("a")
    assert await queue.qsize() == 1
    assert await queue.get(timeout=5) == "a"
    await queue.close()
    event, semaphore = Event("e", client=aclient), Semaphore(2, "s", client=aclient)
    await event.set()
    await event.clear()
    assert not await event.is_set()
    assert await semaphore.acquire(timeout=5)
    assert await semaphore.get_value() == 1
    await semaphore.release()
    await semaphore.close()


async def test_a_client_closed_at_once_leaves_no_question_about_versions_behind(aclient: Client) -> None:
    before = asyncio.all_tasks()
    await (await Client(aclient.scheduler_address, security=aclient.security, asynchronous=True)).close()
    left = [task for task in asyncio.all_tasks() - before if "_check_versions" in repr(task) and not task.done()]
    assert left == [], "it would be destroyed while pending when the program ends"
