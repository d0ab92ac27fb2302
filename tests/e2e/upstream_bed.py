"""Upstream's engine for tests: an image with ``distributed`` itself in it, and folders of packages for its clients.

dask looks for ``distributed`` when it is imported, so it is installed beside this environment and not into it, and used
by a Python of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from daskfleet.deploy.kubernetes.spec import DEFAULT_IMAGE

from tests.cluster import Cluster, images, tools

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
NEEDED = ("zict", "tblib", "sortedcontainers")  # by distributed, and not by us


def provide(cluster: Cluster, tag: str, engine: Sequence[str], client: Sequence[str] = ()) -> Path:
    """Bring an image with the packages of `engine` in place of ours onto the cluster.

    Returns
    -------
    Path
        The folder where `client` is installed with all that it needs, or else `engine` as it is in the image. It is a
        cache, and so the image is built anew only on a changed image of ours.
    """
    digest = hashlib.sha256(repr((sys.version_info[:2], [*engine], [*client])).encode()).hexdigest()[:16]
    folder = tools.CACHE / "upstream" / digest
    with tools.locked("upstream.lock", "another run that installs upstream's packages"):
        if not folder.exists():
            shutil.rmtree(folder.with_suffix(".partial"), ignore_errors=True)
            _install(folder.with_suffix(".partial"), engine, client)
            folder.with_suffix(".partial").rename(folder)
    (folder / "Containerfile").write_text(
        f"FROM {DEFAULT_IMAGE}\nUSER root\nCOPY wheels /wheels\n"
        # Both are called `dask scheduler`, and upstream's images have only one of them.
        "RUN pip uninstall --quiet --yes daskfleet && pip install --quiet --no-deps --no-index /wheels/*.whl\n"
        "USER 1000:1000\n"
    )
    build = images.build_command(cluster.builder, ["-f", "Containerfile", "-t", tag])
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    cluster.load([tag])
    return folder / "lib"


def _install(folder: Path, engine: Sequence[str], client: Sequence[str]) -> None:
    wheels = folder / "wheels"
    subprocess.run([*PIP, "download", "--no-deps", "--dest", wheels, *engine], check=True)
    of_client = client or ["--no-deps", "--no-index", *sorted(wheels.glob("*.whl"))]
    subprocess.run([*PIP, "install", "--target", folder / "lib", *of_client], check=True)
    (folder / ".dockerignore").write_text("lib\n")


def run_program(program: str, packages: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """A program of a user's, in a Python that has the `packages` besides."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
