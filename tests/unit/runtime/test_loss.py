"""Workers that go, on purpose or not: nothing that is wanted is lost."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
import pytest
from daskfleet import Client, LocalCluster, wait

from tests.eventual import eventually


@pytest.fixture
def three():
    with LocalCluster(3, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        client.wait_for_workers(3, timeout=90)
        yield cluster, client


def make(i):
    return np.full(100_000, i)  # too large to stay on the scheduler


def kill(client, address):
    os.kill(client.scheduler_info()["workers"][address]["pid"], signal.SIGKILL)


def test_results_of_a_killed_worker_are_computed_again(three) -> None:
    _, client = three
    arrays = client.map(make, range(30))
    sums = client.map(np.sum, arrays)
    wait(arrays + sums, timeout=180)
    del sums
    victim = max(client.has_what().items(), key=lambda item: len(item[1]))[0]
    kill(client, victim)
    assert client.submit(lambda xs: [int(x[0]) for x in xs], arrays).result(timeout=180) == list(range(30))
    assert [int(x[0]) for x in client.gather(arrays)] == list(range(30))


def test_a_worker_born_again_is_forked_with_what_the_dead_one_had_imported(three) -> None:
    _, client = three

    def has_numpy() -> bool:
        return "numpy" in sys.modules

    assert not any(client.run(has_numpy).values())
    victim, name = next((address, info["name"]) for address, info in client.scheduler_info()["workers"].items())
    client.submit(make, 1, workers=[victim], pure=False).result(timeout=180)
    kill(client, victim)

    def successor() -> list[str]:
        return [a for a, w in client.scheduler_info()["workers"].items() if w["name"] == name and a != victim]

    new = eventually(successor)
    assert client.run(has_numpy, workers=new) == {new[0]: True}


def test_what_is_scattered_goes_elsewhere_when_its_worker_dies_meanwhile(three, monkeypatch) -> None:
    _, client = three
    pids = {address: info["pid"] for address, info in client.scheduler_info()["workers"].items()}
    ask, killed = client._ask_worker, []

    async def kill_and_ask(address, *question):
        if not killed:
            killed.append(address)
            os.kill(pids[address], signal.SIGKILL)
        return await ask(address, *question)

    monkeypatch.setattr(client, "_ask_worker", kill_and_ask)
    scattered = client.scatter([np.full(100_000, i) for i in range(6)])
    assert killed
    assert [int(x[0]) for x in client.gather(scattered)] == list(range(6))


def test_a_task_that_was_running_on_a_killed_worker_runs_again(three) -> None:
    _, client = three
    flag = client.submit(os.getpid, pure=False).result(timeout=180)  # a warm-up

    def slow(x, flag):
        time.sleep(0.5)
        return x

    future = client.submit(slow, 5, flag)
    while not (busy := [address for address, keys in client.processing().items() if keys]):
        time.sleep(0.01)
    kill(client, busy[0])
    assert future.result(timeout=180) == 5


def test_retiring_moves_data_and_loses_none(three) -> None:
    _, client = three
    arrays = client.map(make, range(12))
    scattered = client.scatter([np.full(100_000, i) for i in range(6)])
    small = client.scatter({"a": 1, "b": 2})
    wait(arrays, timeout=180)
    computed = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.state.totals.computed)
    victims = list(client.has_what())[:2]
    assert sorted(client.retire_workers(victims)) == sorted(victims)
    assert [int(x[0]) for x in client.gather(arrays)] == list(range(12))
    assert [int(x[0]) for x in client.gather(scattered)] == list(range(6))
    assert client.gather(small) == {"a": 1, "b": 2}
    assert not set(client.has_what()) & set(victims)
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.state.totals.computed) == computed


def test_a_worker_that_is_told_to_stop_hands_its_data_over(three) -> None:
    _, client = three
    scattered = client.scatter([np.full(100_000, i) for i in range(9)])
    victim, keys = max(client.has_what().items(), key=lambda item: len(item[1]))
    assert keys
    os.kill(client.scheduler_info()["workers"][victim]["pid"], signal.SIGTERM)
    while victim in client.has_what():
        time.sleep(0.01)
    assert [int(x[0]) for x in client.gather(scattered)] == list(range(9))


def test_data_that_nothing_can_compute_again_is_said_to_be_lost(three) -> None:
    _, client = three
    [future] = client.scatter([np.zeros(100_000)])
    [[victim]] = client.who_has([future]).values()
    dependent = client.submit(np.sum, future, workers=next(w for w in client.has_what() if w != victim))
    dependent.result(timeout=180)
    del dependent
    for holder in next(iter(client.who_has([future]).values())):
        kill(client, holder)
    with pytest.raises(BaseException, match=r"was on workers that are gone, and no task produces it"):
        client.submit(lambda x: x.shape, future).result(timeout=180)


def test_small_results_survive_their_worker_without_being_computed_again(three) -> None:
    _, client = three
    numbers, lists = client.map(lambda x: x + 1, range(100)), client.map(lambda x: [x], range(100))
    wait(numbers + lists, timeout=180)
    for address in list(client.has_what())[:2]:
        kill(client, address)
    assert client.submit(sum, numbers).result(timeout=180) == sum(range(1, 101))
    assert client.submit(lambda lists: sum(map(sum, lists)), lists).result(timeout=180) == sum(range(100))
    done = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.state.totals.computed)
    assert done == 202
