"""Building daskfleet's images and bringing them onto a cluster, each step only when what goes into it has changed.

The same ``images/*/Containerfile`` is built by Docker on ``python:3.x-slim``, or by buildah on a base image made with
debootstrap, since a machine without Docker may have no registry either. A label on each image holds the hash of all
that went into it, so nothing is remembered outside of the images.

Client and pods exchange pickles, so the base has the Python minor version of the environment that runs the tests, and
the packages that matter are pinned to that environment's versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import tools
from .base import Cluster
from .progress import ClusterError, run, say, step

ROOT = Path(__file__).parents[2]
INPUTS = "daskfleet.inputs"
"""The label with the hash of an image's inputs."""
PINNED = ("cloudpickle", "dask", "kopf", "kubernetes", "msgpack", "numpy", "pandas", "pyarrow", "tornado")
DEBIAN_SUITES = {"3.11": "bookworm", "3.13": "trixie"}
"""Debian's suites by the Python they have, for hosts whose own suite has another."""
TRIMMED = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache",
    "var/lib/apt/lists",
    "var/log",
)


@dataclass(frozen=True)
class Image:
    """One image of the project and what in the repository it is made of."""

    name: str
    sources: tuple[str, ...]
    recipe: str = ""
    """The folder of ``images`` with its Containerfile; by default the one of its name."""
    on: str = ""
    """The stage of it that our own layer goes on, where there are several (buildah 1.28 overlooks an ARG's default)."""

    @property
    def tag(self) -> str:
        version = (ROOT / "sdk/daskfleet/_version.py").read_text().partition('"')[2].partition('"')[0]
        return f"daskfleet/{self.name}:{version}"


COMMON = ("pyproject.toml", "README.md", "LICENSE", "images/requirements.py", "sdk/daskfleet")
IMAGES = (
    Image("runtime", (*COMMON, "images/runtime"), on="dependencies"),
    Image("operator", (*COMMON, "images/operator", "operator/daskfleet_operator")),
)
NOTEBOOK = Image("notebook", IMAGES[0].sources, recipe="runtime", on="jupyter")
"""For the fixed cluster's chart alone, so only its tests ask for it."""


def provide(cluster: Cluster, *more: Image) -> None:
    """Make the cluster hold IMAGES, and more, as the working tree has them; quick when nothing has changed."""
    for image in (*IMAGES, *more):
        if os.environ.get("DASKFLEET_IMAGES") != "present":
            build(image, cluster.builder)
        found = inspect(image.tag, cluster.builder)
        if not cluster.has(image.tag, found["id"] if found else ""):
            with step(f"loading {image.tag} onto the cluster"):
                cluster.load([image.tag])


def status(cluster: Cluster) -> Iterator[str]:
    """A line on each image: its size, and whether it is up to date and on the cluster."""
    for image in (*IMAGES, NOTEBOOK):
        found = inspect(image.tag, cluster.builder)
        if found is None:
            yield f"{image.tag}: not built"
            continue
        fresh = "up to date" if found["inputs"] == inputs_of(image, cluster.builder) else "older than the working tree"
        loaded = "on the cluster" if cluster.has(image.tag, found["id"]) else "not on the cluster"
        yield f"{image.tag}: {found['size']}, {fresh}, {loaded}"


def build(image: Image, builder: str) -> None:
    """Build an image unless the one there was made of the same."""
    wanted = inputs_of(image, builder)
    found = inspect(image.tag, builder)
    if found and found["inputs"] == wanted:
        return
    base = base_image(builder)
    with step(f"building {image.tag}"), build_secrets() as secrets:
        arguments = ["--build-arg", f"BASE={base}", "--build-arg", f"PINS={' '.join(pins())}"]
        arguments += ["--build-arg", f"INPUTS={wanted}"]
        if image.on:
            arguments += ["--build-arg", f"ON={image.on}"]
        arguments += ["--label", f"{INPUTS}={wanted}", "-t", image.tag]
        arguments += ["-f", f"images/{image.recipe or image.name}/Containerfile"]
        for name, path in secrets.items():
            arguments += ["--secret", f"id={name},src={path}"]
        run(build_command(builder, arguments), cwd=ROOT, env={"DOCKER_BUILDKIT": "1"}, timeout=1800)
    built = inspect(image.tag, builder)
    assert built is not None, f"{builder} has no {image.tag} although it has just built it"
    say(f"{image.tag}: {built['size']}")
    if found and found["id"] != built["id"]:
        subprocess.run([builder, "rmi", found["id"]], capture_output=True, check=False)  # refused where it has a use


def build_command(builder: str, arguments: list[str]) -> list[str]:
    """The command that builds the image in the current folder."""
    if builder == "docker":
        return ["docker", "build", "--quiet", *arguments, "."]
    # chroot: as good as any here, and it works inside of containers too; the host's network has the registries.
    return ["buildah", "bud", "--quiet", "--layers", "--isolation", "chroot", "--network", "host", *arguments, "."]


