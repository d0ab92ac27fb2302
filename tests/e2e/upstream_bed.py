"""Upstream's engine for tests: an image with ``distributed`` itself in it, and folders of packages for its clients.

dask looks for ``distributed`` when it is imported, so it is installed beside this environment and not into it, and used
by a Python of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from daskfleet.deploy.kubernetes.spec import DEFAULT_IMAGE

from tests.cluster import Cluster, images

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
NEEDED = ("zict", "tblib", "sortedcontainers")  # by distributed, and not by us


def provide_image(cluster: Cluster, folder: Path, tag: str, packages: Sequence[str]) -> list[Path]:
    """Bring an image of `packages` in place of ours onto the cluster; their wheels, which are left in `folder`."""
    subprocess.run([*PIP, "download", "--no-deps", "--dest", folder / "wheels", *packages], check=True)
    (folder / "Containerfile").write_text(
        f"FROM {DEFAULT_IMAGE}\nUSER root\nCOPY wheels /wheels\n"
        # Both are called `dask scheduler`, and upstream's images have only one of them.
        "RUN pip uninstall --quiet --yes daskfleet && pip install --quiet --no-deps --no-index /wheels/*.whl\n"
        "USER 1000:1000\n"
    )
    build = images.build_command(cluster.builder, ["-f", "Containerfile", "-t", tag])
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    cluster.load([tag])
    return sorted((folder / "wheels").glob("*.whl"))


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
