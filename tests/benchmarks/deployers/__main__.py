"""``make bench-deployers``: seconds until N workers are registered, with each manager, ours and its peer's.

Each run is a fresh process, timed from its start (imports included) to the moment its client sees all workers, on the
beds of ``tests/deployers``. Both sides run on this machine's processors one after the other, so the ratio is what
counts. A peer's processes that outlive its program are ended before the next one starts, and counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.deployers.beds import mpi, slurm, ssh
from tests.deployers.beds.tools import processes_of_cluster, wait_until

#: Seconds for one run.
TIMEOUT = 580
#: Seconds in which those who end in order are gone.
ENDING = 30
PEERS = ("distributed", "dask-jobqueue", "asyncssh", "dask-mpi")

SSH = """
import json, sys
options = json.loads(sys.argv[1])
{imports}
cluster = SSHCluster(
    options["hosts"], connect_options=options["connect"], remote_python=sys.executable,
    scheduler_options={{"host": options["hosts"][0], "dashboard_address": ":0", "port": 0}},
    worker_options={{"nthreads": 1, "n_workers": options["n"] // 2, "memory_limit": 0}},
)
client = Client(cluster)
client.wait_for_workers(options["n"])
print("registered", flush=True)
"""
SLURM = """
import json, sys
options = json.loads(sys.argv[1])
{imports}
cluster = SLURMCluster(
    n_workers=options["n"], cores=1, processes=1, memory="200MB", walltime="00:30:00",
    scheduler_options={{"dashboard_address": ":0"}}, {more}
)
client = Client(cluster)
client.wait_for_workers(options["n"])
print("registered", flush=True)
"""
MPI = """
import json, sys
options = json.loads(sys.argv[1])
{imports}
client.wait_for_workers(options["n"])
print("registered", flush=True)
"""
START = "initialize(nthreads=1, dashboard=False, memory_limit=0)"
PROGRAMS = {
    "ssh": (SSH, "from daskfleet import Client, SSHCluster", "from distributed import Client, SSHCluster"),
    "slurm": (
        SLURM,
        "from daskfleet import Client\nfrom daskfleet.deploy.jobqueue import SLURMCluster",
        "from distributed import Client\nfrom dask_jobqueue import SLURMCluster",
    ),
    "mpi": (
        MPI,
        f"from daskfleet.deploy.mpi import initialize\n{START}\nfrom daskfleet import Client\nclient = Client()",
        f"from dask_mpi import initialize\n{START}\nfrom distributed import Client\nclient = Client()",
    ),
}


def peers(base: str) -> str:
    """A Python with the peers, kept in the user's cache."""
    folder = Path.home() / ".cache" / "daskfleet" / "peers"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([base, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS, "mpi4py", "mpich"], check=True)
        (folder / "ready").touch()
    return str(python)


def versions(python: str) -> str:
    """Names and versions of the peers there."""
    program = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    done = subprocess.run([python, "-c", program, *PEERS], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def remaining(marker: str) -> list[int]:
    """Ids of the processes of a run."""
    return [int(line.split()[0]) for line in processes_of_cluster(marker) if "sshd" not in line]


def end_all(marker: str) -> int:
    """End what is left of a run, by process id; how many there were."""
    left = remaining(marker)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not remaining(marker), "a killed process remains")
    return len(left)


def seconds(command: list[str], folder: str, marker: str) -> float | str:
    """Until `command`, run in `folder`, says that all are registered, or why it does not. It is ended then.

    `marker`, a variable and its value, is in the environment of all that it starts.
    """
    begun = time.monotonic()
    variable, _, value = marker.partition("=")
    environment = {**os.environ, variable: value}
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
            with contextlib.suppress(RuntimeError):
                wait_until(lambda: not remaining(marker), "they are not gone", ENDING)
            if left := end_all(marker):
                print(f"    {left} processes were left, and are ended now", flush=True)


@contextlib.contextmanager
def bed(manager: str, folder: Path, n: int) -> Iterator[tuple[dict[str, object], str]]:
    """The system under `manager`, what its programs are told, and what is in the environment of all they start."""
    marker = f"DASKFLEET_BENCHMARK={folder.name}"
    if manager == "ssh":
        with ssh.servers(ssh.public_folder(folder)) as servers:
            options = {key: value for key, value in servers.connect_options().items() if key != "agent_path"}
            yield {"n": n, "hosts": list(ssh.HOSTS), "connect": options}, servers.marker
    elif manager == "slurm":
        with slurm.running(folder) as environment:
            os.environ.update(environment)
            yield {"n": n}, marker
    else:
        yield {"n": n}, marker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--managers", nargs="*", default=list(PROGRAMS), choices=list(PROGRAMS))
    given = parser.parse_args()
    other = peers(sys.executable)
    print(f"seconds until {given.workers} workers are registered, {os.cpu_count()} processors; {versions(other)}")
    print(f"{'':8}{'daskfleet':>12}{'peer':>12}{'ratio':>8}")
    for manager in given.managers:
        text, ours, theirs = PROGRAMS[manager]
        results: list[float | str] = []
        with tempfile.TemporaryDirectory(prefix="daskfleet-bench-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            Path(folder).chmod(0o755)
            with bed(manager, Path(folder), given.workers) as (options, marker):
                for python, imports in ((sys.executable, ours), (other, theirs)):
                    program = Path(folder) / f"{len(results)}.py"
                    program.write_text(text.format(imports=imports, more=""))
                    command = [python, str(program), json.dumps(options)]
                    if manager == "mpi":
                        python = mpi.provide("mpich").python if imports == ours else python
                        runner = mpi.Mpi("mpich", Path(python).parents[1])
                        command = runner.command(given.workers + 2, python, *command[1:])
                    results.append(seconds(command, folder, marker))
        shown = [f"{value:.1f}" if isinstance(value, float) else value for value in results]
        ratio = f"{results[1] / results[0]:.1f}" if all(isinstance(value, float) for value in results) else "-"  # type: ignore[operator]
        print(f"{manager:8}{shown[0]:>12}{shown[1]:>12}{ratio:>8}", flush=True)


if __name__ == "__main__":
    main()
