"""Collections computed on a cluster are what dask computes by itself."""

from __future__ import annotations

import time

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from daskfleet import Client, Lock
from pandas.testing import assert_frame_equal


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"key": rng.integers(0, 50, 2000), "other": rng.permutation(2000), "x": rng.random(2000)})


def alone(collection):
    return collection.compute(scheduler="synchronous")


def test_arrays(client: Client) -> None:
    x = da.arange(40_000, chunks=3_000).reshape(200, 200).rechunk((70, 50))
    for expression in (
        x.T.dot(x).sum(axis=0),
        (x + x.T).mean(),
        x[::3, 5:].std(axis=1),
        da.linalg.norm(x.astype(float)),
    ):
        np.testing.assert_allclose(expression.compute(), alone(expression))
    kept = client.persist(x * 2)
    np.testing.assert_array_equal(kept.compute(), alone(x * 2))


def test_bags(client: Client) -> None:
    bag = db.from_sequence(range(1000), npartitions=7)
    assert bag.map(lambda n: n % 7).frequencies().compute() == alone(bag.map(lambda n: n % 7).frequencies())
    assert sorted(bag.groupby(lambda n: n % 5).compute()) == sorted(alone(bag.groupby(lambda n: n % 5)))
    assert client.compute(bag.sum()).result(timeout=180) == 499_500


def test_delayed(client: Client) -> None:
    add = dask.delayed(lambda *numbers: sum(numbers))
    layer = [add(n, 1) for n in range(64)]
    while len(layer) > 1:
        layer = [add(*layer[n : n + 4]) for n in range(0, len(layer), 4)]
    assert layer[0].compute() == alone(layer[0]) == sum(range(64)) + 64
    broken = add(dask.delayed(lambda: 1 / 0)(), 1)
    with pytest.raises(ZeroDivisionError):
        broken.compute()


def test_dataframes(client: Client, frame: pd.DataFrame) -> None:
    left = dd.from_pandas(frame, npartitions=6)
    right = dd.from_pandas(frame.iloc[::2].rename(columns={"x": "y"})[["other", "y"]], npartitions=4)

    grouped = left.groupby("key").agg({"x": "mean", "other": "max"})
    assert_frame_equal(grouped.compute().sort_index(), alone(grouped).sort_index())
    merged = left.merge(right, on="other")
    found = merged.compute().sort_values("other").reset_index(drop=True)
    expected = alone(merged).sort_values("other").reset_index(drop=True)
    assert_frame_equal(found, expected)
    indexed = left.set_index("other")
    assert_frame_equal(indexed.compute(), alone(indexed))
    kept = client.persist(indexed)
    assert_frame_equal(kept.loc[100:200].compute(), alone(indexed.loc[100:200]))
    shuffled = left.shuffle("key").map_partitions(len).compute()
    assert shuffled.sum() == len(frame)


class WholeFile:
    """A file that is written whole, as some formats are: two writers at a time lose what one of them wrote."""

    def __init__(self, path: str, shape: tuple[int, ...]) -> None:
        self.path = path
        np.save(path, np.zeros(shape))

    def __setitem__(self, key, value) -> None:
        whole = np.load(self.path)
        time.sleep(0.005)
        whole[key] = value
        np.save(self.path, whole)


def test_store_locks_across_processes(client: Client, tmp_path) -> None:
    x = client.persist(da.random.random((30, 30), chunks=(5, 10)))
    target = WholeFile(str(tmp_path / "x.npy"), x.shape)
    da.store(x, target, lock=True)
    np.testing.assert_array_equal(np.load(target.path), x.compute())
    assert isinstance(dask.utils.get_scheduler_lock(), Lock)
    assert not isinstance(dask.utils.get_scheduler_lock(scheduler="threads"), Lock)
