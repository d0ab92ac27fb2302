"""PBS' commands on the Slurm of `beds.slurm`: Debian's slurm-wlm-torque, unpacked into a folder of its own.

Installed, it would push Grid Engine's commands out, which have the same names.

Its commands run array jobs but have no words for their tasks. So in front of them stands `ARRAYS`, which reads the
script's ``-J`` and its job's index as PBS does, and calls a task ``12[3]`` where Slurm says ``12_3``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.deployers.beds.tools import missing, need_root

PACKAGES = ("slurm-wlm-torque", "libslurm-perl", "libslurmdb-perl", "libswitch-perl", "libslurm38")

ARRAYS = r"""
import os, re, subprocess, sys
from pathlib import Path

name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
real = [os.environ["PBS_BED"] + "/" + name]
states = {"PD": "Q", "R": "R", "CG": "E", "CF": "R"}

def run(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True)

def leave(done):
    print(done.stdout, end="")
    sys.exit(done.returncode)

if name == "qsub":
    script = Path(arguments[-1])
    text = script.read_text()
    array = re.search(r"^#PBS -J (\S+)$", text, re.MULTILINE)
    if array is None:
        leave(run(*real, *arguments))
    copy = script.with_name("." + script.name)
    first, _, rest = text.partition("\n")
    rest = rest.replace(array.group(), "").lstrip("\n")
    body = re.search(r"^(?!#|$)", rest, re.MULTILINE).start()
    copy.write_text(first + "\n" + rest[:body] + "export PBS_ARRAY_INDEX=$SLURM_ARRAY_TASK_ID\n" + rest[body:])
    done = run(*real, "-J", array.group(1), *arguments[:-1], str(copy))
    done.stdout = re.sub(r"^(\d+)$", r"\1[].bed", done.stdout, flags=re.MULTILINE)
    leave(done)
if name == "qdel":
    tasks = [argument for argument in arguments if "[" in argument]
    if tasks:
        subprocess.run(["scancel", *(re.sub(r"\[(\d+)\]", r"_\1", task) for task in tasks)], check=True)
    others = [argument for argument in arguments if "[" not in argument]
    leave(run(*real, *others)) if others else sys.exit()
arrays = [argument[:-2] for argument in arguments if argument.endswith("[]")]
if arrays:
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%F %K %t", "--jobs=" + ",".join(arrays)]
    done = run(*command)
    for job, task, state in map(str.split, done.stdout.splitlines()):
        print(f"Job Id: {job}[{task}].bed\n    job_state = {states.get(state, 'C')}\n")
others = [argument for argument in arguments if not argument.endswith("[]") and argument != "-t"]
if others != ["-f"]:
    leave(run(*real, *others))
"""


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
    (folder / "arrays.py").write_text(ARRAYS)
    perl = folder / "torque-perl"
    perl.mkdir()
    modules = [str(path.parent) for path in root.rglob("Slurm.pm")] + [str(root / "usr/share/perl5")]
    for name in ("qsub", "qstat", "qdel"):
        path = perl / name
        libraries = next(root.rglob("libslurm.so.38")).parent
        variables = f"PERL5LIB={':'.join(modules)} LD_LIBRARY_PATH={libraries}"
        path.write_text(f'#!/bin/sh\n{variables} exec perl {root}/usr/bin/{name} "$@"\n')
        path.chmod(0o755)
        front = bin / name
        front.write_text(
            f"#!{sys.executable}\nimport os\nos.environ['PBS_BED'] = {str(perl)!r}\n"
            f"exec(open({str(folder / 'arrays.py')!r}).read())\n"
        )
        front.chmod(0o755)
    return bin
