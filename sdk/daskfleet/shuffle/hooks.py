"""Where dask looks for p2p, for locks and for who waits: wired up when its collections are imported, so that nothing is
imported for it."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from daskfleet.importing import when_imported

_installed = False


def install(ours: Callable[[], bool], lock: Callable[[Any], Any], wait: Callable[..., Any]) -> None:
    """Make ``"p2p"`` mean ours whenever ``ours()``, wait with `wait` then, and wrap dask's `get_scheduler_lock` in
    `lock`, in this process.

    An installed distributed keeps its own for its own clients. Without one, dask still imports two names from its
    modules by themselves; only these are there then, so that ``import distributed`` says what it said before.
    """
    global _installed
    if _installed:
        return
    _installed = True
    when_imported("dask.base", lambda: _await(ours, wait))
    when_imported("dask.dataframe", lambda: _dataframe(ours))
    when_imported("dask.array", lambda: _array(ours))
    for name in ("dask.utils", "dask.array.core", "dask.dataframe.io.hdf"):
        when_imported(name, partial(_wrap_lock, name, lock))
    found = importlib.util.find_spec("distributed")
    if found is not None and type(found.loader).__module__ != "daskfleet.compat":
        when_imported("distributed.shuffle", lambda: _share(ours))
        return
    for name, attributes in (
        ("distributed.shuffle", {"rechunk_p2p": _rechunk}),
        ("distributed.shuffle._arrow", {"check_dtype_support": _supported}),
    ):
        module = sys.modules.setdefault(name, ModuleType(name, __doc__))
        vars(module).update(attributes)


def _wrap_lock(name: str, lock: Callable[[Any], Any]) -> None:
    names = vars(sys.modules[name])
    if not hasattr(names["get_scheduler_lock"], "__wrapped__"):
        names["get_scheduler_lock"] = lock(names["get_scheduler_lock"])


def _await(ours: Callable[[], bool], our_wait: Callable[..., Any]) -> None:
    """``await collection`` and ``dask.base.wait`` ask distributed: the one fails without it, the other does nothing."""
    base: Any = sys.modules["dask.base"]
    awaited, waited = base.DaskMethodsMixin.__await__, base.wait

    async def computed(collection: Any) -> Any:
        waiting = our_wait(collection)
        if inspect.isawaitable(waiting):
            await waiting
        return collection

    def __await__(self: Any) -> Any:
        return computed(self).__await__() if ours() else awaited(self)

    @functools.wraps(waited)
    def wait(x: Any, timeout: Any = None, return_when: str = "ALL_COMPLETED") -> Any:
        return (our_wait if ours() else waited)(x, timeout, return_when)

    base.DaskMethodsMixin.__await__, base.wait = __await__, wait


def _dataframe(ours: Callable[[], bool]) -> None:
    from daskfleet.shuffle import tables

    tables.install(ours)


def _array(ours: Callable[[], bool]) -> None:
    from daskfleet.shuffle import arrays

    arrays.install(ours)


def _share(ours: Callable[[], bool]) -> None:
    shuffle: Any = sys.modules["distributed.shuffle"]
    theirs = shuffle.rechunk_p2p

    def rechunk_p2p(*args: Any, **kwargs: Any) -> Any:
        return (_rechunk if ours() else theirs)(*args, **kwargs)

    shuffle.rechunk_p2p = rechunk_p2p


def _rechunk(*args: Any, **kwargs: Any) -> Any:
    from daskfleet.shuffle.arrays import rechunk

    return rechunk(*args, **kwargs)


def _supported(meta: Any) -> None:
    """Every type is."""
