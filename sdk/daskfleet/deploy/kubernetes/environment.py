"""The packages that workers have besides their image's: `add_environment`.

A requirements file, a conda environment or this very Python's packages are installed by an init container before a
worker starts, into a virtual environment that is named by the hash of what was asked for. The file travels inside the
pod's specification, so users need no further rights and nothing is left behind; the program that installs it
(`daskfleet.deploy.kubernetes.install`) travels along, so any image with Python and pip will do. A conda environment
travels as JSON, which is YAML too: conda's own programs read it, and so does Python's standard library.

Where it is installed to is a volume. By default it is the pod's own, which every cluster allows and nobody else can
write to. A volume that pods share, `cache`, has it installed once for all of them: a ``hostPath`` once for each node,
a claim that many nodes can mount once for all. Workers see it read-only, so what they compute cannot change what other
pods will run. ``hostPath`` is what the pod security levels ``baseline`` and ``restricted`` forbid, and its folders
belong to root, as whom the init container then runs: so it is for whoever asks for it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from daskfleet import versions

FOLDER = "/opt/daskfleet-environments"
VOLUME = "daskfleet-environments"
# A container's argument or variable holds 128 KiB.
LARGEST = 120_000
# What the image has, or what only makes sense on the machine that it was installed on.
NOT_COPIED = ("daskfleet", "pip", "setuptools", "wheel")

_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^]]*\])?\s*(?:[=<>!~;@\s]|$)")

Spec = dict[str, Any]


@dataclass(frozen=True)
class Environment:
    """What is to be installed.

    Attributes
    ----------
    kind
        ``pip`` for requirements, ``conda`` for an environment file.
    content
        The file's.
    complete
        Whether the requirements name everything, so that nothing is to be resolved.
    """

    kind: str
    content: str
    complete: bool = False

    def key(self, image: str) -> str:
        """What distinguishes it: the hash of the content, and of the image that it adds to."""
        text = "\n".join((self.kind, str(self.complete), image, self.content))
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def packages(self) -> list[str]:
        """The packages that the requirements name."""
        return [match[1] for line in self.content.splitlines() if (match := _NAME.match(line))] if self._is_pip else []

    @property
    def _is_pip(self) -> bool:
        return self.kind == "pip"


def load_environment(environment: str | Path | None) -> Environment | None:
    """What users mean by ``environment=``.

    Parameters
    ----------
    environment
        None or ``image`` for what the image has; ``local`` for the packages of this Python, in its versions; else the
        path of a requirements or lock file (``.txt``) or of a conda environment (``.yml``, ``.yaml``), of which
        ``channels`` and ``dependencies`` count.

    Raises
    ------
    ValueError
        If it is none of these, or too large, or names files that only this machine has.
    OSError
        If the file cannot be read.
    """
    if environment is None or str(environment) == "image":
        return None
    path = Path(environment)
    if str(environment) == "local":
        found = Environment("pip", "\n".join(installed()) + "\n", complete=True)
    elif path.suffix == ".txt":
        found = Environment("pip", "\n".join(_requirements(path)) + "\n")
    elif path.suffix in (".yml", ".yaml"):
        found = Environment("conda", json.dumps(_conda(path)))
    else:
        raise ValueError(
            f"environment={str(environment)!r}: a requirements file (.txt), a conda environment (.yml), 'local' for "
            "this Python's packages or 'image' for the image's are possible"
        )
    if len(_packed(found.content)) > LARGEST:
        raise ValueError(f"environment={str(environment)!r} is too large for a pod: build an image with it instead")
    return found


def installed() -> Iterator[str]:
    """What is installed here, as requirements; without what is there by a path."""
    found = {distribution.name: distribution for distribution in metadata.distributions()}
    for name in sorted(found):
        if name.lower() not in NOT_COPIED and found[name].read_text("direct_url.json") is None:
            yield f"{name}=={found[name].version}"


def _requirements(path: Path) -> Iterator[str]:
    """The lines of a requirements file, and of those that it includes."""
    for line in path.read_text().splitlines():
        text = line.strip()
        include = re.match(r"(?:-r|--requirement)[ =]*(.+)", text)
        if include:
            yield from _requirements(path.parent / include[1])
        elif re.match(r"-e\b|--editable\b|-c\b|--constraint\b|\.{0,2}/|file:", text) or " @ file:" in text:
            raise ValueError(f"{path}: {text!r} is only on this machine, not where workers run")
        elif text and not text.startswith("#"):
            yield text


def _conda(path: Path) -> dict[str, Any]:
    """What a conda environment file describes."""
    import yaml

    try:
        described: Any = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(described, dict) or not isinstance(described.get("dependencies"), list):
        raise ValueError(f"{path} is no conda environment: it has no list of dependencies")
    for entry in described["dependencies"]:
        if not isinstance(entry, str) and not (isinstance(entry, dict) and list(entry) == ["pip"]):
            raise ValueError(f"{path}: {entry!r} is no dependency such as numpy=2, nor a list under pip")
    return described


def _packed(content: str) -> str:
    return base64.b64encode(zlib.compress(content.encode(), 9)).decode()


def add_environment(worker: Spec, environment: Environment, cache: Mapping[str, Any] | None = None) -> None:
    """Let the workers of this specification have `environment` besides their image's packages.

    Parameters
    ----------
    worker
        The ``worker`` part of a DaskCluster or DaskWorkerGroup, which is changed.
    environment
        What to install.
    cache
        The source of a volume that pods share, such as ``{"hostPath": {"path": "/var/cache/daskfleet"}}`` or
        ``{"persistentVolumeClaim": {"claimName": "environments"}}``; by default the pod's own ``emptyDir``.
    """
    container = worker["spec"]["containers"][0]
    key = environment.key(container["image"])
    program = resources.files("daskfleet.deploy.kubernetes").joinpath("install.py").read_text()
    told = {
        "ENVIRONMENT_FOLDER": FOLDER,
        "ENVIRONMENT_KEY": key,
        "ENVIRONMENT_KIND": environment.kind,
        "ENVIRONMENT_COMPLETE": "1" if environment.complete else "",
        "ENVIRONMENT_PYTHON": f"{sys.version_info.major}.{sys.version_info.minor}",
        "ENVIRONMENT": _packed(environment.content),
    }
    install: Spec = {
        "name": "environment",
        "image": container["image"],
        "command": ["python3", "-c", program],
        "env": [*container["env"], *({"name": name, "value": value} for name, value in told.items())],
        "volumeMounts": [{"name": VOLUME, "mountPath": FOLDER}],
        "terminationMessagePolicy": "FallbackToLogsOnError",  # why it fails is then in the pod's status
    }
    if "hostPath" in (cache or {}):
        install["securityContext"] = {"runAsUser": 0}
    if container["resources"]:
        install["resources"] = container["resources"]
    pod = worker["spec"]
    pod.setdefault("volumes", []).append({"name": VOLUME, **(cache or {"emptyDir": {}})})
    pod.setdefault("initContainers", []).append(install)
    container.setdefault("volumeMounts", []).append({"name": VOLUME, "mountPath": FOLDER, "readOnly": True})
    container["env"] = _with_path(container["env"], f"{FOLDER}/{key}/site")
    if environment.packages:
        container["env"].append({"name": versions.MORE_VARIABLE, "value": " ".join(environment.packages)})


def _with_path(env: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    """`env` with `path` before what Python looks through."""
    theirs = [entry["value"] for entry in env if entry["name"] == "PYTHONPATH" and entry.get("value")]
    rest = [entry for entry in env if entry["name"] != "PYTHONPATH"]
    return [*rest, {"name": "PYTHONPATH", "value": ":".join([path, *theirs])}]
