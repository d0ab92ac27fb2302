"""Shuffles by p2p on real workers: what pandas and numpy give, whatever happens meanwhile."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from daskfleet import Client, LocalCluster
from daskfleet.worker import pieces, shelf
from pandas.testing import assert_frame_equal

from tests.eventual import eventually

ROWS = 5000


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalCluster]:
    """Three workers in this process, without importing pandas anew; processes come last."""
    with LocalCluster(3, threads_per_worker=1, dashboard_address=None, processes=False) as cluster:
        yield cluster


@pytest.fixture(params=["same files", "through the network"])
def near_and_far(shared: LocalCluster, request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(pieces, "SAME_FILES", request.param == "same files")
    monkeypatch.setattr(shelf, "PORTION", 10_000)  # so that answers come in several
    with Client(shared) as client:
        yield client


@pytest.fixture
def client(shared: LocalCluster) -> Iterator[Client]:
    with Client(shared) as client:
        yield client


def table(rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "key": rng.integers(0, 700, rows),
            "value": rng.permutation(rows),
            "text": pd.array([f"t{n}" for n in rng.integers(0, 100, rows)], dtype="string[pyarrow]"),
            "thing": pd.Categorical([str(n) for n in rng.integers(0, 5, rows)]),
        }
    )


def folders(client: Client) -> list[Path]:
    return [Path(info["local_directory"]) for info in client.scheduler_info()["workers"].values()]


def files(client: Client) -> list[Path]:
    return [path for folder in folders(client) for path in folder.glob("*.pieces")]


def wait_until_no_files(client: Client) -> None:
    eventually(lambda: not files(client), timeout=90, seen=lambda: f"left: {files(client)}")


def sort(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(list(frame.columns), ignore_index=True)


def test_p2p_is_what_dask_uses(client: Client) -> None:
    frame = dd.from_pandas(table(), npartitions=4)
    assert any("shuffle-barrier" in str(key) for key in frame.shuffle("key").optimize().dask)
    x = da.zeros((400, 400), chunks=(1, 400))
    assert x.rechunk((400, 1)).name.startswith("rechunk-p2p")
    assert x.rechunk((200, 400)).name.startswith("rechunk-merge"), "tasks do when few chunks meet"
    with dask.config.set({"dataframe.shuffle.method": "tasks"}):
        assert not any("shuffle-barrier" in str(key) for key in frame.shuffle("key").optimize().dask)


def test_shuffle(near_and_far: Client) -> None:
    frame = table()
    parts = dd.from_pandas(frame, npartitions=17).shuffle("key", npartitions=23)
    found = near_and_far.gather(near_and_far.compute(parts.to_delayed()))
    assert_frame_equal(pd.concat(found).sort_index(), frame)
    keys = [set(part.key) for part in found]
    assert sum(map(len, keys)) == frame.key.nunique(), "a key is in more than one partition"
    assert_frame_equal(parts.partitions[[3, 20]].compute(), pd.concat([found[3], found[20]]))
    wait_until_no_files(near_and_far)


def test_other_ways_to_shuffle(client: Client) -> None:
    frame = table()
    frame[5] = frame.value * 2
    parts = dd.from_pandas(frame, npartitions=6)
    assert_frame_equal(parts.shuffle(on_index=True).compute().sort_index(), frame)
    assert_frame_equal(
        parts.shuffle("text", ignore_index=True).compute().sort_values("value", ignore_index=True),
        frame.sort_values("value", ignore_index=True),
    )
    assert_frame_equal(
        parts[["key", "text"]].shuffle("key", shuffle_method="p2p").compute().sort_index(), frame[["key", "text"]]
    )
    grouped = parts.groupby("key").value.apply(lambda s: s.max() - s.min(), meta=("value", "i8")).compute()
    pd.testing.assert_series_equal(grouped.sort_index(), frame.groupby("key").value.agg(lambda s: s.max() - s.min()))
    assert parts.key.nunique().compute() == frame.key.nunique()


def test_set_index_and_sort_values(near_and_far: Client) -> None:
    frame = table()
    parts = dd.from_pandas(frame, npartitions=16)
    found = parts.set_index("value")
    assert found.known_divisions
    assert_frame_equal(found.compute(), frame.set_index("value").sort_index())
    assert_frame_equal(
        parts.sort_values("value", ascending=False).compute(), frame.sort_values("value", ascending=False)
    )
    assert_frame_equal(
        parts.set_index("text").compute().reset_index().pipe(sort), frame[["text", "key", "value", "thing"]].pipe(sort)
    )


def test_divisions_that_do_not_cover_the_data(client: Client) -> None:
    def parts(method: str) -> Any:
        parts = dd.from_pandas(table(1000), npartitions=5)
        return client.gather(
            client.compute(parts.set_index("value", divisions=[100, 300, 700], shuffle_method=method).to_delayed())
        )

    for found, expected in zip(parts("p2p"), parts("tasks"), strict=True):
        assert_frame_equal(found, expected)


@pytest.mark.parametrize("how", ["inner", "left", "right", "outer", "leftsemi"])
def test_merge(client: Client, how: str) -> None:
    left, right = table(800), table(300, seed=1)[["key", "value"]].astype({"key": "f8"})
    one, other = dd.from_pandas(left, npartitions=9), dd.from_pandas(right, npartitions=5)
    with pytest.warns(UserWarning, match="data type mismatches"):
        found = one.merge(other, on="key", how=how, suffixes=("", "_right"))
    if how == "leftsemi":
        expected = left[left.key.isin(right.key)]
        assert_frame_equal(
            sort(found.compute()[list(left.columns)].drop_duplicates()), sort(expected), check_dtype=False
        )
        return
    expected = left.merge(right, on="key", how=how, suffixes=("", "_right"))
    assert_frame_equal(sort(found.compute()), sort(expected), check_dtype=False)


def test_merge_by_index(client: Client) -> None:
    left, right = table(500).set_index("value"), table(500, seed=1)[["key", "text"]]
    one, other = dd.from_pandas(left, npartitions=4), dd.from_pandas(right, npartitions=3).clear_divisions()
    found = one.clear_divisions().merge(other, left_index=True, right_on="key", how="outer", suffixes=("", "_r"))
    expected = left.merge(right, left_index=True, right_on="key", how="outer", suffixes=("", "_r"))
    assert_frame_equal(sort(found.compute()), sort(expected))


@pytest.mark.parametrize(
    ("shape", "old", "new"),
    [
        ((120, 120), (7, 120), (120, 7)),
        ((40, 60, 30), (10, 60, 7), (40, 5, 30)),
        ((100,), (3,), (7,)),
        ((64, 64), (8, 64), (64, 64)),
        ((60, 60), ((10, 20, 30), (60,)), ((30, 30), (15, 45))),
    ],
)
def test_rechunk(near_and_far: Client, shape: Any, old: Any, new: Any) -> None:
    array = np.random.default_rng(0).random(shape)
    x = da.from_array(array, chunks=old)
    y = x.rechunk(new, method="p2p")
    assert y.chunks == x.rechunk(new, method="tasks").chunks
    np.testing.assert_array_equal(y.compute(), array)
    np.testing.assert_array_equal((y[:20] * 2).sum(axis=0).compute(), (array[:20] * 2).sum(axis=0))
    wait_until_no_files(near_and_far)


def test_rechunk_of_what_only_tasks_can(client: Client) -> None:
    x = da.from_array(np.arange(100), chunks=10)
    unknown = x[x % 3 == 0].reshape(-1)
    assert unknown[:, None].rechunk({1: 1}, method="p2p").compute().ravel().tolist() == list(range(0, 100, 3))
    objects = da.from_array(np.array([[i] for i in range(20)], dtype=object), chunks=(5, 1))
    assert objects.rechunk((7, 1), method="p2p").compute().ravel().tolist() == list(range(20))


def test_dasks_own_schedulers(client: Client) -> None:
    frame = table()
    shuffled = dd.from_pandas(frame, npartitions=4).shuffle("key")
    for scheduler in ("synchronous", "threads"):
        assert_frame_equal(shuffled.compute(scheduler=scheduler).sort_index(), frame)


def test_several_at_a_time_and_one_twice(client: Client) -> None:
    frame = table()
    parts = dd.from_pandas(frame, npartitions=8)
    futures = [client.compute(parts.shuffle(on)) for on in ("key", "text", "key")]
    while not all(future.done() for future in futures):
        client.rebalance()  # does not move what is worth something on one worker only
    for future in futures:
        assert_frame_equal(future.result(timeout=180).sort_index(), frame)
    assert_frame_equal(parts.shuffle("key").compute().sort_index(), frame)
    wait_until_no_files(client)


def test_a_cancelled_shuffle_leaves_no_files(client: Client) -> None:
    def slow(n: int) -> pd.DataFrame:
        time.sleep(0.02 * n)
        return table(seed=n)

    future = client.compute(dd.from_map(slow, range(12), meta=table(1)).shuffle("key"))
    eventually(lambda: files(client))
    future.cancel()
    wait_until_no_files(client)


def test_a_full_disk_is_named(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match=r"no room left in .*--local-directory"):
        dd.from_pandas(table(), npartitions=4).shuffle("key").compute()
    wait_until_no_files(client)


def test_columns_that_differ_between_partitions_are_refused(client: Client) -> None:
    frames = dd.from_map(lambda n: table(10).rename(columns={"value": f"value{n}"}), range(3), meta=table(1))
    with pytest.raises(ValueError, match="different columns"):
        frames.shuffle("key").compute()


# Workers that die ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    # A place of their own: any other worker that starts beside them may remove a killed one's folder before the worker
    # in its place has taken it over.
    place = str(tmp_path_factory.mktemp("workers"))
    with LocalCluster(
        3, threads_per_worker=1, dashboard_address=None, preload_nanny=["dask.dataframe"], local_directory=place
    ) as cluster:
        yield cluster


def part(n: int, pause: float = 0.0) -> pd.DataFrame:
    time.sleep(pause)
    return table(1000, seed=n)


def shuffled(npartitions: int, make: Any = part, **kwargs: Any) -> Any:
    return dd.from_map(make, range(npartitions), meta=table(1), **kwargs).shuffle("key")


def check(future: Any, npartitions: int) -> None:
    whole = pd.concat([part(n) for n in range(npartitions)])
    assert_frame_equal(sort(future.result(timeout=300)), sort(whole))


@pytest.mark.parametrize("when", ["while files are written", "while they are read"])
def test_a_worker_killed_meanwhile(processes: LocalCluster, when: str, tmp_path: Path) -> None:
    reading = when == "while they are read"

    def look(frame: pd.DataFrame) -> pd.DataFrame:
        Path(tmp_path, f"{len(os.listdir(tmp_path))}-{os.getpid()}").touch()
        time.sleep(0.1 * reading)
        return frame

    with Client(processes) as client:
        client.wait_for_workers(3, timeout=180)
        looked = shuffled(24, pause=0.05 * (not reading)).map_partitions(look, meta=table(1))
        future = client.compute(looked)
        eventually(lambda: len(os.listdir(tmp_path) if reading else files(client)) > 4)
        folder, pid = next(
            (Path(info["local_directory"]), info["pid"]) for info in client.scheduler_info()["workers"].values()
        )
        os.kill(pid, signal.SIGKILL)
        check(future, 24)
        del future
        client.wait_for_workers(3, timeout=180)
        assert folder in folders(client), "the worker in its place goes on with its files"
        wait_until_no_files(client)


def test_the_worker_in_a_killed_ones_place_goes_on_with_its_files(processes: LocalCluster, tmp_path: Path) -> None:
    with Client(processes) as client:
        client.wait_for_workers(3, timeout=180)
        places = folders(client)

        def held(n: int) -> pd.DataFrame:
            """Nothing more is begun from the first file on, until the killed worker is replaced."""
            Path(tmp_path, f"{n}-{time.time_ns()}").touch()
            time.sleep(0.05)
            if any(list(place.glob("*.pieces")) for place in places):
                Path(tmp_path, f"held-{os.getpid()}").touch()
                while not Path(tmp_path, "go").exists():
                    time.sleep(0.01)
            return table(1000, seed=n)

        def stored(folder: str) -> list[int]:
            """The numbers of the partitions whose pieces are there."""
            numbers = []
            for path in Path(folder).glob("*.pieces"):
                with path.open("rb") as file:
                    _, _, (_, number) = pickle.loads(pieces._read_end(file.fileno())[1])
                    numbers.append(number)
            return numbers

        future = client.compute(shuffled(36, held))
        eventually(lambda: len(list(tmp_path.glob("held-*"))) == 3, seen=lambda: (os.listdir(tmp_path), files(client)))
        workers = client.scheduler_info()["workers"]
        address = max(workers, key=lambda address: len(stored(workers[address]["local_directory"])))
        left = stored(workers[address]["local_directory"])
        os.kill(workers[address]["pid"], signal.SIGKILL)
        eventually(lambda: address not in client.nthreads() and len(client.nthreads()) == 3)
        Path(tmp_path, "go").touch()
        check(future, 36)
        assert left and all(len(list(tmp_path.glob(f"{number}-*"))) == 1 for number in left)


def test_files_that_vanish_are_made_again(processes: LocalCluster) -> None:
    with Client(processes) as client:
        client.wait_for_workers(3, timeout=180)
        future = client.compute(shuffled(12, pause=0.03))
        eventually(lambda: len(files(client)) >= 6)
        for path in files(client):
            path.unlink(missing_ok=True)
        check(future, 12)


def test_a_worker_that_retires_meanwhile(processes: LocalCluster) -> None:
    with Client(processes) as client:
        client.wait_for_workers(3, timeout=180)
        future = client.compute(shuffled(20, pause=0.03))
        eventually(lambda: len(files(client)) >= 5)
        client.retire_workers([next(iter(client.scheduler_info()["workers"]))])
        check(future, 20)


def test_more_than_all_workers_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is spilled here, so that a worker that gathered what it has not been asked for would be killed."""
    for name in ("TARGET", "SPILL", "PAUSE"):
        monkeypatch.setenv(f"DASK_DISTRIBUTED__WORKER__MEMORY__{name}", "False")
    options = {"threads_per_worker": 1, "memory_limit": "250 MB", "dashboard_address": None}
    with LocalCluster(2, **options) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=90)
        before = client.run(os.getpid)
        x = da.ones((24_000, 24_000), chunks=(800, 24_000), dtype="u1")  # 576 MB
        assert int(x.rechunk((24_000, 800), method="p2p").sum(dtype="i8").compute()) == 24_000**2
        assert client.run(os.getpid) == before
