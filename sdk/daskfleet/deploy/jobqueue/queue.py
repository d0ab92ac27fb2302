"""One conversation with a batch system for all jobs of a cluster: `Queue`.

Jobs that are asked for at the same moment become one array job where the system has those, so that a hundred workers
are one command; jobs that are to end at the same moment are cancelled by one command; and one listing in a while tells
the state of all. The listing is asked for often while something is about to change, and rarely while nothing does.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskfleet.deploy.jobqueue.system import JobStatus, State, System
from daskfleet.exceptions import DaskfleetError

if TYPE_CHECKING:
    from daskfleet.deploy.jobqueue.job import Job

logger = logging.getLogger(__name__)

#: Seconds that a command of the batch system may take.
TIMEOUT = 60.0
#: Seconds between two listings: at first, and at most.
POLL = (0.5, 10.0)
#: How often in a row a job may be missing in the listing before it counts as ended: queues forget for a moment.
MISSES = 2


async def call(command: Sequence[str], stdin: bytes | None = None, folder: Path | None = None) -> str:
    """Run a command of the batch system: what it says.

    Raises
    ------
    DaskfleetError
        With what it says on standard error, or what to do when it is not there.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=folder,
        )
    except FileNotFoundError:
        raise DaskfleetError(f"no command {command[0]} here: run this where jobs can be submitted from") from None
    try:
        async with asyncio.timeout(TIMEOUT):
            output, errors = await process.communicate(stdin)
    except TimeoutError:
        process.kill()
        raise DaskfleetError(f"{command[0]} has not answered for {TIMEOUT:g} s") from None
    if process.returncode:
        said = (errors or output).decode(errors="replace").strip()
        raise DaskfleetError(f"{command[0]}: {said or f'exit status {process.returncode}'}")
    return output.decode(errors="replace")


