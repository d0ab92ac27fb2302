"""What batch systems differ in: `System`, and what a job's state can be. No I/O: texts in, texts out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from daskfleet.deploy.jobqueue.script import Resources, assemble


class State(StrEnum):
    """Where a job is in its life, whatever its queue calls that."""

    pending = "pending"
    running = "running"
    done = "done"
    failed = "failed"
    unknown = "unknown"


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What the queue says of a job.

    Attributes
    ----------
    state
        In our words.
    said
        In the queue's.
    reason
        Why, as far as the queue says.
    """

    state: State
    said: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.said} ({self.reason})" if self.reason and self.reason != "None" else self.said


class System:
    """A batch system.

    Attributes
    ----------
    name
        In the configuration: ``jobqueue.NAME``.
    submit, cancel
        The commands.
    by_stdin
        Whether `submit` reads the script from standard input rather than from the file that is its argument.
    array_variable
        Environment variable with the number of an array job's task; ``""`` where arrays are not used.
    array_first
        The smallest such number.
    walltime_unit
        Seconds of a walltime that is a bare number.
    parameters
        Those of `JobQueueCluster` that only this system has.
    """

    name = ""
    title = ""
    submit: Sequence[str] = ()
    cancel: Sequence[str] = ()
    by_stdin = False
    array_variable = ""
    array_first = 0
    walltime_unit = 60
    parameters: Sequence[str] = ()

    def header(self, resources: Resources, array: str = "") -> list[str]:
        """The directives; `array` is ``first-last`` for an array job."""
        raise NotImplementedError

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
        """The text that `submit` takes."""
        return assemble(shebang, self.header(resources, array), prologue, command, epilogue)

    def job_id(self, output: str) -> str:
        """The job's id in what `submit` has answered. Raises ValueError if there is none."""
        match = re.search(r"\d+", output)
        if match is None:
            raise ValueError(f"no job id in {output.strip()!r}")
        return match.group()

    def task_id(self, job_id: str, number: int) -> str:
        """The id of one task of an array job."""
        return f"{job_id}_{number}"

    def query(self, user: str, ids: Sequence[str]) -> list[str]:
        """The command that lists jobs."""
        raise NotImplementedError

    def statuses(self, output: str) -> dict[str, JobStatus]:
        """What that command has answered, by id."""
        raise NotImplementedError

    def forgotten(self, error: str) -> bool:
        """Whether the listing has failed only because the system has forgotten one of the jobs that were asked for."""
        return False

    def post_mortem(self, job_id: str) -> list[str]:
        """The command that tells how a job ended which is listed no more; empty if there is none."""
        return []

    def read_post_mortem(self, output: str) -> JobStatus | None:
        """What that command has answered, None if it knows nothing."""
        return None

    def cancel_arguments(self, ids: Sequence[str]) -> list[list[str]]:
        """The commands that end these jobs."""
        return [[*self.cancel, *ids]]
