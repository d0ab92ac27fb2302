"""``make bench-deployers``: seconds until N workers are registered, with each manager, ours and its peer's.

Each run is a fresh process, timed from its start (imports included) to the moment its client sees all workers, on the
beds of ``tests/deployers``. Both sides run on this machine's processors one after the other, so the ratio is what
counts. A side's processes that outlive its program are ended before the next one starts, and counted.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.deployers.beds import mpi, pbs, sge, slurm, ssh
from tests.deployers.beds.tools import processes_of_cluster, wait_until

#: Seconds for one run.
TIMEOUT = 580
#: Seconds in which those who end in order are gone.
ENDING = 30
PEERS = ("distributed", "dask-jobqueue", "asyncssh", "dask-mpi")

HEAD = """
import json, sys
options = json.loads(sys.argv[1])
{imports}
"""
REGISTERED = """
client.wait_for_workers(options["n"])
print("registered", flush=True)
"""
SSH = """
cluster = SSHCluster(
    options["hosts"], connect_options=options["connect"], remote_python=sys.executable,
    scheduler_options={{"host": options["hosts"][0], "dashboard_address": ":0", "port": 0}},
    worker_options={{"nthreads": 1, "n_workers": options["n"] // 2, "memory_limit": 0}},
)
client = Client(cluster)
"""
QUEUE = """
cluster = Cluster(
    n_workers=options["n"], cores=1, processes=1, memory="200MB", walltime="00:30:00",
    scheduler_options={{"dashboard_address": ":0"}}, **options["job"],
)
client = Client(cluster)
"""
MPI = """
initialize(nthreads=1, dashboard=False, memory_limit=0)
client = Client()
"""


@dataclass(frozen=True)
class Manager:
    """One way to 64 workers.

    Attributes
    ----------
    program
        What both sides run, between `HEAD` and `REGISTERED`.
    ours, theirs
        The imports before it, in which they differ.
    bed
        The system under it, in a folder and for so many workers; what the program is told of it.
    command
        Before the program: of our side or the peer's, for so many workers.
    """

    program: str
    ours: str
    theirs: str
    bed: Callable[[Path, int], contextlib.AbstractContextManager[dict[str, Any]]]
    command: Callable[[bool, int], list[str]]

    def text(self, ours: bool) -> str:
        return (HEAD + self.program + REGISTERED).format(imports=self.ours if ours else self.theirs)


@functools.cache
def peers() -> str:
    """A Python with the peers, kept in the user's cache."""
    folder = Path.home() / ".cache" / "daskfleet" / "peers"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS, "mpi4py", "mpich"], check=True)
        (folder / "ready").touch()
    return str(python)


def python(ours: bool, n: int) -> list[str]:
    return [sys.executable if ours else peers()]


def mpirun(ours: bool, n: int) -> list[str]:
    python = mpi.provide("mpich").python if ours else peers()
    return mpi.Mpi("mpich", Path(python).parents[1]).command(n + 2, python)


@contextlib.contextmanager
def on_ssh(folder: Path, n: int) -> Iterator[dict[str, Any]]:
    with ssh.servers(ssh.public_folder(folder)) as servers:
        options = {key: value for key, value in servers.connect_options().items() if key != "agent_path"}
        yield {"hosts": list(ssh.HOSTS), "connect": options}


@contextlib.contextmanager
def on_slurm(folder: Path, n: int) -> Iterator[dict[str, Any]]:
    with slurm.running(folder) as environment, patch.dict(os.environ, environment):
        yield {"job": {}}


@contextlib.contextmanager
def on_pbs(folder: Path, n: int) -> Iterator[dict[str, Any]]:
    with on_slurm(folder, n), first_in_path(pbs.commands(folder)):
        yield {"job": {"resource_spec": "nodes=1:ppn=1,mem=200mb"}}


@contextlib.contextmanager
def on_sge(folder: Path, n: int) -> Iterator[dict[str, Any]]:
    with sge.running(folder, slots=n) as commands, first_in_path(commands):
        yield {"job": {}}


def first_in_path(folder: Path) -> Any:
    return patch.dict(os.environ, {"PATH": f"{folder}:{os.environ['PATH']}"})


def nothing(folder: Path, n: int) -> contextlib.AbstractContextManager[dict[str, Any]]:
    return contextlib.nullcontext({})


def queue(name: str, bed: Callable[[Path, int], contextlib.AbstractContextManager[dict[str, Any]]]) -> Manager:
    ours = f"from daskfleet import Client\nfrom daskfleet.deploy.jobqueue import {name} as Cluster"
    return Manager(
        QUEUE, ours, f"from distributed import Client\nfrom dask_jobqueue import {name} as Cluster", bed, python
    )


