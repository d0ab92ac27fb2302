"""A Grid Engine of one master and one node on this machine.

It insists that the machine's name resolves to an address other than loopback, so its daemons and its commands live in a
mount and host name space of their own, where ``/etc/hosts`` says so; the machine itself is left as it is.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from daskfleet.comm.addresses import own_ip

from tests.deployers.beds.tools import daemon, missing, need_packages, need_root, wait_until

PACKAGES = ("gridengine-master", "gridengine-exec", "gridengine-client")
HOST = "sgebed"
INSTALLED = Path("/var/lib/gridengine")
COMMANDS = ("qsub", "qstat", "qdel", "qacct", "qconf")

EXEC_HOST = f"""hostname {HOST}
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""
#: With so many slots in it.
QUEUE = f"""qname work.q
hostlist {HOST}
seq_no 0
load_thresholds NONE
suspend_thresholds NONE
nsuspend 1
suspend_interval 00:05:00
priority 0
min_cpu_interval 00:05:00
processors UNDEFINED
qtype BATCH
ckpt_list NONE
pe_list NONE
rerun FALSE
slots {{slots}}
tmpdir /tmp
shell /bin/bash
prolog NONE
epilog NONE
shell_start_mode unix_behavior
starter_method NONE
suspend_method NONE
resume_method NONE
terminate_method NONE
notify 00:00:60
owner_list NONE
user_lists NONE
xuser_lists NONE
subordinate_list NONE
complex_values NONE
projects NONE
xprojects NONE
calendar NONE
initial_state default
s_rt INFINITY
h_rt INFINITY
s_cpu INFINITY
h_cpu INFINITY
s_fsize INFINITY
h_fsize INFINITY
s_data INFINITY
h_data INFINITY
s_stack INFINITY
h_stack INFINITY
s_core INFINITY
h_core INFINITY
s_rss INFINITY
h_rss INFINITY
s_vmem INFINITY
h_vmem INFINITY
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(folder: Path, slots: int = 8) -> Iterator[Path]:
    """Start it, for so many jobs at a time; the folder with its commands, to be the first in PATH."""
    need_root("sge_execd")
    need_packages(["sge_qmaster", "sge_execd", "qsub", "qacct"], PACKAGES)
    if own_ip() == "127.0.0.1":
        missing("Grid Engine needs an address other than loopback, and this machine has none")
    root, spool, common = folder / "root", folder / "spool", folder / "root" / "default" / "common"
    for path in (
        common,
        spool / "db",
        spool / "qmaster" / "job_scripts",
        spool / "execd",
        folder / "bin",
        folder / "log",
    ):
        path.mkdir(parents=True)
    for name in ("bin", "util", "utilbin", "lib"):
        (root / name).symlink_to(INSTALLED / name)
    (common / "act_qmaster").write_text(f"{HOST}\n")
    (common / "bootstrap").write_text(
        "admin_user none\ndefault_domain none\nignore_fqdn false\nspooling_method berkeleydb\nspooling_lib libspoolb\n"
        f"spooling_params {spool}/db\nbinary_path /usr/sbin\nqmaster_spool_dir {spool}/qmaster\nsecurity_mode none\n"
        "listener_threads 2\nworker_threads 2\nscheduler_threads 1\n"
    )
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{own_ip()} {HOST}\n")
    environment = {
        "SGE_ROOT": str(root), "SGE_CELL": "default", "SGE_ND": "1",
        "SGE_QMASTER_PORT": str(_free_port()), "SGE_EXECD_PORT": str(_free_port()),
    }  # fmt: skip
    everything = {**os.environ, **environment}
    inside = f'hostname {HOST} && mount --bind {folder}/hosts /etc/hosts && exec "$@"'
    space = ["unshare", "--mount", "--uts", "sh", "-c", inside, "sh"]
    cluster = ["/usr/share/gridengine/scripts/init_cluster", str(root), "default", f"{spool}/db", "root"]
    done = subprocess.run([*space, *cluster], env=everything, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Grid Engine's spool cannot be made: {done.stdout}{done.stderr}")
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(daemon([*space, "sge_qmaster"], folder / "log" / "qmaster", env=everything))
        variables = " ".join(f"{name}={value}" for name, value in environment.items())
        for command in COMMANDS:
            path = folder / "bin" / command
            path.write_text(
                f"#!/bin/sh\nexec nsenter --target {master.pid} --mount --uts env {variables} "
                f'sh -c \'cd "$0" && exec /usr/bin/{command} "$@"\' "$PWD" "$@"\n'
            )
            path.chmod(0o755)

        def conf(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([str(folder / "bin" / "qconf"), *arguments], capture_output=True, text=True)

        wait_until(lambda: not conf("-sconf").returncode, "sge_qmaster does not answer")
        _configure(conf, folder, spool, slots)
        enter = ["nsenter", "--target", str(master.pid), "--mount", "--uts", "sge_execd"]
        stack.enter_context(daemon(enter, folder / "log" / "execd", env=everything))

        def up() -> bool:
            done = subprocess.run([str(folder / "bin" / "qstat"), "-f"], capture_output=True, text=True)
            line = next((line for line in done.stdout.splitlines() if line.startswith("work.q@")), "au")
            return len(line.split()) == 5  # no sixth column: no state that is unusual

        wait_until(up, "Grid Engine's queue is not ready", 60)
        yield folder / "bin"
        subprocess.run([str(folder / "bin" / "qdel"), "-u", "root"], capture_output=True)
        listed = [str(folder / "bin" / "qstat")]
        wait_until(lambda: not subprocess.run(listed, capture_output=True).stdout, "jobs of the test do not end")


def _configure(conf: Callable[..., subprocess.CompletedProcess[str]], folder: Path, spool: Path, slots: int) -> None:
    def change(show: str, modify: str, **values: str) -> None:
        lines = conf(show).stdout.replace("\\\n", " ").splitlines()
        known = {line.split()[0]: line for line in lines if line and not line.startswith("#")}
        known |= {name: f"{name} {value}" for name, value in values.items()}
        file = folder / "global"
        file.write_text("\n".join(known.values()) + "\n")
        _checked(conf(modify, str(file)))

    change("-sconf", "-Mconf", execd_spool_dir=f"{spool}/execd", min_uid="0", min_gid="0", load_report_time="00:00:02",
           reporting_params="accounting=true reporting=false flush_time=00:00:01 joblog=false sharelog=00:00:00",
           mailer="/bin/true", shell_start_mode="unix_behavior")  # fmt: skip
    change("-ssconf", "-Msconf", flush_submit_sec="1", flush_finish_sec="1", schedule_interval="0:0:1")
    for name, text, option in (("exec_host", EXEC_HOST, "-Ae"), ("queue", QUEUE.format(slots=slots), "-Aq")):
        if option == "-Ae":
            _checked(conf("-ah", HOST), "already")
            _checked(conf("-as", HOST), "already")
        (folder / name).write_text(text)
        _checked(conf(option, str(folder / name)))


def _checked(done: subprocess.CompletedProcess[str], but: str = "") -> None:
    if done.returncode and not (but and but in done.stdout + done.stderr):
        raise RuntimeError(f"{' '.join(done.args)}: {done.stdout}{done.stderr}")
