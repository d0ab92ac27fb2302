"""Dataframes of every type, in pieces and whole again."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from daskfleet.shuffle.frames import join, split
from pandas.testing import assert_frame_equal

N = 200


def every_type() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "int": rng.integers(0, 100, N),
            "small": rng.random(N).astype("f4"),
            "bool": rng.random(N) > 0.5,
            "complex": np.arange(N) * 1j,
            "time": pd.date_range("2020", periods=N),
            "zone": pd.date_range("2020", periods=N, tz="Europe/Berlin"),
            "delta": pd.to_timedelta(range(N), unit="s"),
            "period": pd.period_range("2000", periods=N, freq="D"),
            "interval": pd.interval_range(0, N),
            "text": pd.array([f"x{i}" if i % 7 else None for i in range(N)], dtype="str"),
            "arrow": pd.array([f"x{i}" for i in range(N)], dtype="string[pyarrow]"),
            "nullable": pd.array([i if i % 3 else None for i in range(N)], dtype="Int64"),
            "category": pd.Categorical([str(i % 5) for i in range(N)]),
            "sparse": pd.arrays.SparseArray([0] * (N - 1) + [3]),
            "object": [(i, str(i)) for i in range(N)],
        }
    )
    frame[7] = range(N)  # a name that is no text
    frame.insert(3, "int", frame["small"], allow_duplicates=True)
    return frame


def pieces(frame: pd.DataFrame, numbers: np.ndarray, ignore_index: bool = False) -> dict[int, bytes]:
    return {number: b"".join(map(bytes, parts)) for number, parts in split(frame, numbers, ignore_index)}


@pytest.mark.parametrize("index", [None, "text", "category", "zone", "nullable", ["object", "time"], "period"])
def test_round_trip(index) -> None:
    frame = every_type() if index is None else every_type().set_index(index)
    numbers = np.random.default_rng(1).integers(0, 5, N) * 2
    found = pieces(frame, numbers)
    assert list(found) == [0, 2, 4, 6, 8]
    for number, piece in found.items():
        assert_frame_equal(join([piece], frame.iloc[:0]), frame[numbers == number])
    whole = join([found[4], found[0]], frame.iloc[:0])
    assert_frame_equal(whole, pd.concat([frame[numbers == 4], frame[numbers == 0]]))
    whole.iloc[0, 0] = whole.iloc[1, 0]  # it can be written to


def test_how_columns_are_stored() -> None:
    [(_, parts)] = split(every_type(), np.zeros(N, int), ignore_index=True)
    layout = pickle.loads(parts[-1])
    names = [[str(layout.columns[i]) for i in at] for at in (layout.numbers(), layout.others(1), layout.others(2))]
    assert names[0] == ["complex", "int", "time", "delta", "7", "small", "int", "bool"]
    assert names[1] == ["zone", "text", "arrow", "nullable"]
    assert names[2] == ["period", "interval", "category", "sparse", "object"]


def test_an_index_of_no_interest_does_not_travel() -> None:
    frame = every_type().set_index("text")
    [piece] = pieces(frame, np.zeros(N, int), ignore_index=True).values()
    assert_frame_equal(join([piece], frame), frame.reset_index(drop=True))


def test_partitions_that_differ_in_types_are_joined_as_pandas_does() -> None:
    one = pd.DataFrame({"x": [1, 2], "c": pd.Categorical(["a", "b"]), "s": pd.array(["u", None], dtype="str")})
    other = pd.DataFrame({"x": [0.5], "c": pd.Categorical(["c"]), "s": pd.Series(["v"], dtype=object)})
    found = [piece for frame in (one, other) for piece in pieces(frame, np.zeros(len(frame), int)).values()]
    whole = join(found, one)
    assert whole.x.tolist() == [1, 2, 0.5]
    assert whole.c.tolist() == ["a", "b", "c"] and isinstance(whole.c.dtype, pd.CategoricalDtype)
    assert whole.s.fillna("-").tolist() == ["u", "-", "v"]


def test_nothing() -> None:
    frame = every_type()
    assert pieces(frame.iloc[:0], np.zeros(0, int)) == {}
    assert_frame_equal(join([], frame.iloc[:0]), frame.iloc[:0])


def test_partitions_with_other_columns_are_refused() -> None:
    found = [piece for name in "ab" for piece in pieces(pd.DataFrame({name: [1]}), np.zeros(1, int)).values()]
    with pytest.raises(ValueError, match=r"\['a'\], and \['b'\]"):
        join(found, pd.DataFrame({"a": [1]}))
