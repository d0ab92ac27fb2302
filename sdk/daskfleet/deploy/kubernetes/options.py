"""Where `KubeCluster` has its options from: the caller, dask's configuration, a file."""

from __future__ import annotations

import copy
from enum import Enum
from pathlib import Path
from typing import Any

from daskfleet.deploy.kubernetes.errors import InvalidManifest
from daskfleet.deploy.kubernetes.spec import Spec


class CreateMode(Enum):
    """What `KubeCluster` does about a cluster that exists, or does not."""

    CREATE_ONLY = "CREATE_ONLY"
    CREATE_OR_CONNECT = "CREATE_OR_CONNECT"
    CONNECT_ONLY = "CONNECT_ONLY"


def configured(key: str, given: Any, default: Any) -> Any:
    """What the caller gave, else dask's configuration ``kubernetes.{key}``, else the default."""
    if given is not None:
        return given
    import dask

    found = dask.config.get(f"kubernetes.{key}", None)
    return default if found is None else found


def load_spec(spec: Spec | str | Path | None) -> Spec | None:
    if spec is None or isinstance(spec, dict):
        return copy.deepcopy(spec)
    import yaml

    loaded = yaml.safe_load(Path(spec).read_text())
    if not isinstance(loaded, dict) or loaded.get("kind") != "DaskCluster":
        raise InvalidManifest(f"{spec} is not a DaskCluster manifest", 422)
    return loaded
