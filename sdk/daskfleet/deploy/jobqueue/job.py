"""Jobs as the processes of a cluster: `Job`, and `SchedulerJob` for a scheduler that is one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

from daskfleet import scheduler_file
from daskfleet.deploy.jobqueue.queue import Queue
from daskfleet.deploy.jobqueue.system import JobStatus, State
from daskfleet.deploy.process import ProcessInterface
from daskfleet.deploy.status import Status
from daskfleet.exceptions import DaskfleetError
from daskfleet.security import Security

#: Lines of a dead job's log that an error shows.
TAIL = 12


class Job(ProcessInterface):
    """One job in the queue.

    Parameters
    ----------
    number
        The job's in its cluster, by which array jobs count.
    text
        The script, if it is not that of every worker.
    job_id
        Of a job that is there already.
    lifetime
        Seconds after which its workers leave by themselves.

    Attributes
    ----------
    queue_status
        What the queue said last.
    """

    def __init__(
        self,
        scheduler: str | None = None,
        *,
        queue: Queue,
        number: int,
        name: Any = None,
        text: str = "",
        job_id: str = "",
        lifetime: float | None = None,
    ) -> None:
        super().__init__(scheduler, name)
        self.number = number
        self.text = text
        self.alone = bool(text)
        self.job_id = job_id
        self.queue_status = JobStatus(State.unknown, "being submitted")
        self.misses = 0
        self._queue = queue
        self._lifetime = lifetime
        self._running_since: float | None = None

    async def start(self) -> None:
        if self.job_id:
            self._queue.add(self, self.job_id)
            self._queue._watch()
        else:
            await self._queue.submit(self)
        await super().start()

    async def close(self) -> None:
        """Cancel the job."""
        if self.job_id and not self._ended.is_set():
            self._queue.cancel(self.job_id)
        await self._queue.settle()
        await super().close()

    @property
    def lived(self) -> float:
        """Seconds that it has been running."""
        return 0.0 if self._running_since is None else time.monotonic() - self._running_since

    def on_status(self, status: JobStatus) -> None:
        """The queue has said something about the job."""
        if status.state is State.running and self._running_since is None:
            self._running_since = time.monotonic()
        self.queue_status = status
        if status.state not in (State.done, State.failed):
            return
        self.renew = self._lifetime is not None and self.lived >= 0.9 * self._lifetime
        if status.state is State.failed and not self.renew:
            self.failure = f"job {self.job_id} ended: {status}{self._tail()}"
        self.status = Status.closed
        self._ended.set()

    def waiting_for(self) -> str:
        if self.queue_status.state is State.running:
            return ""
        return f"job {self.job_id or '?'} is {self.queue_status}"

    def logs(self) -> str:
        """The job's output, from where the queue writes it."""
        return "".join(path.read_text(errors="replace") for path in self._log_files())

    def _log_files(self) -> list[Path]:
        id = self.job_id.replace("[", "[[]")
        folders = {self._queue.log_directory, self._queue.folder}  # some PBS go by where the job was submitted
        task = id.replace("[[]", ".").replace("]", "")  # of an array job, as PBS writes it behind the job's name
        patterns = (f"*-{id}.out", f"{id}.out", f"*.[oe]{task}", f"{id}*.O[UE]")
        return sorted({path for pattern in patterns for folder in folders for path in folder.glob(pattern)})

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            for path in self._log_files():
                lines = path.read_text(errors="replace").rstrip().splitlines()[-TAIL:]
                if lines:
                    return "; the end of " + str(path) + ":\n" + "\n".join(f"    {line}" for line in lines)
        return ""


class SchedulerJob(Job):
    """The scheduler as a job; it writes the scheduler file.

    Attributes
    ----------
    security
        With the token that the file says, once it runs.
    """

    def __init__(self, *, queue: Queue, file: Path, timeout: float, text: str = "", job_id: str = "") -> None:
        super().__init__(None, queue=queue, number=-1, name="scheduler", text=text, job_id=job_id)
        self._file, self._timeout = file, timeout
        self.security: Security | None = None

    async def start(self) -> None:
        """Submit the job and wait until the scheduler runs.

        Raises
        ------
        DaskfleetError
            The job has died, or still waits after so long; the message says what the queue says.
        """
        await super().start()
        deadline = asyncio.get_running_loop().time() + self._timeout
        while not self._file.exists():
            if self._ended.is_set():
                raise DaskfleetError(f"the scheduler's {self.failure or f'job {self.job_id} has ended'}")
            if asyncio.get_running_loop().time() > deadline:
                raise DaskfleetError(f"no scheduler within {self._timeout:g} s: its {self.waiting_for()}")
            await asyncio.sleep(0.1)
        info = scheduler_file.read(str(self._file))
        self.address, self.security = info.address, info.security
