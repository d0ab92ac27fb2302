"""What a node changes on the machine outside of its own folders, and how each change is undone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .progress import ClusterError

CONTROL_GROUPS = Path("/sys/fs/cgroup")
KERNEL_SETTINGS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
"""What the kubelet sets for the whole machine."""
NEEDED_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")


def save_kernel_settings(file: Path) -> None:
    """Remember in ``file`` what the kubelet is going to overwrite."""
    file.write_text(json.dumps({name: (Path("/proc/sys") / name).read_text() for name in KERNEL_SETTINGS}))


def restore_kernel_settings(file: Path) -> None:
    """Put back what `save_kernel_settings` remembered, if it did."""
    if file.exists():
        for name, value in json.loads(file.read_text()).items():
            with suppress(OSError):
                (Path("/proc/sys") / name).write_text(value)


def make_control_group(name: str) -> None:
    """Make the control group that all pods of a node are below, with the controllers that the kubelet requires."""
    if (CONTROL_GROUPS / "cgroup.controllers").exists():  # version 2: one tree, controllers handed down by name
        for controller in NEEDED_CONTROLLERS:
            with suppress(OSError):
                (CONTROL_GROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
        (CONTROL_GROUPS / name).mkdir(exist_ok=True)
        handed_down = (CONTROL_GROUPS / name / "cgroup.controllers").read_text().split()
        lacking = sorted(set(NEEDED_CONTROLLERS) - set(handed_down))
        if lacking:
            raise ClusterError(
                f"the control group controllers {', '.join(lacking)} cannot be handed to a new group here: the kernel "
                "refuses while processes are in the root group itself, as in a container; run on the machine instead"
            )
        return
    for group in _control_groups(name):
        group.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group of version 1, which forbids processes
            if (group / setting).exists():
                (group / setting).write_text((group.parent / setting).read_text())


def remove_control_group(name: str) -> None:
    """Remove the control group with all below it."""
    for top in _control_groups(name):
        groups = [*top.rglob("*/"), top] if top.exists() else []
        for group in sorted(groups, key=lambda path: len(path.parts), reverse=True):
            for _ in range(20):  # a group stays busy for a moment after its last process has ended
                with suppress(OSError):
                    group.rmdir()
                if not group.exists():
                    break
                time.sleep(0.05)


def _control_groups(name: str) -> list[Path]:
    """The group's folder; of version 1 one in each hierarchy."""
    if (CONTROL_GROUPS / "cgroup.controllers").exists():
        return [CONTROL_GROUPS / name]
    return [mount / name for mount in CONTROL_GROUPS.iterdir() if mount.is_dir() and not mount.is_symlink()]


def end_shims(socket: Path) -> None:
    """End the shims of the containerd that served ``socket``, which they name in their arguments."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "containerd-shim" in words[0] and any(word.startswith(str(socket)) for word in words):
                os.kill(int(folder.name), signal.SIGKILL)


def unmount(folders: Sequence[Path]) -> None:
    """Unmount all that is mounted below the folders."""
    below = tuple(f"{folder}/" for folder in folders)
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in sorted((point for point in points if point.startswith(below)), reverse=True):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


def remove_records(name: str, logs: Path) -> None:
    """Remove what the CNI plugins and the kubelet keep in fixed places about pods of a node that is gone."""
    for link in Path("/var/log/containers").glob("*"):
        if str(logs) in os.readlink(link):
            link.unlink()
    for result in Path("/var/lib/cni/results").glob(f"{name}-*"):
        sandbox = result.name.removeprefix(f"{name}-").partition("-")[0]
        for kept in result.parent.glob(f"*-{sandbox}-*"):
            kept.unlink()
    for folder in ("/var/lib/cni/results", "/var/lib/cni", "/var/log/containers", "/var/log/pods"):
        with suppress(OSError):  # others use it, or it never was
            os.rmdir(folder)
