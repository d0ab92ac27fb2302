"""The file that `Client.dump_cluster_state` writes."""

from __future__ import annotations

import gzip
from typing import Any


def write_dump(filename: str, format: str, state: dict[str, Any]) -> str:
    """Write plain data as ``.msgpack.gz`` or ``.yaml``; the file's name."""
    if format == "yaml":
        import yaml

        name = f"{filename}.yaml"
        with open(name, "w") as text:
            yaml.safe_dump(_plain(state), text)
        return name
    import msgpack

    name = f"{filename}.msgpack.gz"
    with gzip.open(name, "wb") as stream:
        msgpack.pack(state, stream, default=str, strict_types=False)
    return name


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
