"""PBS: OpenPBS, PBS Pro, Torque, and Moab on top of them.

Array jobs are those of OpenPBS and PBS Pro (``-J``), whose tasks are called ``12[3]``. Torque says ``-t`` and refuses
the other: then each job is submitted by itself (`daskfleet.deploy.jobqueue.queue`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from daskfleet.deploy.jobqueue.core import JobQueueCluster
from daskfleet.deploy.jobqueue.script import Resources, directives, in_units
from daskfleet.deploy.jobqueue.system import JobStatus, State, System

_STATES = {"R": State.running, "E": State.running, "T": State.running, "B": State.running, "S": State.running}
_ENDED = {"C", "F", "X"}
_FACTS = re.compile(r"^\s*(job_state|comment|exit_status|Exit_status)\s*=\s*(.*?)\s*$", re.MULTILINE)


class Pbs(System):
    name = "pbs"
    title = "PBS"
    submit = ("qsub",)
    cancel = ("qdel",)
    array_variable = "PBS_ARRAY_INDEX"
    walltime_unit = 1

    def header(self, resources: Resources, array: str = "") -> list[str]:
        spec = resources.resource_spec
        if spec is None:
            spec = f"select=1:ncpus={resources.cores}:mem={in_units(resources.memory, 'MiB')}MB"  # which PBS calls so
        lines = [f"-N {resources.job_name}"]
        lines += [f"-q {resources.queue}"] if resources.queue else []
        lines += [f"-A {resources.account}"] if resources.account else []
        lines += [f"-l {spec}"] if spec else []
        lines += [f"-l walltime={resources.walltime}"] if resources.walltime else []
        lines += [f"-J {array}"] if array else []
        lines += ["-j oe", f"-o {resources.log_directory}/"]
        return directives("#PBS", lines, resources)

    def job_id(self, output: str) -> str:
        match = re.search(r"^\s*(\d+)(\[\])?(\.\S+)?\s*$", output, re.MULTILINE)
        if match is None:
            raise ValueError(f"no job id in {output.strip()!r}")
        return match.group(1)

    def task_id(self, job_id: str, number: int) -> str:
        return f"{job_id}[{number}]"

    def query(self, user: str, ids: Sequence[str]) -> list[str]:
        arrays = dict.fromkeys(f"{id.partition('[')[0]}[]" for id in ids if "[" in id)
        return ["qstat", *(["-t"] if arrays else []), "-f", *arrays, *(id for id in ids if "[" not in id)]

    def forgotten(self, error: str) -> bool:
        return bool(re.search("unknown job|invalid job id|does not exist", error, re.IGNORECASE))

    def statuses(self, output: str) -> dict[str, JobStatus]:
        found = {}
        for block in re.split(r"^Job Id:\s*", output, flags=re.MULTILINE)[1:]:
            id = re.match(r"\d+(\[\d*\])?", block)
            facts = dict(_FACTS.findall(block))
            said = facts.get("job_state", "")
            if id is None or not said:
                continue
            status = facts.get("exit_status", facts.get("Exit_status"))
            if said in _ENDED:
                reason = f"exit status {status or 'unknown'}"
                found[id.group()] = JobStatus(State.done if status == "0" else State.failed, said, reason)
            else:
                found[id.group()] = JobStatus(_STATES.get(said, State.pending), said, facts.get("comment", ""))
        return found

    def post_mortem(self, job_id: str) -> list[str]:
        return ["qstat", "-x", "-f", job_id]

    def read_post_mortem(self, output: str) -> JobStatus | None:
        return next(iter(self.statuses(output).values()), None)


class Moab(Pbs):
    name = "moab"
    title = "Moab"
    submit = ("msub",)
    cancel = ("canceljob",)
    array_variable = ""

    def job_id(self, output: str) -> str:
        lines = output.split()
        if not lines:
            raise ValueError("no job id in what msub answered")
        return lines[-1]

    def query(self, user: str, ids: Sequence[str]) -> list[str]:
        return ["showq", "-u", user, "--xml"]

    def statuses(self, output: str) -> dict[str, JobStatus]:
        found = {}
        for attributes in re.findall(r"<job\s([^>]*)", output):
            facts = dict(re.findall(r'(\w+)="([^"]*)"', attributes))
            said = facts.get("State", "")
            running = said in ("Running", "Starting", "Suspended")
            found[facts.get("JobID", "")] = JobStatus(State.running if running else State.pending, said)
        return found

    def post_mortem(self, job_id: str) -> list[str]:
        return ["checkjob", job_id]

    def read_post_mortem(self, output: str) -> JobStatus | None:
        said = re.search(r"^State:\s*(\w+)", output, re.MULTILINE)
        status = re.search(r"Completion Code:\s*(-?\d+)", output)
        if said is None or said.group(1) not in ("Completed", "Removed", "Vacated"):
            return None
        code = status.group(1) if status else "0"
        if code == "0":
            return JobStatus(State.done, said.group(1))
        return JobStatus(State.failed, said.group(1), f"exit status {code}")


class PBSCluster(JobQueueCluster):
    """Workers as jobs of PBS.

    Parameters
    ----------
    queue, account
        Where it runs and who pays (``-q``, ``-A``; the environment's ``PBS_ACCOUNT`` by default).
    walltime
        Limit of each job; workers retire shortly before it.
    resource_spec
        How cores and memory are asked for, ``select=1:ncpus=…:mem=…`` by default.
    **options
        Those of `JobQueueCluster`.
    """

    system = Pbs()

    def _configured(self, given: dict[str, Any]) -> dict[str, Any]:
        settings = super()._configured(given)
        settings["account"] = settings["account"] or os.environ.get("PBS_ACCOUNT")
        return settings


class MoabCluster(PBSCluster):
    """Workers as jobs of Moab; the parameters are those of `PBSCluster`."""

    system = Moab()