MANAGERS = {
    "ssh": Manager(
        SSH, "from daskfleet import Client, SSHCluster", "from distributed import Client, SSHCluster", on_ssh, python
    ),
    "slurm": queue("SLURMCluster", on_slurm),
    "pbs": queue("PBSCluster", on_pbs),
    "sge": queue("SGECluster", on_sge),
    "mpi": Manager(
        MPI,
        "from daskfleet import Client\nfrom daskfleet.deploy.mpi import initialize",
        "from distributed import Client\nfrom dask_mpi import initialize",
        nothing,
        mpirun,
    ),
}


def versions(python: str) -> str:
    """Names and versions of the peers there."""
    program = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    done = subprocess.run([python, "-c", program, *PEERS], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def remaining(folder: Path) -> list[int]:
    """Ids of the processes of a run in `folder`, by what is in their environment: set by us, by sshd or by a queue."""
    marks = [f"{name}={folder}" for name in ("DASKFLEET_BENCHMARK", "SLURM_SUBMIT_DIR", "SGE_O_WORKDIR")]
    lines = {line for mark in (*marks, f"DASKFLEET_BED={folder.name}") for line in processes_of_cluster(mark)}
    return [int(line.split()[0]) for line in lines if "sshd" not in line]


def end_all(folder: Path) -> int:
    """End what is left of a run, by process id; how many there were."""
    with contextlib.suppress(RuntimeError):
        wait_until(lambda: not remaining(folder), "they are not gone", ENDING)
    left = remaining(folder)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not remaining(folder), "a killed process remains")
    return len(left)


def seconds(command: list[str], folder: Path) -> float | str:
    """Until `command`, run in `folder`, says that all are registered, or why it does not. It is ended then."""
    begun = time.monotonic()
    environment = {**os.environ, "DASKFLEET_BENCHMARK": str(folder), "XDG_STATE_HOME": str(folder / "state")}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, start_new_session=True, cwd=folder, env=environment
        )
        watch = subprocess.Popen(["sleep", str(TIMEOUT)])
        try:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            said = b""
            while b"registered" not in said:
                with contextlib.suppress(BlockingIOError):
                    said += os.read(process.stdout.fileno(), 65536)
                if process.poll() is not None and b"registered" not in said:
                    log.seek(0)
                    return "failed: " + (log.read().strip().splitlines() or ["?"])[-1][:200]
                if watch.poll() is not None:
                    return f"not within {TIMEOUT} s"
                time.sleep(0.005)
            return time.monotonic() - begun
        finally:
            watch.kill()
            watch.wait()
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--managers", nargs="*", default=list(MANAGERS), choices=list(MANAGERS))
    parser.add_argument("--only", choices=("daskfleet", "peer"), help="one side by itself")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the beds are taken down
    sides = [True, False] if given.only is None else [given.only == "daskfleet"]
    n = given.workers
    print(f"seconds until {n} workers are registered, {os.cpu_count()} processors; {versions(peers())}")
    print(f"{'':8}{'daskfleet':>12}{'peer':>12}{'ratio':>8}   processes left over")
    for name in given.managers:
        manager = MANAGERS[name]
        results: dict[bool, float | str] = {True: "-", False: "-"}
        left = dict.fromkeys(sides, 0)
        with tempfile.TemporaryDirectory(prefix="daskfleet-bench-", dir="/tmp", ignore_cleanup_errors=True) as path:
            folder = Path(path)
            folder.chmod(0o755)
            with manager.bed(folder, n) as options:
                for ours in sides:
                    program = folder / f"{'ours' if ours else 'theirs'}.py"
                    program.write_text(manager.text(ours))
                    command = [*manager.command(ours, n), str(program), json.dumps({"n": n, **options})]
                    results[ours] = seconds(command, folder)
                    left[ours] = end_all(folder)
        shown = [f"{value:.1f}" if isinstance(value, float) else value for value in results.values()]
        ratio = (
            f"{results[False] / results[True]:.1f}"
            if isinstance(results[True], float) and isinstance(results[False], float)
            else "-"
        )
        over = ", ".join(f"{count} of {'daskfleet' if ours else 'the peer'}'s" for ours, count in left.items() if count)
        print(f"{name:8}{shown[0]:>12}{shown[1]:>12}{ratio:>8}   {over or 'none'}", flush=True)


if __name__ == "__main__":
    main()
