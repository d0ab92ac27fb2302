"""Images on their way from buildah to containerd.

A code change alters one layer of a few hundred KB, so that is all that should travel. An OCI layout on disk serves as
the staging area. buildah leaves a layer alone that the layout already has *under its uncompressed digest*, the one that
buildah knows; but it would only ever write compressed ones there. So large layers are put there uncompressed first
(out of a docker-archive, whose members they are), and containerd is sent only what it lacks.
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

from .progress import ClusterError, run


class OciLayout:
    """A folder of images in the OCI layout, whose large layers are stored uncompressed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs" / "sha256"

    def add(self, image: str, name: str) -> None:
        """Copy ``image`` from buildah's storage under ``name``; then drop what no image needs any more."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        layers = json.loads(run(["buildah", "inspect", "--type", "image", image]))["OCIv1"]["rootfs"]["diff_ids"]
        # The last layer is the quick one: ours, new each time, and small.
        absent = {digest for digest in layers[:-1] if not self._path(digest).exists()}
        if absent:
            self._add_uncompressed(image, absent)
        run(["buildah", "push", "-q", image, f"oci:{self.folder}:{name}"])
        self._forget_replaced()
        needed = self._needed()
        for blob in self.blobs.iterdir():
            if f"sha256:{blob.name}" not in needed:
                blob.unlink()

    def write(self, stream: IO[bytes], without: Collection[str]) -> None:
        """Write the layout as a tar archive that leaves out the blobs whose digests are in ``without``."""
        with tarfile.open(fileobj=stream, mode="w|", bufsize=1 << 20) as archive:
            for name in ("oci-layout", "index.json"):
                archive.add(self.folder / name, name)
            for digest in self._needed():
                if digest not in without:
                    archive.add(self._path(digest), f"blobs/{digest.replace(':', '/')}")

    def _add_uncompressed(self, image: str, wanted: Collection[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            pipe = Path(folder) / "archive.tar"  # a pipe: the archive itself never touches the disk
            os.mkfifo(pipe)
            with subprocess.Popen(
                ["buildah", "push", "-q", image, f"docker-archive:{pipe}:image:1"], stderr=subprocess.PIPE, text=True
            ) as pushing:
                with open(pipe, "rb") as stream:
                    with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
                        for member in archive:
                            digest = f"sha256:{member.name.removesuffix('.tar')}"
                            content = archive.extractfile(member) if digest in wanted and member.isfile() else None
                            if content is not None:
                                self._store(digest, content)
                    while stream.read(1 << 20):  # padding behind the archive's end, which buildah wants to get rid of
                        pass
                assert pushing.stderr is not None
                said = pushing.stderr.read()
            if pushing.returncode:
                raise ClusterError(f"buildah could not export {image}: {said}")

    def _store(self, digest: str, content: IO[bytes]) -> None:
        partial = self._path(digest).with_suffix(".partial")
        with partial.open("wb") as file:
            while chunk := content.read(1 << 20):
                file.write(chunk)
        partial.replace(self._path(digest))

    def _forget_replaced(self) -> None:
        path = self.folder / "index.json"
        index = json.loads(path.read_text())
        named = [
            entry for entry in index["manifests"] if "org.opencontainers.image.ref.name" in entry.get("annotations", ())
        ]
        path.write_text(json.dumps(index | {"manifests": named}))

    def _needed(self) -> dict[str, None]:
        """The digests of all that the images consist of, in order."""
        needed: dict[str, None] = {}
        for entry in json.loads((self.folder / "index.json").read_text())["manifests"]:
            manifest = json.loads(self._path(entry["digest"]).read_text())
            needed |= dict.fromkeys(part["digest"] for part in (entry, manifest["config"], *manifest["layers"]))
        return needed

    def _path(self, digest: str) -> Path:
        return self.blobs / digest.removeprefix("sha256:")


def full_name(image: str) -> str:
    """An image's name as Kubernetes resolves it: ``daskfleet/runtime:0.1.0`` is on docker.io, by convention.

    >>> full_name("daskfleet/runtime:0.1.0"), full_name("busybox"), full_name("localhost/pause:1")
    ('docker.io/daskfleet/runtime:0.1.0', 'docker.io/library/busybox:latest', 'localhost/pause:1')
    """
    host, slash, _ = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif host != "localhost" and not set(host) & set(".:"):
        image = f"docker.io/{image}"
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"
