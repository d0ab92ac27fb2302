"""PBS' commands on the Slurm of `beds.slurm`: Debian's slurm-wlm-torque, unpacked into a folder of its own.

Installed, it would push Grid Engine's commands out, which have the same names.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.deployers.beds.tools import missing, need_root

PACKAGES = ("slurm-wlm-torque", "libslurm-perl", "libslurmdb-perl", "libswitch-perl", "libslurm38")


def commands(folder: Path) -> Path:
    """The folder with ``qsub``, ``qstat`` and ``qdel``, to be the first in PATH."""
    need_root("apt-get download")
    if not shutil.which("apt-get"):
        missing("there is no apt-get to download slurm-wlm-torque with")
    root, bin = folder / "torque", folder / "torque-bin"
    for path in (root, bin):
        path.mkdir()
    done = subprocess.run(
        ["apt-get", "-qq", "download", *PACKAGES], cwd=root, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        missing(f"slurm-wlm-torque cannot be downloaded: {done.stderr.strip()[-300:]}")
    for package in root.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    for name in ("sbatch", "salloc", "srun", "scancel", "squeue"):  # which they look for beside themselves
        (root / "usr" / "bin" / name).symlink_to(shutil.which(name) or name)
    modules = [str(path.parent) for path in root.rglob("Slurm.pm")] + [str(root / "usr/share/perl5")]
    for name in ("qsub", "qstat", "qdel"):
        path = bin / name
        libraries = next(root.rglob("libslurm.so.38")).parent
        variables = f"PERL5LIB={':'.join(modules)} LD_LIBRARY_PATH={libraries}"
        path.write_text(f'#!/bin/sh\n{variables} exec perl {root}/usr/bin/{name} "$@"\n')
        path.chmod(0o755)
    return bin
