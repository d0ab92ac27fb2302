"""Grid Engine: SGE and its descendants."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from collections.abc import Iterator, Sequence

from daskfleet.deploy.jobqueue.core import JobQueueCluster
from daskfleet.deploy.jobqueue.script import Resources, directives
from daskfleet.deploy.jobqueue.system import JobStatus, State, System


class Sge(System):
    name = "sge"
    title = "Grid Engine"
    submit = ("qsub", "-terse")
    cancel = ("qdel",)
    array_variable = "SGE_TASK_ID"
    array_first = 1
    walltime_unit = 1

    def header(self, resources: Resources, array: str = "") -> list[str]:
        file = f"$JOB_NAME-$JOB_ID{'.$TASK_ID' if array else ''}.out"
        lines = [f"-N {resources.job_name}", f"-o {resources.log_directory}/{file}", "-j y"]
        lines += [f"-q {resources.queue}"] if resources.queue else []
        lines += [f"-P {resources.account}"] if resources.account else []
        lines += [f"-l {resources.resource_spec}"] if resources.resource_spec else []
        lines += [f"-l h_rt={resources.walltime}"] if resources.walltime else []
        lines += [f"-t {array}"] if array else []
        return directives("#$", [*lines, "-cwd"], resources)

    def task_id(self, job_id: str, number: int) -> str:
        return f"{job_id}.{number}"

    def query(self, user: str, ids: Sequence[str]) -> list[str]:
        return ["qstat", "-u", user, "-xml"]

    def statuses(self, output: str) -> dict[str, JobStatus]:
        found = {}
        for job in xml.fromstring(output).iter("job_list"):
            number, said = job.findtext("JB_job_number", ""), job.findtext("state", "")
            if "E" in said:
                status = JobStatus(State.failed, said, f"an error; qstat -j {number} says which")
            elif "r" in said or "t" in said:
                status = JobStatus(State.running, said)
            else:
                status = JobStatus(State.pending, said, "held" if "h" in said else "waiting for a free slot")
            tasks = job.findtext("tasks", "")
            for id in [f"{number}.{task}" for task in _tasks(tasks)] or [number]:
                found[id] = status
        return found

    def post_mortem(self, job_id: str) -> list[str]:
        number, _, task = job_id.partition(".")
        return ["qacct", "-j", number, *(["-t", task] if task else [])]

    def read_post_mortem(self, output: str) -> JobStatus | None:
        facts = dict(re.findall(r"^(failed|exit_status)\s+(.*?)\s*$", output, re.MULTILINE))
        if "exit_status" not in facts:
            return None
        failed, status = facts.get("failed", "0").split(" ")[0], facts["exit_status"].split(" ")[0]
        if failed == "0" and status == "0":
            return JobStatus(State.done, "finished")
        why = f"exit status {status}" + (f", {facts['failed']}" if failed != "0" else "")
        return JobStatus(State.failed, "failed", why)

    def cancel_arguments(self, ids: Sequence[str]) -> list[list[str]]:
        whole = [id for id in ids if "." not in id]
        tasks = [id.partition(".") for id in ids if "." in id]
        commands = [[*self.cancel, *whole]] if whole else []
        return commands + [[*self.cancel, number, "-t", task] for number, _, task in tasks]


def _tasks(text: str) -> Iterator[int]:
    """The numbers of ``4``, ``3-12:1`` or ``1,5-7:2``."""
    for part in filter(None, text.split(",")):
        bounds, _, step = part.partition(":")
        first, _, last = bounds.partition("-")
        if first.strip().isdecimal():
            yield from range(int(first), int(last or first) + 1, int(step or 1))


class SGECluster(JobQueueCluster):
    """Workers as jobs of Grid Engine.

    Parameters
    ----------
    queue, project
        Where it runs and who pays (``-q``, ``-P``).
    walltime
        Limit of each job (``h_rt``); workers retire shortly before it.
    resource_spec
        How cores and memory are asked for here, such as ``"h_vmem=24G"``: every site has its own way.
    **options
        Those of `JobQueueCluster`.
    """

    system = Sge()