def inspect(tag: str, builder: str) -> dict[str, str] | None:
    """The id, the size and the inputs' hash of an image that the builder holds; None when it holds none."""
    if builder == "docker":
        command = ["docker", "image", "inspect", tag]
    else:
        command = ["buildah", "inspect", "--type", "image", tag]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        return None
    if builder == "docker":
        [found] = json.loads(said.stdout)
        labels = found["Config"].get("Labels") or {}
        return {"id": found["Id"], "size": f"{found['Size'] / 1e6:.0f} MB", "inputs": labels.get(INPUTS, "")}
    found = json.loads(said.stdout)
    labels = found["OCIv1"]["config"].get("Labels") or {}
    listed = json.loads(run(["buildah", "images", "--json", tag]))
    size = str(listed[0]["size"]) if listed else "?"
    return {"id": f"sha256:{found['FromImageID']}", "size": size, "inputs": labels.get(INPUTS, "")}


def inputs_of(image: Image, builder: str) -> str:
    """The hash of all that goes into an image."""
    digest = hashlib.sha256(repr((builder, base_image_name(builder), pins())).encode())
    for source in image.sources:
        top = ROOT / source
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_mode}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


# -- the environment that the pods must match --------------------------------------------------------------------------


@cache
def environment() -> tuple[str, dict[str, str]]:
    """The Python minor version and the installed packages of the environment the tests run in."""
    own = ROOT / ".venv" / "bin" / "python"
    script = "import importlib.metadata as m, json, sys; print(json.dumps(['%d.%d' % sys.version_info[:2], "
    script += "{d.name.lower(): d.version for d in m.distributions() if d.name}]))"
    python = str(own) if own.exists() else sys.executable
    version, packages = json.loads(run([python, "-c", script]))
    return version, packages


def pins() -> list[str]:
    """Constraints for pip that keep the pods' packages at the versions of that environment."""
    installed = environment()[1]
    return [f"{name}=={installed[name]}" for name in PINNED if name in installed]


# -- the base image ----------------------------------------------------------------------------------------------------


def base_image_name(builder: str) -> str:
    """What the images are built on."""
    if builder == "docker":
        return f"docker.io/library/python:{environment()[0]}-slim"
    return f"localhost/daskfleet/base:{suite()}"


def base_image(builder: str) -> str:
    """The base image's name, after it has been made if need be."""
    name = base_image_name(builder)
    if builder == "buildah" and inspect(name, builder) is None:
        tools.install({"debootstrap": "debootstrap"})
        with step(f"making the base image ({suite()}, by debootstrap)"):
            _debootstrap(name)
    return name


@cache
def suite() -> str:
    """The Debian or Ubuntu suite whose Python is the tests' own: this machine's where it fits."""
    wanted = environment()[0]
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    own = release.get("VERSION_CODENAME", "").strip('"')
    script = Path("/usr/share/debootstrap/scripts") / own
    if own and Path("/usr/bin/python3").exists() and (script.exists() or not script.parent.exists()):
        said = run(["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
        if said.strip() == wanted:
            return own
    if wanted in DEBIAN_SUITES:
        return DEBIAN_SUITES[wanted]
    raise ClusterError(
        f"the tests run on Python {wanted}; pods need the same, and neither this machine's own Python nor Debian's "
        f"({', '.join(DEBIAN_SUITES)}) is. Make the environment with one of those (PYTHON=python3.11 make …), "
        "or start Docker"
    )


def _debootstrap(name: str) -> None:
    container = run(["buildah", "from", "scratch"]).strip()
    try:
        root = Path(run(["buildah", "mount", container]).strip())
        packages = "--include=python3,python3-venv,ca-certificates"
        mirror = [found] if (found := _mirror(suite())) else []
        command = ["debootstrap", "--variant=minbase", packages, suite(), str(root), *mirror]
        run(command, timeout=900, hint="It needs the distribution's package archive.")
        for folder in TRIMMED:
            shutil.rmtree(root / folder, ignore_errors=True)
            (root / folder).mkdir(parents=True, exist_ok=True)
        run(["buildah", "umount", container])
        run(["buildah", "commit", "-q", container, name], timeout=600)
    finally:
        run(["buildah", "rm", container])


def _mirror(suite: str) -> str | None:
    """Where this machine's apt gets a suite from; None leaves it to debootstrap."""
    listed = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    said = subprocess.run(listed, capture_output=True, text=True, check=False).stdout
    return next((line.split()[1] for line in said.splitlines() if line.split()[0] == suite), None)


# -- what a build may see of this machine, without a trace in the image ------------------------------------------------


@contextmanager
def build_secrets() -> Iterator[dict[str, Path]]:
    """pip's configuration and the certificates of this machine, as files that only the build's steps see."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    settings = {}
    for line in said.stdout.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'\"")
    kept = ("index-url", "extra-index-url", "trusted-host", "proxy")
    lines = ["[global]", "timeout = 180", *(f"{key} = {settings[key]}" for key in kept if key in settings)]
    certificates = Path(settings.get("cert") or os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    with tempfile.TemporaryDirectory() as folder:
        secrets = {"pip": Path(folder) / "pip.conf"}
        if certificates.exists():
            secrets["certificates"] = certificates
            lines.append("cert = /etc/ssl/host.crt")
        secrets["pip"].write_text("\n".join(lines) + "\n")
        yield secrets
