"""The file that `Client.dump_cluster_state` writes, or the scheduler for it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


def write_dump(filename: str, format: str, state: dict[str, Any], storage_options: dict[str, Any]) -> str:
    """Write plain data as ``.msgpack.gz`` or ``.yaml``, to a path or an fsspec URL; the file's name."""
    name = filename + (".yaml" if format == "yaml" else ".msgpack.gz")
    with _open(name, storage_options) as file:
        if format == "yaml":
            import yaml

            yaml.safe_dump(_plain(state), file, encoding="utf-8")
        else:
            import gzip

            import msgpack

            with gzip.open(file, "wb") as stream:
                msgpack.pack(state, stream, default=str, strict_types=False)
    return name


def _open(name: str, storage_options: dict[str, Any]) -> AbstractContextManager[Any]:
    if "://" not in name:
        return open(name, "wb")
    import fsspec  # type: ignore[import-untyped]

    file: AbstractContextManager[Any] = fsspec.open(name, "wb", **storage_options)
    return file


def without(names: frozenset[str], state: dict[str, Any]) -> dict[str, Any]:
    """Leave out what has such a name, here or in what is said of any part, of each worker too."""

    def less(part: Any, depth: int) -> Any:
        if not isinstance(part, dict) or not depth:
            return part
        return {name: less(value, depth - 1) for name, value in part.items() if name not in names}

    return dict(less(state, 3))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key if isinstance(key, (str, int)) else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
