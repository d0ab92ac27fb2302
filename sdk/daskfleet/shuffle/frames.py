"""pandas dataframes in pieces, and whole again, with their very types.

A column of plain numbers is its bytes. What Arrow knows (strings, nullable integers, time zones …) is an Arrow batch,
and the rest (objects, categories …) is pickled. So nothing has to be converted that was not converted before, which is
what distributed's shuffle does to columns of objects; and whole frames are put together column by column in one copy.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from daskfleet.protocol.frames import Buffer

#: Of a piece: bytes of its `Layout`'s pickle, rows, bytes of its Arrow batch, bytes of its pickle.
_HEAD = struct.Struct("<4Q")
NUMBERS, ARROW, OBJECTS = 0, 1, 2
#: What pandas wraps an array of numpy in.
_PLAIN = pd.arrays.NumpyExtensionArray


class Layout(NamedTuple):
    """How a frame is stored: the same for all pieces of one frame.

    Attributes
    ----------
    columns
        Labels; any hashables, also several of one name.
    levels
        Names of the index' levels, or None where the index does not matter.
    kinds, dtypes
        Of the columns, followed by the index' levels.
    schema
        Of the Arrow batch.
    """

    columns: Any
    levels: tuple[Any, ...] | None
    kinds: tuple[int, ...]
    dtypes: tuple[Any, ...]
    schema: Any

    def numbers(self) -> list[int]:
        """Positions of the columns of numbers as they are stored: by size, so that each is aligned."""
        at = [i for i, kind in enumerate(self.kinds) if kind == NUMBERS]
        return sorted(at, key=lambda i: -self.dtypes[i].itemsize)

    def others(self, kind: int) -> list[int]:
        return [i for i, other in enumerate(self.kinds) if other == kind]


def split(frame: Any, numbers: Any, ignore_index: bool) -> Iterator[tuple[int, Sequence[Buffer]]]:
    """The rows of `frame` by their `numbers`, as `daskfleet.worker.pieces.write` takes them; the order stays.

    Parameters
    ----------
    numbers
        For each row the number of its piece, from 0.
    """
    numbers = np.asarray(numbers)
    if not len(frame):
        return
    if numbers.max() < 1 << 16:
        numbers = numbers.astype(np.uint16)  # numpy sorts these by counting
    order = np.argsort(numbers, kind="stable")
    counts = np.bincount(numbers)
    ends = np.cumsum(counts)
    layout, columns = _take(frame, order, ignore_index)
    head = pickle.dumps(layout, 5)
    views = [(columns[i].view(np.uint8).data, layout.dtypes[i].itemsize) for i in layout.numbers()]
    batch = _batch(layout, columns)
    objects = _objects(layout, columns)
    for number in np.flatnonzero(counts).tolist():
        stop = int(ends[number])
        start = stop - int(counts[number])
        arrow = batch.slice(start, stop - start).serialize() if batch is not None else b""
        pickled = pickle.dumps(objects.iloc[start:stop], 5) if objects is not None else b""
        sizes = _HEAD.pack(len(head), stop - start, len(arrow), len(pickled))
        parts: list[Any] = [sizes, *(view[start * size : stop * size] for view, size in views)]
        yield number, [*parts, arrow, pickled, head]


def _take(frame: Any, order: Any, ignore_index: bool) -> tuple[Layout, list[Any]]:
    """The columns and the index' levels in that order: arrays of numpy, of Arrow, or pandas'."""
    index = frame.index
    levels = (
        []
        if ignore_index
        else [index.get_level_values(i).array for i in range(index.nlevels)]
        if index.nlevels > 1
        else [index.array]
    )
    arrays = [*(frame.iloc[:, i].array for i in range(frame.shape[1])), *levels]
    kinds, dtypes, columns = [], [], []
    for array in arrays:
        kind, dtype, values = _store(array, order)
        kinds.append(kind)
        dtypes.append(dtype)
        columns.append(values)
    fields = [pa.field(str(i), columns[i].type) for i, kind in enumerate(kinds) if kind == ARROW]
    names = None if ignore_index else tuple(index.names)
    return Layout(frame.columns, names, tuple(kinds), tuple(dtypes), pa.schema(fields)), columns


def _store(array: Any, order: Any) -> tuple[int, Any, Any]:
    dtype = array.dtype.numpy_dtype if type(array) is _PLAIN else array.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "biufcmM":
        return NUMBERS, dtype, np.take(array.to_numpy(), order)
    taken = array.take(order)
    if hasattr(dtype, "__from_arrow__"):
        try:
            stored = pa.array(taken)
            if isinstance(stored, pa.ChunkedArray):
                stored = stored.combine_chunks()
            if isinstance(stored, pa.Array) and not isinstance(stored, pa.ExtensionArray):
                return ARROW, dtype, stored
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, ValueError):
            pass
    return OBJECTS, dtype, taken


def _batch(layout: Layout, columns: Sequence[Any]) -> Any:
    at = layout.others(ARROW)
    return pa.record_batch([columns[i] for i in at], schema=layout.schema) if at else None


def _objects(layout: Layout, columns: Sequence[Any]) -> Any:
    at = layout.others(OBJECTS)
    return pd.DataFrame(dict(enumerate(columns[i] for i in at)), copy=False) if at else None


# ---------------------------------------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    layout: Layout
    rows: int
    numbers: dict[int, Any]
    arrow: dict[int, Any]
    objects: Any

    def column(self, i: int) -> Any:
        """As a pandas array."""
        kind = self.layout.kinds[i]
        if kind == NUMBERS:
            return self.numbers[i]
        if kind == ARROW:
            return self.layout.dtypes[i].__from_arrow__(self.arrow[i])
        return self.objects.iloc[:, self.layout.others(OBJECTS).index(i)].array


@lru_cache(64)
def _layout(pickled: bytes) -> tuple[Layout, list[int]]:
    layout: Layout = pickle.loads(pickled)
    return layout, layout.numbers()


def _parse(piece: Buffer) -> _Piece:
    view = memoryview(piece)
    head, rows, arrow_size, pickle_size = _HEAD.unpack_from(view)
    layout, order = _layout(bytes(view[len(view) - head :]))
    at, numbers = _HEAD.size, {}
    for i in order:
        numbers[i] = np.frombuffer(view, layout.dtypes[i], rows, at)
        at += rows * layout.dtypes[i].itemsize
    arrow: dict[int, Any] = {}
    if arrow_size:
        batch = pa.ipc.read_record_batch(pa.py_buffer(view[at : at + arrow_size]), layout.schema)
        arrow = dict(zip(layout.others(ARROW), batch.columns, strict=True))
    at += arrow_size
    objects = pickle.loads(view[at : at + pickle_size]) if pickle_size else None
    return _Piece(layout, rows, numbers, arrow, objects)


def join(pieces: Sequence[Buffer], meta: Any) -> Any:
    """One frame of all rows, in the order of the pieces; a copy of `meta` when there are none."""
    if not pieces:
        return meta.copy()
    parsed = [_parse(piece) for piece in pieces]
    layout = parsed[0].layout
    if any(other.layout.columns is not layout.columns for other in parsed):
        uneven = [other.layout.columns for other in parsed if not other.layout.columns.equals(layout.columns)]
        if uneven:
            raise ValueError(
                f"the partitions have different columns: {list(layout.columns)}, and {list(uneven[0])} in another one"
            )
    width = len(layout.columns)
    columns = [_column(parsed, i) for i in range(width)]
    frame = pd.DataFrame(dict(enumerate(columns)), index=_index(parsed, width), copy=False)
    frame.columns = layout.columns
    return frame


def _column(parsed: Sequence[_Piece], i: int) -> Any:
    """Column `i` of all pieces as one array."""
    kinds = {piece.layout.kinds[i] for piece in parsed}
    dtypes = {piece.layout.dtypes[i] for piece in parsed}
    if kinds == {NUMBERS} and len(dtypes) == 1:
        return np.concatenate([piece.numbers[i] for piece in parsed])
    if kinds == {ARROW} and len(dtypes) == 1:
        whole = pa.chunked_array([piece.arrow[i] for piece in parsed]).combine_chunks()
        return dtypes.pop().__from_arrow__(whole)
    from dask.dataframe import methods

    return methods.concat([pd.Series(piece.column(i)) for piece in parsed], ignore_index=True).array


def _index(parsed: Sequence[_Piece], width: int) -> Any:
    names = parsed[0].layout.levels
    if names is None:
        return pd.RangeIndex(sum(piece.rows for piece in parsed))
    levels = [_column(parsed, width + i) for i in range(len(names))]
    if len(levels) > 1:
        return pd.MultiIndex.from_arrays(levels, names=names)
    return pd.Index(levels[0], name=names[0], copy=False)
