"""Doing something when a module is imported, for whoever does not want to import it himself."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def when_imported(name: str, function: Callable[[], Any]) -> None:
    """Call `function` right after the top-level module `name` is imported; now, if it is already."""
    if name in sys.modules:
        function()
    else:
        sys.meta_path.insert(0, _Watch(name, function))


class _Watch(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        self._name, self._function = name, function

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._function)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, function: Callable[[], Any]) -> None:
        self._loader, self._function = loader, function

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # what looks for data files asks it
        self._loader.exec_module(module)
        self._function()
