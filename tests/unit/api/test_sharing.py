"""Published datasets, metadata, events, and what tasks print and log."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import dask.array as da
import pytest
from daskfleet import Client, LocalCluster, get_client, get_worker
from daskfleet import print as remote_print
from daskfleet import warn as remote_warn

from tests.eventual import eventually


def test_datasets(cluster: LocalCluster, client: Client) -> None:
    with Client(cluster, set_as_default=False) as publisher:
        x = publisher.persist(da.ones((100, 100), chunks=50))
        publisher.publish_dataset(x=x, n=publisher.submit(int, 7))
        with pytest.raises(KeyError, match="published already"):
            publisher.publish_dataset(x=x)
        publisher.publish_dataset(x, name="x", override=True)
        with pytest.raises(ValueError, match="name="):
            publisher.publish_dataset(x)
        del x
    assert sorted(client.list_datasets()) == ["n", "x"]
    y = client.get_dataset("x")
    assert client.futures_of(y)
    assert all(future.client is client for future in client.futures_of(y))
    assert y.sum().compute() == 10_000
    assert client.get_dataset("n").result(timeout=60) == 7
    with pytest.raises(KeyError, match=r"no dataset 'z' is published; there are: n, x|x, n"):
        client.get_dataset("z")
    assert client.get_dataset("z", default=None) is None
    client.unpublish_dataset("n")
    assert client.list_datasets() == ("x",)
    assert client.submit(lambda: int(get_client().get_dataset("x").sum().compute()), pure=False).result(20) == 10_000
    client.unpublish_dataset("x")


def test_datasets_as_a_mapping(client: Client) -> None:
    client.datasets["one"] = client.submit(int, 1)
    assert list(client.datasets) == ["one"] and len(client.datasets) == 1 and "one" in client.datasets
    assert client.datasets["one"].result(timeout=60) == 1
    del client.datasets["one"]
    assert not client.datasets
    with pytest.raises(KeyError):
        del client.datasets["one"]


async def test_datasets_asynchronous(aclient: Client) -> None:
    await aclient.publish_dataset(v=aclient.submit(int, 3))
    assert await aclient.list_datasets() == ("v",)
    assert await (await aclient.get_dataset("v")) == 3
    await aclient.unpublish_dataset("v")


def test_metadata(client: Client) -> None:
    client.set_metadata("x", 1)
    assert client.get_metadata("x") == 1
    client.set_metadata(["y", "a"], {"b": [1, (2, 3)]})
    client.set_metadata(["y", "c"], None)
    assert client.get_metadata("y") == {"a": {"b": [1, (2, 3)]}, "c": None}
    assert client.get_metadata(["y", "a", "b"]) == [1, (2, 3)]
    assert client.get_metadata("z", default=5) == 5
    with pytest.raises(KeyError):
        client.get_metadata(["y", "missing"])


async def test_metadata_asynchronous(aclient: Client) -> None:
    await aclient.set_metadata("x", {"a": 1})
    assert await aclient.get_metadata(["x", "a"]) == 1


def test_events(client: Client) -> None:
    client.log_event("topic", {"a": 1})
    client.log_event(["topic", "other"], "both")
    client.submit(lambda: get_client().log_event("topic", "from a task"), pure=False).result(timeout=60)
    eventually(lambda: len(client.get_events("topic")) == 3)
    client.submit(lambda: get_worker().log_event("topic", ("from", "a worker")), pure=False).result(timeout=60)
    eventually(lambda: len(client.get_events("topic")) == 4)
    client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.log_event("topic", 5))
    said = [{"a": 1}, "both", "from a task", ("from", "a worker"), 5]
    assert [message for _, message in client.get_events("topic")] == said
    assert all(abs(when - time.time()) < 60 for when, _ in client.get_events("topic"))
    assert set(client.get_events()) >= {"topic", "other"}
    assert client.get_events("nothing") == ()


def test_subscribing(client: Client) -> None:
    heard: list[Any] = []
    client.subscribe_topic("news", heard.append)
    client.log_event("news", 1)
    client.log_event("news", 2)
    eventually(lambda: len(heard) == 2)
    assert [message for _, message in heard] == [1, 2]
    client.unsubscribe_topic("news")
    client.log_event("news", 3)
    client.get_events("news")
    assert len(heard) == 2
    with pytest.raises(ValueError, match="news"):
        client.unsubscribe_topic("news")


async def test_subscribing_asynchronous(aclient: Client) -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()

    async def handle(event: tuple[float, Any]) -> None:
        await heard.put(event[1])

    await aclient.subscribe_topic("news", handle)
    await aclient.log_event("news", "x")
    assert await asyncio.wait_for(heard.get(), 60) == "x"
    await aclient.unsubscribe_topic("news")
    assert (await aclient.get_events("news"))[0][1] == "x"


def test_print_and_warn_reach_the_client(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    def say() -> None:
        remote_print("hello", 1, sep="-")
        remote_warn("careful")

    out: list[str] = []
    with pytest.warns(UserWarning, match="careful"):
        client.submit(say, pure=False).result(timeout=60)
        eventually(lambda: bool(out.append(capsys.readouterr().out)) or "hello-1" in "".join(out))
        time.sleep(0.3)


def test_forward_logging(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    def log() -> None:
        logger = logging.getLogger("my.app")
        logger.info("number %d", 7)
        try:
            raise KeyError("oops")
        except KeyError:
            logger.exception("failed")

    with caplog.at_level(logging.INFO, "my.app"):
        client.forward_logging("my.app", level=logging.INFO)
        client.submit(log, pure=False).result(timeout=60)
        eventually(lambda: "failed" in caplog.text)
        assert "number 7" in caplog.text
        assert "KeyError: 'oops'" in caplog.text
        client.unforward_logging("my.app")
        before = len(caplog.records)
        client.submit(log, pure=False).result(timeout=60)
        client.get_events("x")
        assert len(caplog.records) == before


def test_a_handler_that_fails_is_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def handle(event: tuple[float, Any]) -> None:
        done.set()
        raise RuntimeError("broken")

    client.subscribe_topic("bad", handle)
    client.log_event("bad", 1)
    assert done.wait(20)
    eventually(lambda: "broken" in caplog.text)
    assert client.submit(int, 3).result(timeout=60) == 3