class Queue:
    """The jobs of one cluster.

    Parameters
    ----------
    script
        Makes the text of a job from its name and the bounds of its array (``""`` for none).
    folder
        The cluster's own, where scripts and ``jobs.json`` (name of each job, and its id) are.
    log_directory
        Where jobs write their output.
    arrays
        Whether to make array jobs where the system has them.
    by_stdin
        Whether scripts go to the standard input of the command that submits them.
    submit_extra, cancel_extra
        More arguments of the commands that submit and cancel.
    """

    def __init__(
        self,
        system: System,
        script: Callable[[str, str], str],
        folder: Path,
        log_directory: Path,
        *,
        arrays: bool = True,
        by_stdin: bool = False,
        submit_extra: Sequence[str] = (),
        cancel_extra: Sequence[str] = (),
    ) -> None:
        self.system = system
        self.folder = folder
        self.log_directory = log_directory
        self.jobs: dict[str, Job] = {}
        self._script = script
        self._arrays = arrays and bool(system.array_variable)
        self._by_stdin = by_stdin
        self._submit = [*system.submit, *submit_extra]
        self._cancel_extra = list(cancel_extra)
        self._waiting: list[tuple[Job, asyncio.Future[None]]] = []
        self._ending: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()

    # -------------------------------------------------------------------------------------------------- submitting

    async def submit(self, job: Job) -> None:
        """Submit a job, together with all others of this moment; returns when it has an id."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, done))
        if len(self._waiting) == 1:
            self._spawn(self._submit_waiting())
        await done

    async def _submit_waiting(self) -> None:
        await asyncio.sleep(0)
        waiting, self._waiting = self._waiting, []
        jobs = dict(waiting)
        limit = asyncio.Semaphore(8)

        async def one(batch: list[Job]) -> str:
            try:
                async with limit:
                    await self._submit_batch(batch)
            except (DaskfleetError, OSError, ValueError) as error:
                # Does the queue refuse these jobs, or array jobs? The first one by itself shows it.
                refusal = str(error) if len(batch) == 1 else await one(batch[:1])
                rest = batch[1:] or batch
                if not refusal:
                    self._arrays = False
                    await asyncio.gather(*(one([job]) for job in rest))
                    return ""
                for job in rest:
                    jobs[job].set_exception(DaskfleetError(refusal))
                return refusal
            for job in batch:
                jobs[job].set_result(None)
            return ""

        await asyncio.gather(*(one(batch) for batch in self._batches(list(jobs))))
        self._note()
        self._watch()

    def _batches(self, jobs: list[Job]) -> list[list[Job]]:
        """Runs of successive numbers, which can be an array each; single jobs where there are no arrays."""
        batches: list[list[Job]] = []
        for job in sorted(jobs, key=lambda job: job.number):
            last = batches[-1][-1] if batches else None
            if (
                self._arrays
                and last is not None
                and last.number + 1 == job.number
                and last.number >= self.system.array_first
                and last.alone is job.alone is False
            ):
                batches[-1].append(job)
            else:
                batches.append([job])
        return batches

    async def _submit_batch(self, batch: list[Job]) -> None:
        first, last = batch[0], batch[-1]
        array = f"{first.number}-{last.number}" if len(batch) > 1 else ""
        text = first.text or self._script(str(first.name), array)
        path = self.folder / f"{first.name}{'-array' if array else ''}.job"
        path.write_text(text)
        path.chmod(0o700)
        # Jobs write their output, and some queues look for it, relative to where they were submitted.
        if self._by_stdin:
            answer = await call(self._submit, text.encode(), self.folder)
        else:
            answer = await call([*self._submit, str(path)], None, self.folder)
        id = self.system.job_id(answer)
        for job in batch:
            self.add(job, self.system.task_id(id, job.number) if array else id)

    def add(self, job: Job, id: str) -> None:
        """Follow a job from now on."""
        job.job_id = id
        self.jobs[id] = job

    # -------------------------------------------------------------------------------------------------- cancelling

    def cancel(self, id: str) -> None:
        """End a job, together with all others of this moment. Returns at once; see `settle`."""
        self.jobs.pop(id, None)
        self._ending.append(id)
        if len(self._ending) == 1:
            self._spawn(self._cancel_ending())

    async def _cancel_ending(self) -> None:
        await asyncio.sleep(0)
        ids, self._ending = self._ending, []
        words = len(self.system.cancel)
        for command in self.system.cancel_arguments(ids):
            try:
                await call([*command[:words], *self._cancel_extra, *command[words:]])
            except DaskfleetError as error:
                logger.info("%s", error)  # most often: it has just ended by itself
        self._note()

    async def settle(self) -> None:
        """Wait until all that was to be submitted or cancelled is."""
        while tasks := [task for task in self._tasks if task is not asyncio.current_task()]:
            await asyncio.wait(tasks)

    def close(self) -> None:
        """Follow nothing any more."""
        if self._poller is not None:
            self._poller.cancel()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------------------------------------------ following

    def _note(self) -> None:
        """Write down which jobs there are, for `from_name`."""
        temporary = self.folder / ".jobs.json"
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps({str(job.name): id for id, job in self.jobs.items()}))
            os.replace(temporary, self.folder / "jobs.json")

    def noted(self) -> dict[str, str]:
        """``{name: id}`` of what was written down."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((self.folder / "jobs.json").read_text()))
        return {}

    def _watch(self) -> None:
        self._soon.set()
        if self._poller is None or self._poller.done():
            self._poller = asyncio.ensure_future(self._poll())

    async def _poll(self) -> None:
        pause = POLL[0]
        while self.jobs:
            self._soon.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._soon.wait()
                pause = POLL[0]
                await asyncio.sleep(pause)
            try:
                changed = await self.look()
            except (DaskfleetError, OSError, ValueError) as error:
                logger.warning("cannot ask %s for its jobs: %s", self.system.title, error)
                changed = False
            pause = POLL[0] if changed else min(1.5 * pause, POLL[1])

    async def look(self) -> bool:
        """Ask for the state of all jobs; whether any has changed."""
        before = {id: job.queue_status for id, job in self.jobs.items()}
        if not before:
            return False
        try:
            listed = self.system.statuses(await call(self.system.query(getpass.getuser(), list(before))))
        except DaskfleetError as error:
            if not self.system.forgotten(str(error)):
                raise
            listed = {}
        for id in before:
            job = self.jobs.get(id)
            if job is None:
                continue
            status = listed.get(id)
            if status is None:
                job.misses += 1
                status = await self._post_mortem(id, job) if job.misses >= MISSES else None
            else:
                job.misses = 0
            if status is not None:
                job.on_status(status)
                if status.state in (State.done, State.failed):
                    self.jobs.pop(id, None)
        return any(job.queue_status != before.get(id) for id, job in self.jobs.items()) or len(self.jobs) != len(before)

    async def _post_mortem(self, id: str, job: Job) -> JobStatus | None:
        """How a job has ended that is listed no more; accounting may lag behind by some seconds."""
        if command := self.system.post_mortem(id):
            with contextlib.suppress(DaskfleetError):
                found = self.system.read_post_mortem(await call(command))
                if found is not None:
                    return found
        if job.misses < 4 * MISSES:
            return None
        return JobStatus(State.failed, "gone", f"{self.system.title} lists it no more and does not say why")
