"""LSF, HTCondor and OAR."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from daskfleet.deploy.jobqueue.core import JobQueueCluster
from daskfleet.deploy.jobqueue.script import Resources, directives, in_units, seconds
from daskfleet.deploy.jobqueue.system import JobStatus, State, System


class Lsf(System):
    name = "lsf"
    title = "LSF"
    submit = ("bsub",)
    cancel = ("bkill",)
    by_stdin = True
    parameters = ("lsf_units", "use_stdin")

    def header(self, resources: Resources, array: str = "") -> list[str]:
        cores = resources.job_cpu or resources.cores
        lines = [f"-J {resources.job_name}", f"-o {resources.log_directory}/%J.out"]
        lines += [f"-q {resources.queue}"] if resources.queue else []
        lines += [f"-P {resources.account}"] if resources.account else []
        lines += [f"-n {cores}"] + (['-R "span[hosts=1]"'] if cores > 1 else [])
        given = str(resources.job_mem or resources.memory)
        lines += [f"-M {in_units(int(given), resources.memory_unit) if given.isdecimal() else given}"]
        lines += [f"-W {_hours_and_minutes(resources.walltime)}"] if resources.walltime else []
        return directives("#BSUB", lines, resources)

    def job_id(self, output: str) -> str:
        match = re.search(r"<(\d+)>", output)
        if match is None:
            raise ValueError(f"no job id in {output.strip()!r}")
        return match.group(1)

    def query(self, user: str, ids: Sequence[str]) -> list[str]:
        return ["bjobs", "-a", "-noheader", "-u", user, "-o", "jobid stat exit_code pend_reason delimiter='|'"]

    def statuses(self, output: str) -> dict[str, JobStatus]:
        states = {"RUN": State.running, "DONE": State.done, "EXIT": State.failed, "PEND": State.pending}
        found = {}
        for line in output.splitlines():
            parts = [part.strip() for part in line.split("|")]
            if len(parts) >= 2 and parts[0].isdecimal():
                code, reason = ([*parts[2:], "", ""])[:2]
                why = f"exit status {code}" if parts[1] == "EXIT" else reason.strip("-")
                found[parts[0]] = JobStatus(states.get(parts[1], State.pending), parts[1], why)
        return found


def lsf_unit() -> str:
    """In which unit this site's LSF takes limits: as its lsf.conf says, else kilobytes, which is LSF's own default."""
    folder = os.environ.get("LSF_ENVDIR") or os.environ.get("LSF_CONFDIR") or "/etc"
    with contextlib.suppress(OSError):
        said = re.findall(r"^\s*LSF_UNIT_FOR_LIMITS\s*=\s*(\w+)", Path(folder, "lsf.conf").read_text(), re.MULTILINE)
        if said:
            return str(said[-1])
    return "KB"


def _hours_and_minutes(walltime: str | None) -> str:
    """LSF knows no seconds."""
    minutes = int(-(-(seconds(walltime) or 0) // 60))
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


class Condor(System):
    name = "htcondor"
    title = "HTCondor"
    submit = ("condor_submit", "-terse")
    cancel = ("condor_rm",)
    walltime_unit = 1
    parameters = ("disk", "submit_command_extra", "cancel_command_extra")

    def header(self, resources: Resources, array: str = "") -> list[str]:
        lines = [
            "Universe = vanilla",
            f"batch_name = {resources.job_name}",
            f"Request_Cpus = {resources.job_cpu or resources.cores}",
            f"Request_Memory = {resources.job_mem or in_units(resources.memory, 'MiB')}",
            f"Output = {resources.log_directory}/$(ClusterId).out",
            f"Error = {resources.log_directory}/$(ClusterId).out",
            f"Log = {resources.log_directory}/$(ClusterId).log",
            "Stream_Output = True",
            "Stream_Error = True",
        ]
        lines += [f"Request_Disk = {in_units(resources.disk, 'KiB')}"] if resources.disk else []
        lines += [f"Accounting_Group = {resources.account}"] if resources.account else []
        limit = seconds(resources.walltime, unit=1)
        lines += [f"Periodic_Remove = (time() - JobCurrentStartDate) > {limit:.0f}"] if limit else []
        return [line[1:] for line in directives("", lines, resources)]

    def script(
        self,
        resources: Resources,
        command: str,
        *,
        shebang: str,
        prologue: Sequence[str] = (),
        epilogue: Sequence[str] = (),
        array: str = "",
    ) -> str:
        """A submit description: the shell's script is an argument in it."""
        program = "; ".join([*prologue, command, *epilogue]).replace('"', '""').replace("'", "''")
        words = shlex.split(shebang.removeprefix("#!"))
        shell = ["/bin/bash"] if words[:1] == ["/usr/bin/env"] else words
        lines = [f"Executable = {shell[0]}", f"Arguments = \"-c '{program}'\"", *self.header(resources), "Queue", ""]
        return "\n".join(lines)

    def job_id(self, output: str) -> str:
        match = re.search(r"(\d+)\.\d+", output)
        return match.group(1) if match else super().job_id(output)

    def query(self, user: str, ids: Sequence[str]) -> list[str]:
        return ["condor_q", user, "-json", "-attributes", "ClusterId,JobStatus,HoldReason"]

    def statuses(self, output: str) -> dict[str, JobStatus]:
        names = {1: "idle", 2: "running", 3: "removed", 4: "completed", 5: "held", 6: "transferring", 7: "suspended"}
        states = {2: State.running, 3: State.done, 4: State.done, 5: State.failed, 6: State.running, 7: State.running}
        found = {}
        for job in json.loads(output or "[]"):
            code = int(job["JobStatus"])
            status = JobStatus(states.get(code, State.pending), names.get(code, str(code)), job.get("HoldReason", ""))
            found[str(job["ClusterId"])] = status
        return found

    def post_mortem(self, job_id: str) -> list[str]:
        return ["condor_history", job_id, "-limit", "1", "-json", "-attributes", "ExitCode,RemoveReason"]

    def read_post_mortem(self, output: str) -> JobStatus | None:
        jobs = json.loads(output or "[]")
        if not jobs:
            return None
        code = jobs[0].get("ExitCode")
        if code == 0:
            return JobStatus(State.done, "completed")
        return JobStatus(State.failed, "failed", str(jobs[0].get("RemoveReason") or f"exit status {code}"))


