"""dask's rechunking of arrays by ``"p2p"``.

Along each axis old and new chunks have some boundaries in common. What lies between two of these, on every axis, is
rechunked by itself, with a barrier of its own: so rechunking along some axes only flows through instead of waiting for
the whole array to be on disk.
"""

from __future__ import annotations

import importlib
import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import dask.array
import numpy as np
from dask import config
from dask._task_spec import Alias, Task, TaskRef
from dask.highlevelgraph import HighLevelGraph
from dask.tokenize import tokenize

from daskfleet.protocol.frames import Buffer
from daskfleet.shuffle.graph import Barrier, Split, barrier, read
from daskfleet.worker import pieces
from daskfleet.worker.pieces import Card, Pieces

#: The module; dask.array has a function of that name.
dask_rechunk: Any = importlib.import_module("dask.array.rechunk")

#: Of a chunk along one axis: number of a chunk of the other side that overlaps it, and where in the one and the other.
Overlap = tuple[int, slice, slice]
Sizes = tuple[int, ...]


def rechunk(x: Any, chunks: Any, *, threshold: Any = None, block_size_limit: Any = None, balance: bool = False) -> Any:
    """What `dask.array.rechunk` does with ``method="p2p"``.

    Chunks of unknown size and arrays of anything but numpy's plain types are left to ``"tasks"``.
    """
    sizes = [size for axis in (*x.chunks, *chunks) for size in axis]
    if type(x._meta) is not np.ndarray or x.dtype.hasobject or any(math.isnan(size) for size in sizes) or 0 in x.shape:
        return dask_rechunk.rechunk(
            x, chunks, threshold=threshold, block_size_limit=block_size_limit, balance=balance, method="tasks"
        )
    token = tokenize(x, chunks)
    name = f"rechunk-p2p-{token}"
    graph: dict[Any, Any] = {}
    axes = [_sections(old, new) for old, new in zip(x.chunks, chunks, strict=True)]
    for number, section in enumerate(itertools.product(*axes)):
        graph.update(_section(x, name, f"{token}-{number}", section))
    return dask.array.Array(
        HighLevelGraph.from_collections(name, graph, dependencies=[x]), name, chunks, meta=x._meta, dtype=x.dtype
    )


def _sections(old: Sizes, new: Sizes) -> list[tuple[range, range, Sizes, Sizes]]:
    """Of one axis: the old and new chunks between boundaries that both have, as their numbers and their sizes."""
    ends, new_ends = list(itertools.accumulate(old)), list(itertools.accumulate(new))
    sections, first, new_first = [], 0, 0
    for end in sorted(set(ends) & set(new_ends)):
        last, new_last = bisect_right(ends, end), bisect_right(new_ends, end)
        sections.append((range(first, last), range(new_first, new_last), old[first:last], new[new_first:new_last]))
        first, new_first = last, new_last
    return sections


def _section(x: Any, name: str, token: str, section: Sequence[tuple[range, range, Sizes, Sizes]]) -> dict[Any, Any]:
    """The tasks of one section."""
    inputs = list(itertools.product(*(numbers for numbers, _, _, _ in section)))
    outputs = list(itertools.product(*(numbers for _, numbers, _, _ in section)))
    old, new = [sizes for _, _, sizes, _ in section], [sizes for _, _, _, sizes in section]
    if len(inputs) == len(outputs) == 1:
        return {(name, *outputs[0]): Alias((name, *outputs[0]), (x.name, *inputs[0]))}
    graph: dict[Any, Any] = {}
    split = partial(split_block, old=old, new=new)
    for number, block in enumerate(inputs):
        key = (f"rechunk-split-{token}", number)
        graph[key] = Split(key, split, TaskRef((x.name, *block)), number)
    done = [task.ref() for task in graph.values()]
    listed = f"rechunk-barrier-{token}"
    graph[listed] = Barrier(listed, barrier, (old, new, x.dtype), *done)
    for number, block in enumerate(outputs):
        graph[name, *block] = Task((name, *block), join_block, TaskRef(listed), number)
    return graph


# What the tasks run -------------------------------------------------------------------------------------------------


def split_block(block: Any, number: int, *, old: Sequence[Sizes], new: Sequence[Sizes]) -> Pieces:
    """Cut an old chunk by the new ones."""
    return pieces.write(_cut(np.asarray(block), number, old, new))


def _cut(block: Any, number: int, old: Sequence[Sizes], new: Sequence[Sizes]) -> Iterator[tuple[int, Sequence[Buffer]]]:
    shape = tuple(map(len, new))
    for parts in itertools.product(*_overlaps(number, old, new)):
        piece = np.ascontiguousarray(block[tuple(here for _, here, _ in parts)])
        position = tuple(other for other, _, _ in parts)
        yield _ravel(position, shape), [piece.reshape(-1).view(np.uint8).data]


def join_block(listed: Pieces | Card, number: int) -> Any:
    """Put a new chunk together."""
    old, new, dtype = read(listed, number, ())[1]
    parts = [tuple(part) for part in itertools.product(*_overlaps(number, new, old))]
    shape = tuple(map(len, old))
    found, _ = read(listed, number, [_ravel(tuple(other for other, _, _ in part), shape) for part in parts])
    block = np.empty(
        [sizes[at] for sizes, at in zip(new, np.unravel_index(number, tuple(map(len, new))), strict=True)], dtype
    )
    for part, piece in zip(parts, found, strict=True):
        place = tuple(here for _, here, _ in part)
        block[place] = np.frombuffer(piece, dtype).reshape(block[place].shape)
    return block


def _ravel(position: tuple[int, ...], shape: tuple[int, ...]) -> int:
    return int(np.ravel_multi_index(position, shape)) if shape else 0


def _overlaps(number: int, ours: Sequence[Sizes], others: Sequence[Sizes]) -> list[list[Overlap]]:
    """For each axis, which chunks of `others` overlap chunk `number` of `ours`."""
    position = np.unravel_index(number, tuple(map(len, ours))) if ours else ()
    return [_overlaps_1d(int(at), one, two) for at, one, two in zip(position, ours, others, strict=True)]


def _overlaps_1d(at: int, ours: Sizes, others: Sizes) -> list[Overlap]:
    start = sum(ours[:at])
    stop, overlaps = start + ours[at], []
    begin = 0
    for other, size in enumerate(others):
        low, high = max(start, begin), min(stop, begin + size)
        if low < high:
            overlaps.append((other, slice(low - start, high - start), slice(low - begin, high - begin)))
        begin += size
    return overlaps


# ---------------------------------------------------------------------------------------------------------------------


def install(ours: Any) -> None:
    """Have dask choose between ``"tasks"`` and ``"p2p"`` whenever ``ours()``, by the rule that it has for distributed:
    p2p when there would be many tasks for each chunk."""
    theirs = dask_rechunk._choose_rechunk_method

    def choose(old_chunks: Any, new_chunks: Any, threshold: Any = None) -> str:
        if config.get("array.rechunk.method", None) or not ours():
            return str(theirs(old_chunks, new_chunks, threshold))
        overlaps = dask_rechunk.old_to_new(old_chunks, new_chunks)
        size = math.prod(sum(len(parts) for parts in axis) for axis in overlaps)
        limit = dask_rechunk._graph_size_threshold(
            old_chunks, new_chunks, threshold or config.get("array.rechunk.threshold")
        )
        return "tasks" if size < limit else "p2p"

    dask_rechunk._choose_rechunk_method = choose
