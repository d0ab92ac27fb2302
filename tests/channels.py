"""Conda channels to install from in tests: a folder with packages as conda builds them, and their index."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}[platform.machine()]


def build(channel: Path, python: str, *, home: Path | None = None) -> None:
    """A channel with Python, in versions `python` and 3.99, and ``colour`` 1.0 and 1.1, a package in pure Python.

    Parameters
    ----------
    python
        Major and minor version.
    home
        The folder of an interpreter of that version, which the package's own then is; by default it cannot be run.
    """
    for version in (python, "3.99"):
        files = {f"lib/python{version}/site-packages/README.txt": "Packages go here.\n"}
        links = {}
        if home is not None:
            files["pyvenv.cfg"] = f"home = {home}\n"
            links["bin/python"] = str(home / f"python{version}")
        add(channel, HERE, "python", f"{version}.0", files, links)
    for version, name in (("1.0", "blue"), ("1.1", "green")):
        source = {"site-packages/colour.py": f"name = {name!r}\n"}
        add(channel, "noarch", "colour", version, source, depends=["python >=3.9"], noarch="python")


def add(
    channel: Path,
    subdir: str,
    name: str,
    version: str,
    files: Mapping[str, str],
    links: Mapping[str, str] | None = None,
    *,
    depends: Sequence[str] = (),
    noarch: str | None = None,
) -> None:
    """Write a package, and enter it into the channel's index."""
    links = links or {}
    folder = channel / subdir
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-0.tar.bz2"
    index: dict[str, Any] = {"name": name, "version": version, "build": "0", "build_number": 0, "subdir": subdir}
    index["depends"] = list(depends)
    if noarch:
        index["noarch"] = noarch
    paths = [_path(file, "hardlink", text.encode()) for file, text in files.items()]
    paths += [_path(file, "softlink", b"") for file in links]
    about = {"info/index.json": index, "info/paths.json": {"paths": paths, "paths_version": 1}}
    if noarch == "python":
        about["info/link.json"] = {"noarch": {"type": noarch}, "package_metadata_version": 1}
    with tarfile.open(path, "w:bz2") as package:
        for file, text in (*files.items(), *((file, json.dumps(what)) for file, what in about.items())):
            entry = tarfile.TarInfo(file)
            entry.size = len(text.encode())
            package.addfile(entry, io.BytesIO(text.encode()))
        for file, goal in links.items():
            entry = tarfile.TarInfo(file)
            entry.type, entry.linkname = tarfile.SYMTYPE, goal
            package.addfile(entry)
    content = path.read_bytes()
    sums = {"md5": hashlib.md5(content).hexdigest(), "sha256": hashlib.sha256(content).hexdigest()}
    listed = folder / "repodata.json"
    known = json.loads(listed.read_text()) if listed.exists() else {"info": {"subdir": subdir}, "packages": {}}
    known["packages"][path.name] = index | sums | {"size": len(content)}
    listed.write_text(json.dumps(known))


def _path(file: str, kind: str, content: bytes) -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    return {"_path": file, "path_type": kind, "sha256": sha256, "size_in_bytes": len(content)}
