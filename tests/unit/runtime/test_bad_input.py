"""Functions, arguments, results and exceptions that make trouble: each says what is wrong, and the cluster goes on."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

import pytest
from daskfleet import Client, KilledWorker, LocalCluster


class Unpicklable:
    def __reduce__(self):
        raise TypeError("no bytes for this")


class PicklesOnly(Exception):
    """Its constructor takes other arguments than it stores."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class BadText(Exception):
    def __str__(self):
        raise RuntimeError("no text either")


def still_works(client: Client) -> bool:
    return client.submit(sum, [1, 2], pure=False).result(timeout=180) == 3


def test_a_task_that_raises_shows_where(client: Client) -> None:
    def divide(x):
        return 1 / x

    future = client.submit(divide, 0)
    with pytest.raises(ZeroDivisionError) as caught:
        future.result(timeout=180)
    assert caught.traceback[-1].name == "divide"
    assert future.status == "error"
    with pytest.raises(ZeroDivisionError):
        client.submit(lambda x: x, future).result(timeout=180)


@pytest.mark.parametrize("how", [sys.exit, exit, lambda: (_ for _ in ()).throw(KeyboardInterrupt)], ids=range(3))
def test_a_task_that_wants_to_end_its_process_ends_nothing(client: Client, how) -> None:
    def leave():
        how() if how is not exit else sys.exit(3)

    before = client.run(os.getpid)
    with pytest.raises(RuntimeError, match=r"called for an end of its process: (SystemExit|KeyboardInterrupt|list)"):
        client.submit(leave, pure=False).result(timeout=180)
    assert client.run(os.getpid) == before


def test_exceptions_that_cannot_travel_are_told_in_words(client: Client) -> None:
    def raises(kind):
        if kind == "pickles only":
            raise PicklesOnly("this", "that")
        if kind == "unpicklable":
            error = ValueError("holds a lock")
            error.lock = threading.Lock()
            raise error
        raise BadText

    with pytest.raises(RuntimeError, match="PicklesOnly: this and that"):
        client.submit(raises, "pickles only").result(timeout=180)
    with pytest.raises(RuntimeError, match="ValueError: holds a lock"):
        client.submit(raises, "unpicklable").result(timeout=180)
    with pytest.raises(BadText):
        client.submit(raises, "text").result(timeout=180)
    assert still_works(client)


def test_endless_recursion_ends(client: Client) -> None:
    def deeper(n):
        return deeper(n + 1)

    with pytest.raises(RecursionError):
        client.submit(deeper, 0).result(timeout=180)
    assert still_works(client)


def test_functions_and_arguments_that_cannot_be_pickled_are_named_at_once(client: Client) -> None:
    lock = threading.Lock()

    def holds_a_lock():
        return lock

    with pytest.raises(TypeError, match=r"cannot pickle function .*holds_a_lock"):
        client.submit(holds_a_lock)
    with pytest.raises(TypeError, match=r"cannot pickle .*lock"):
        client.submit(id, lock)
    with pytest.raises(TypeError, match=r"no bytes for this"):
        client.map(id, [Unpicklable()])
    with pytest.raises(TypeError, match=r"no bytes for this"):
        client.scatter(Unpicklable())
    assert still_works(client)


def test_a_result_that_cannot_be_pickled_can_be_used_where_it_is_and_is_named_elsewhere(client: Client) -> None:
    here, there = client.scheduler_info()["workers"].values()
    future = client.submit(Unpicklable, workers=[here["name"]])
    assert (
        client.submit(lambda x: type(x).__name__, future, workers=[here["name"]]).result(timeout=180) == "Unpicklable"
    )
    with pytest.raises(TypeError, match="no bytes for this"):
        future.result(timeout=180)
    with pytest.raises(TypeError, match=r"the input 'Unpicklable-\w+' could not be brought here.*no bytes for this"):
        client.submit(type, future, workers=[there["name"]], pure=False).result(timeout=180)
    assert still_works(client)


def test_a_future_that_was_cancelled_is_no_argument(client: Client) -> None:
    future = client.submit(lambda: 1, pure=False)
    client.cancel(future)
    late = client.submit(lambda x: x + 1, future, pure=False)
    with pytest.raises(BaseException, match="cancelled"):
        late.result(timeout=180)
    assert still_works(client)


@pytest.mark.parametrize("how", ["os._exit", "segfault", "SIGKILL"])
def test_a_task_that_kills_its_workers_is_named_and_innocents_finish(how: str) -> None:
    def kill():
        if how == "os._exit":
            os._exit(9)
        if how == "segfault":
            ctypes.string_at(0)
        os.kill(os.getpid(), 9)

    options = {"scheduler_kwargs": {"allowed_failures": 1}, "dashboard_address": None}
    with LocalCluster(2, threads_per_worker=1, **options) as cluster, Client(cluster) as client:
        client.submit(lambda x: x, -1).result(timeout=180)
        innocents = client.map(lambda x: x + 1, range(200))
        killer = client.submit(kill, key="the-killer")
        more = client.map(lambda x: x + 2, range(200))
        with pytest.raises(KilledWorker, match=r"task 'the-killer' was running on 2 workers when they died") as caught:
            killer.result(timeout=180)
        assert caught.value.task == "the-killer" and caught.value.last_worker.startswith("tcp://")
        assert client.gather(innocents + more) == [*range(1, 201), *range(2, 202)]
        client.wait_for_workers(2, timeout=180)  # their nannies have started them anew
        assert still_works(client)
