"""dask's shuffles and merges of dataframes by ``"p2p"``: the layers of their graphs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from dask._task_spec import Task, TaskRef
from dask.dataframe.dask_expr import _collection, _merge, _shuffle
from dask.dataframe.multi import merge_chunk
from dask.dataframe.shuffle import partitioning_index
from dask.tokenize import tokenize

from daskfleet.shuffle import frames
from daskfleet.shuffle.graph import Barrier, Split, barrier, read
from daskfleet.worker import pieces
from daskfleet.worker.pieces import Card, Pieces


def shuffle_layer(expression: Any) -> dict[Any, Task]:
    """Of a `P2PShuffle`: rows go to the partition that one of their columns names."""
    frame, column = expression.frame, expression.partitioning_index
    ignore_index = bool(expression.ignore_index) and _is_plain(frame._meta.index)
    token = tokenize(expression._name)
    graph, done = _splits(
        f"shuffle-split-{token}",
        frame,
        partial(split_by_column, column=column, npartitions=expression.npartitions_out, ignore_index=ignore_index),
    )
    graph[f"shuffle-barrier-{token}"] = Barrier(f"shuffle-barrier-{token}", barrier, expression._meta, *done)
    for i, number in enumerate(expression._partitions):
        key = (expression._name, i)
        graph[key] = Task(key, join, TaskRef(f"shuffle-barrier-{token}"), number)
    return graph


def merge_layer(expression: Any) -> dict[Any, Task]:
    """Of a `HashJoinP2P`: rows of both sides go to the partition that the hash of their keys names."""
    npartitions = expression.operand("_npartitions")
    names = ("how", "left_on", "right_on", "left_index", "right_index", "suffixes", "indicator")
    how = {name: expression.operand(name) for name in names} | {"result_meta": expression._meta}
    token = tokenize(expression._name)
    graph: dict[Any, Task] = {}
    for side in ("left", "right"):
        frame = getattr(expression, side)
        on, by_index = expression.operand(f"shuffle_{side}_on"), expression.operand(f"{side}_index")
        uses_index = how["left_index"] or how["right_index"] or _merge._contains_index_name(frame, how[f"{side}_on"])
        split = partial(
            split_by_hash, on=on, by_index=bool(by_index), npartitions=npartitions, ignore_index=not uses_index
        )
        layer, done = _splits(f"merge-split-{side}-{token}", frame, split)
        info = (frame._meta, how) if side == "left" else frame._meta
        layer[f"merge-barrier-{side}-{token}"] = Barrier(f"merge-barrier-{side}-{token}", barrier, info, *done)
        graph.update(layer)
    for i, number in enumerate(expression._partitions):
        key = (expression._name, i)
        both = TaskRef(f"merge-barrier-left-{token}"), TaskRef(f"merge-barrier-right-{token}")
        graph[key] = Task(key, join_and_merge, *both, number)
    return graph


def _splits(name: str, frame: Any, function: Any) -> tuple[dict[Any, Task], list[TaskRef]]:
    graph: dict[Any, Task] = {}
    for i in range(frame.npartitions):
        graph[name, i] = Split((name, i), function, TaskRef((frame._name, i)))
    return graph, [task.ref() for task in graph.values()]


def _is_plain(index: Any) -> bool:
    return index.nlevels == 1 and index.name is None and pd.api.types.is_integer_dtype(index.dtype)


# What the tasks run -------------------------------------------------------------------------------------------------


def split_by_column(frame: Any, *, column: Any, npartitions: int, ignore_index: bool) -> Pieces:
    """Each row goes where `column` says, which itself does not travel; what is outside of the user's divisions goes
    where dask's ``"tasks"`` put it."""
    numbers = np.mod(frame[column].to_numpy(), npartitions)
    return pieces.write(frames.split(frame.drop(columns=column), numbers, ignore_index))


def split_by_hash(frame: Any, *, on: Any, by_index: bool, npartitions: int, ignore_index: bool) -> Pieces:
    """Each row goes where the hash of its keys says; numbers that are equal go to one place, whatever their types."""
    if by_index:
        keys = frame.index.to_frame(index=False)
    else:
        keys = _merge._select_columns_or_index(frame, on)
        if isinstance(keys, (str, list, tuple)):
            keys = frame[[keys] if isinstance(keys, str) else list(keys)]
    numeric = [name for name, dtype in keys.dtypes.items() if _merge._is_numeric_cast_type(dtype)]
    if numeric:
        keys = keys.astype(dict.fromkeys(numeric, np.float64), errors="ignore")
    return pieces.write(frames.split(frame, partitioning_index(keys, npartitions), ignore_index))


def join(listed: Pieces | Card, number: int) -> Any:
    """One output partition."""
    found, meta = read(listed, number)
    return frames.join(found, meta)


def join_and_merge(left: Pieces | Card, right: Pieces | Card, number: int) -> Any:
    """One partition of a merge."""
    (found, (meta, how)), (others, other_meta) = read(left, number), read(right, number)
    return merge_chunk(frames.join(found, meta), frames.join(others, other_meta), **how)


# ---------------------------------------------------------------------------------------------------------------------


def install(ours: Any) -> None:
    """Have dask build these graphs for ``"p2p"`` whenever ``ours()``."""
    pairs: list[tuple[Any, Any]] = [(_shuffle.P2PShuffle, shuffle_layer), (_merge.HashJoinP2P, merge_layer)]
    for cls, layer in pairs:
        cls._layer = _choose(cls._layer, layer, ours)
    theirs = _collection.get_default_shuffle_method

    # It is asked there only for whether to insist on what distributed's p2p needs: columns with names of type str, say.
    vars(_collection)["get_default_shuffle_method"] = lambda: "tasks" if ours() else theirs()


def _choose(theirs: Any, layer: Any, ours: Any) -> Any:
    def _layer(self: Any) -> Any:
        return layer(self) if ours() else theirs(self)

    return _layer
