"""Importing later: modules that are imported when they are first used, and hooks for when somebody else does it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def when_imported(name: str, function: Callable[[], Any]) -> None:
    """Call `function` right after the module `name` is imported; now, if it is already."""
    if name in sys.modules:
        function()
        return
    if _watch not in sys.meta_path:
        sys.meta_path.insert(0, _watch)
    _waiting.setdefault(name, []).append(function)


_waiting: dict[str, list[Callable[[], Any]]] = {}


class _Watch:
    """It stays where it is: other threads may be going through the list of finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        functions = _waiting.pop(fullname, None)
        if functions is None:
            return None
        # Not by `importlib.util.find_spec`, which waits for the package: Python holds a lock here that whoever is
        # importing that may need.
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, functions)  # type: ignore[assignment]
        return spec


_watch = _Watch()


def _let_go_of_frames() -> None:
    """dask keeps an ImportError of what it could do without: its traceback has the frames of whoever imported dask
    first, and in these are all their variables. A task that did would never let go of what it had worked with."""
    error = vars(sys.modules["dask.widgets"]).get("exception")
    if isinstance(error, BaseException):
        error.with_traceback(None)


when_imported("dask.widgets", _let_go_of_frames)


class _Loader:
    def __init__(self, loader: Any, functions: list[Callable[[], Any]]) -> None:
        self._loader, self._functions = loader, functions

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # what looks for data files asks it
        self._loader.exec_module(module)
        for function in self._functions:
            function()


class Lazy(ModuleType):
    """Stands for a module until a name of it is asked for; what was asked for once costs no more than a plain
    attribute.

    dask takes a tenth of a second to import. A program that only wants to say ``from daskfleet import Client`` does not
    need it yet.

    The package comes first, whole. A thread that asks for a part of it holds that part's lock while it waits for the
    package, and another that imports the package may want just that part: Python then lets one of the two fail.
    """

    def __getattr__(self, name: str) -> Any:
        if self.__name__ not in sys.modules:
            with contextlib.suppress(Exception):  # what fails does so again below, unless the part does without it
                importlib.import_module(self.__name__.partition(".")[0])
        value = vars(self)[name] = getattr(importlib.import_module(self.__name__), name)
        return value
