"""A Slurm of one controller and two nodes on this machine, with munge, as in production but for its size."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.deployers.beds.tools import daemon, need_packages, need_root, wait_until

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
NODES = ("n1", "n2")
#: Processors that each node claims: more than there are, since workers of tests do little.
CPUS = 32


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start it; the environment variables with which its commands find it."""
    need_root("slurmd")
    need_packages(["slurmctld", "slurmd", "squeue", "munged"], PACKAGES)
    for name in ("state", "munge", "n1", "n2", "log"):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge").chmod(0o711)
    key, munge_socket = folder / "munge.key", folder / "munge" / "socket"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(1024))
    config = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    ports = [_free_port() for _ in NODES]
    nodes = "".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory=100000\n"
        for name, port in zip(NODES, ports, strict=True)
    )
    config.write_text(
        f"ClusterName=bed\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={_free_port()}\n"
        f"AuthType=auth/munge\nAuthInfo=socket={munge_socket}\nSlurmUser=root\nSlurmdUser=root\n"
        f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/%n\n"
        f"SlurmctldPidFile={folder}/ctld.pid\nSlurmdPidFile={folder}/%n.pid\n"
        "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n"
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU_Memory\nSlurmdParameters=config_overrides\n"
        "ReturnToService=2\nMailProg=/bin/true\nSwitchType=switch/none\nMpiDefault=none\nKillWait=5\n"
        "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0\n"
        f"{nodes}PartitionName=work Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
        "PartitionName=tiny Nodes=n1 MaxTime=INFINITE MaxNodes=1 State=DOWN\n"
    )
    environment = {"SLURM_CONF": str(config)}
    everything = {**os.environ, **environment}
    find = lambda name: shutil.which(name, path="/usr/sbin:/usr/bin") or name  # noqa: E731
    with contextlib.ExitStack() as stack:
        munged = [
            find("munged"), "--foreground", "--force", f"--socket={munge_socket}", f"--key-file={key}",
            f"--pid-file={folder}/munge/pid", f"--log-file={folder}/log/munged", f"--seed-file={folder}/munge/seed",
        ]  # fmt: skip
        stack.enter_context(daemon(munged, folder / "log" / "munge.out"))
        wait_until(munge_socket.exists, "munged has no socket")
        stack.enter_context(daemon([find("slurmctld"), "-D"], folder / "log" / "slurmctld", env=everything))
        for name in NODES:
            stack.enter_context(daemon([find("slurmd"), "-D", "-N", name], folder / "log" / name, env=everything))

        def up() -> bool:
            done = subprocess.run(["sinfo", "-h", "-o", "%T %D"], env=everything, capture_output=True, text=True)
            return "idle 2" in done.stdout

        try:
            wait_until(up, "Slurm's nodes are not idle")
        except RuntimeError as error:
            said = "\n".join(path.read_text(errors="replace")[-2000:] for path in (folder / "log").iterdir())
            raise RuntimeError(f"{error}\n{said}") from None
        yield environment
        subprocess.run(["scancel", "--user=root"], env=everything, capture_output=True)
        wait_until(
            lambda: not subprocess.run(["squeue", "-h"], env=everything, capture_output=True, text=True).stdout,
            "jobs of the test do not end",
        )
