"""Slurm.

The listing is ``squeue --format``, a line for each of our jobs, and not ``squeue --json``. That leaves the filters
aside in some releases (22.05, of Debian 12, answers ``--user`` and ``--jobs`` with every job of the site, 3.5 KB each),
is laid out as that release's data parser has it (a state is a text in one and a list in the next), and is missing where
Slurm was built without its serializer. What we need of it (state, reason, node) is in the line, in every release.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from daskfleet.deploy.jobqueue.core import JobQueueCluster
from daskfleet.deploy.jobqueue.script import Resources, directives, in_units
from daskfleet.deploy.jobqueue.system import JobStatus, State, System

_RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "SUSPENDED", "STOPPED"}
_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SPECIAL_EXIT"}
_DONE = {"COMPLETED", "CANCELLED"}


class Slurm(System):
    name = "slurm"
    title = "Slurm"
    submit = ("sbatch", "--parsable")
    cancel = ("scancel",)
    array_variable = "SLURM_ARRAY_TASK_ID"

    def header(self, resources: Resources, array: str = "") -> list[str]:
        memory = resources.job_mem or f"{in_units(resources.memory, 'MiB')}M"
        lines = [f"-J {resources.job_name}"]
        lines += [f"-o {resources.log_directory}/%x-{'%A_%a' if array else '%j'}.out"]
        lines += [f"-p {resources.queue}"] if resources.queue else []
        lines += [f"-A {resources.account}"] if resources.account else []
        lines += ["-n 1", f"--cpus-per-task={resources.job_cpu or resources.cores}", f"--mem={memory}"]
        lines += [f"-t {resources.walltime}"] if resources.walltime else []
        lines += [f"--array={array}"] if array else []
        return directives("#SBATCH", lines, resources)

    def job_id(self, output: str) -> str:
        match = re.match(r"\s*(\d+)", output)
        return match.group(1) if match else super().job_id(output)

    def query(self, user: str, ids: Sequence[str]) -> list[str]:
        return ["squeue", "--noheader", "--array", "--states=all", f"--user={user}", "--format=%i|%T|%r|%N"]

    def statuses(self, output: str) -> dict[str, JobStatus]:
        found = {}
        for line in output.splitlines():
            job, said, reason, nodes = (*line.strip().split("|"), "", "", "")[:4]
            state = (
                State.running if said in _RUNNING
                else State.pending if said in _PENDING
                else State.done if said in _DONE
                else State.failed
            )  # fmt: skip
            found[job] = JobStatus(state, said, f"{reason}, on {nodes}" if nodes and state is State.failed else reason)
        return found

    def post_mortem(self, job_id: str) -> list[str]:
        return ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job_id}", "--format=State,ExitCode"]

    def read_post_mortem(self, output: str) -> JobStatus | None:
        said, _, status = output.strip().partition("|")
        said = said.split(" ")[0]
        if not said:
            return None
        return JobStatus(State.done if said in _DONE else State.failed, said, f"exit status {status.split(':')[0]}")


class SLURMCluster(JobQueueCluster):
    """Workers as jobs of Slurm.

    Parameters
    ----------
    queue, account
        Partition, and who pays (``-p``, ``-A``).
    walltime
        Limit of each job, such as ``"01:00:00"``; workers retire shortly before it.
    job_cpu, job_mem
        What to ask Slurm for, where that differs from `cores` and `memory`.
    **options
        Those of `JobQueueCluster`.
    """

    system = Slurm()