class Oar(System):
    name = "oar"
    title = "OAR"
    submit = ("oarsub", "-S")
    cancel = ("oardel",)
    parameters = ("memory_per_core_property_name",)

    def header(self, resources: Resources, array: str = "") -> list[str]:
        spec = resources.resource_spec or f"/nodes=1/core={resources.cores}"
        spec += f",walltime={resources.walltime}" if resources.walltime else ""
        lines = [f"-n {resources.job_name}", f"-O {resources.log_directory}/%jobid%.out"]
        lines += [f"-E {resources.log_directory}/%jobid%.out"]
        lines += [f"-q {resources.queue}"] if resources.queue else []
        lines += [f"--project {resources.account}"] if resources.account else []
        lines += [f"-l {spec}"]
        name = resources.memory_property
        if name and name != "not_applicable":
            # OAR takes one -p, so the user's own goes into it.
            own = [line.removeprefix("-p").strip().strip("'\"") for line in resources.extra if line.startswith("-p")]
            resources = replace(resources, extra=[line for line in resources.extra if not line.startswith("-p")])
            megabytes = -(-resources.memory // (resources.cores << 20))
            lines.append(f"-p '{' AND '.join([*own[-1:], f'{name}>={megabytes}'])}'")
        return directives("#OAR", lines, resources)

    def job_id(self, output: str) -> str:
        match = re.search(r"OAR_JOB_ID=(\d+)", output)
        if match is None:
            raise ValueError(f"no job id in {output.strip()!r}")
        return match.group(1)

    def query(self, user: str, ids: Sequence[str]) -> list[str]:
        return ["oarstat", "-J", *(word for id in ids for word in ("-j", id))]

    def statuses(self, output: str) -> dict[str, JobStatus]:
        ended = {"Terminated": State.done, "Error": State.failed}
        running = {"Running", "Launching", "Finishing", "Suspended", "Resuming"}
        found = {}
        for id, job in json.loads(output or "{}").items():
            said, code = job.get("state", ""), job.get("exit_code")
            state = State.running if said in running else ended.get(said, State.pending)
            if state is State.done and code not in (None, 0):
                state = State.failed
            found[str(id)] = JobStatus(state, said, str(job.get("message") or ""))
        return found


class LSFCluster(JobQueueCluster):
    """Workers as jobs of LSF. The parameters are those of `JobQueueCluster`, and

    Parameters
    ----------
    project
        Who pays (``-P``).
    lsf_units
        In which unit this site's LSF takes limits, such as ``"mb"``; by default what its ``lsf.conf`` says.
    use_stdin
        False for sites whose ``bsub`` wants the script as its argument instead of on its standard input.
    """

    system = Lsf()

    def _resources(self, **other: Any) -> Resources:
        unit = str(self._settings["lsf_units"] or lsf_unit())
        return super()._resources(memory_unit=f"{unit[0].upper()}B", **other)


class HTCondorCluster(JobQueueCluster):
    """Workers as jobs of HTCondor. The parameters are those of `JobQueueCluster`, and

    Parameters
    ----------
    disk
        What a job asks for in all: bytes, or a text such as ``"1 GB"``.
    job_extra_directives
        Here a dict, or lines such as ``"Rank = Memory"``.
    submit_command_extra, cancel_command_extra
        More arguments of ``condor_submit`` and ``condor_rm``.
    """

    system = Condor()


class OARCluster(JobQueueCluster):
    """Workers as jobs of OAR. The parameters are those of `JobQueueCluster`, and

    Parameters
    ----------
    project
        Who pays (``--project``).
    memory_per_core_property_name
        What this site's OAR calls the memory of a core in megabytes, such as ``"memcore"``, to ask for `memory`.
    """

    system = Oar()
