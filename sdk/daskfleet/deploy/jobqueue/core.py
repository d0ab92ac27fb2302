"""`JobQueueCluster`: workers as jobs of a batch system, with dask-jobqueue's parameters and configuration.

Each job runs ``dask-worker`` with the cluster's scheduler file, which is in the cluster's own folder (mode 0700, in the
user's home unless `shared_temp_directory` says otherwise) and carries the token: so the script itself holds no secret
and can be shown. A job is a `ProcessInterface` like any other; what is special is in `Queue` (talking with the batch
system), `System` (in which language) and `script` (what a job consists of).

Workers are told a lifetime a little shorter than the walltime, so they hand over their data and leave before the queue
would kill them; the job that ends so is followed by another (`ProcessInterface.renew`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

from daskfleet import scheduler_file
from daskfleet.deploy import registry
from daskfleet.deploy.jobqueue import script as scripts
from daskfleet.deploy.jobqueue.job import Job, SchedulerJob
from daskfleet.deploy.jobqueue.queue import Queue
from daskfleet.deploy.jobqueue.script import Resources
from daskfleet.deploy.jobqueue.settings import configured
from daskfleet.deploy.jobqueue.system import JobStatus, System
from daskfleet.deploy.spec import SpecCluster
from daskfleet.scheduler.server import Scheduler
from daskfleet.security import Security

logger = logging.getLogger(__name__)


class JobQueueCluster(SpecCluster):
    """Workers as jobs of a batch system. Parameters have their defaults in ``jobqueue.<system>.…`` of dask's config.

    Parameters
    ----------
    n_workers
        Workers to ask for at once.
    cores, memory
        What a job has in all, for all of its workers together: threads, and bytes or a text such as ``"24 GB"``.
    processes
        Workers to cut a job into; about the square root of `cores` by default.
    interface, protocol, host, dashboard_address, scheduler_options
        For the scheduler (which has the last word with ``scheduler_options``), and the first two for the workers too.
    nanny, local_directory, death_timeout, worker_command, worker_extra_args, python
        How workers are run.
    job_name, job_script_prologue, job_script_epilogue, shebang, log_directory
        What a job is called, and what else is in its script.
    job_extra_directives, job_directives_skip
        Directives to add, and parts of those to leave out.
    queue, account, project, walltime, resource_spec, job_cpu, job_mem
        What to ask the batch system for; see the class of each.
    job_arrays
        Submit jobs that are asked for together as one array job, where the system has those.
    shared_temp_directory
        Folder that all nodes see, for the scheduler file; the user's home by default.
    scheduler_in_job
        Run the scheduler as a job of its own, which outlives this session with ``shutdown_on_close=False``;
        `from_name` finds it again. `scheduler_options` may then have ``cores, memory, walltime, queue`` besides.
    config_name
        Name of the section in the configuration.
    name, security, asynchronous, loop, silence_logs, shutdown_on_close
        As `SpecCluster` has them.

    Raises
    ------
    ValueError
        There are no `cores` or no `memory`, or a parameter is unknown.
    DaskfleetError
        The queue takes no job; the message is the queue's.
    """

    system: ClassVar[System] = System()
    reattaches = True

    def __init__(
        self,
        n_workers: int = 0,
        *,
        cores: int | None = None,
        memory: str | int | None = None,
        processes: int | None = None,
        config_name: str | None = None,
        host: str | None = None,
        dashboard_address: str | None = ":8787",
        protocol: str | None = None,
        scheduler_options: dict[str, Any] | None = None,
        name: str | None = None,
        security: Security | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        silence_logs: Any = False,
        shutdown_on_close: bool = True,
        **options: Any,
    ) -> None:
        from dask.utils import parse_bytes

        if type(self) is JobQueueCluster:
            raise TypeError("JobQueueCluster is the base of SLURMCluster and the others: use one of those")
        self.config_name = config_name or self.system.name
        given = {"cores": cores, "memory": memory, "processes": processes, **options}
        given |= {"scheduler_options": scheduler_options}
        self._settings = self._configured(dict(given))
        setting = self._settings.__getitem__
        if not setting("cores"):
            raise ValueError(f"{type(self).__name__}: say how many cores a job has, such as cores=8")
        if not setting("memory"):
            raise ValueError(f"{type(self).__name__}: say how much memory a job has, such as memory='24 GB'")
        self.cores, self.memory = int(setting("cores")), parse_bytes(setting("memory"))
        self.processes = int(setting("processes") or scripts.split(self.cores))
        if self.cores < self.processes:
            raise ValueError(f"processes={self.processes}: a job of {self.cores} cores cannot have that many workers")
        self._walltime = scripts.seconds(setting("walltime"), unit=self.system.walltime_unit)
        self._scheduler_settings = {
            "interface": setting("interface"), "dashboard_address": dashboard_address, "protocol": protocol,
            **({"host": host} if host else {}), **(setting("scheduler_options") or {}),
        }  # fmt: skip
        self._protocol = protocol and protocol.removesuffix("://")  # as dask-jobqueue has it
        self._n_workers = n_workers
        self._queue: Queue | None = None
        kept = {"n_workers": 0, "host": host, "dashboard_address": dashboard_address, "protocol": protocol}
        self._given = {**kept, "config_name": config_name, **{k: v for k, v in given.items() if v is not None}}
        super().__init__(
            name=name, security=security, asynchronous=asynchronous, loop=loop, silence_logs=silence_logs,
            shutdown_on_close=shutdown_on_close,
        )  # fmt: skip

    def _configured(self, given: dict[str, Any]) -> dict[str, Any]:
        """Parameters by their names with underscores (`daskfleet.deploy.jobqueue.settings`)."""
        return configured(type(self).__name__, self.config_name, self.system, given)

    def _options(self) -> dict[str, Any]:
        return self._given

    # ------------------------------------------------------------------------------------------------------- scripts

    @property
    def folder(self) -> Path:
        """The cluster's own, on all nodes: scheduler file, scripts, and logs unless `log_directory` says otherwise."""
        shared = self._settings["shared_temp_directory"]
        root = Path(shared) if shared else registry.folder().parent / "jobs"
        return root.expanduser() / self.name

    @property
    def log_directory(self) -> Path:
        given = self._settings["log_directory"]
        return Path(given).expanduser().absolute() if given else self.folder / "logs"

    @property
    def _file(self) -> Path:
        return self.folder / "scheduler.json"

    def _resources(self, **other: Any) -> Resources:
        from dask.utils import parse_bytes

        setting = self._settings.__getitem__
        extra = setting("job_extra_directives")
        if isinstance(extra, dict):  # as HTCondor's users write them
            extra = [f"{name} = {value}" for name, value in extra.items()]
        known = {
            "job_name": setting("name"), "cores": self.cores, "memory": self.memory, "walltime": setting("walltime"),
            "queue": setting("queue"), "account": setting("account"), "log_directory": str(self.log_directory),
            "resource_spec": setting("resource_spec"), "job_cpu": setting("job_cpu"), "job_mem": setting("job_mem"),
            "disk": parse_bytes(setting("disk")) if setting("disk") else None,
            "memory_property": setting("memory_per_core_property_name"), "extra": tuple(extra),
            "skip": tuple(setting("job_directives_skip")),
        }  # fmt: skip
        return Resources(**{**known, **other})

    def _script(self, name: str, array: str = "", command: str = "", resources: Resources | None = None) -> str:
        if array:
            name = f"{self.name}-${{{self.system.array_variable}}}"
        return self.system.script(
            resources or self._resources(),
            command or self._command(name),
            shebang=self._settings["shebang"],
            prologue=self._settings["job_script_prologue"],
            epilogue=self._settings["job_script_epilogue"],
            array=array,
        )

    def _command(self, name: str) -> str:
        setting = self._settings.__getitem__
        words = [setting("python") or sys.executable, "-m", setting("worker_command")]
        words += ["--scheduler-file", str(self._file), "--name", name]
        words += ["--nthreads", str(self.cores // self.processes), "--nworkers", str(self.processes)]
        words += ["--memory-limit", str(self.memory // self.processes)]
        words += ["--nanny" if setting("nanny") else "--no-nanny", "--death-timeout", str(setting("death_timeout"))]
        words += ["--interface", setting("interface")] if setting("interface") else []
        words += ["--protocol", self._protocol] if self._protocol else []
        words += ["--local-directory", setting("local_directory")] if setting("local_directory") else []
        extra = [str(argument) for argument in setting("worker_extra_args")]
        lifetime = scripts.lifetime(self._walltime)
        if lifetime and "--lifetime" not in extra:
            words += ["--lifetime", f"{lifetime:.0f}s"]
        return " ".join([*map(scripts.quote, words), *extra])

    def job_script(self) -> str:
        """The script of a job, as text. It holds no secret."""
        return self._script(f"{self.name}-0")

    # ---------------------------------------------------------------------------------------------------------- life

    async def _start(self) -> None:
        self._make_folder()
        setting = self._settings.__getitem__
        self._queue = Queue(
            self.system, self._script, self.folder, self.log_directory,
            arrays=bool(setting("job_arrays")), by_stdin=self.system.by_stdin and setting("use_stdin"),
            submit_extra=setting("submit_command_extra"), cancel_extra=setting("cancel_command_extra"),
        )  # fmt: skip
        group = [f"-{i}" for i in range(self.processes)] if self.processes > 1 else []
        self.new_spec = {"cls": Job} | ({"group": group} if group else {})
        if self._settings["scheduler_in_job"]:
            self.scheduler_spec = {"cls": SchedulerJob, "options": self._scheduler_job()}
        else:
            self.scheduler_spec = {"cls": Scheduler, "options": {"port": 0, **self._scheduler_settings}}
        for _ in range(math.ceil(self._n_workers / self.processes)):
            self.worker_spec.update(self.new_worker_spec())
        await super()._start()

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log_directory.mkdir(parents=True, exist_ok=True)

    def _scheduler_job(self) -> dict[str, Any]:
        options = dict(self._scheduler_settings)
        asked = {key: options.pop(key) for key in ("cores", "walltime", "queue") if key in options}
        if "memory" in options:
            from dask.utils import parse_bytes

            asked["memory"] = parse_bytes(options.pop("memory"))
        asked = {"cores": 1, "job_cpu": None, "job_name": f"{self._settings['name']}-scheduler", **asked}
        resources = self._resources(**asked)
        words = [self._settings["python"] or sys.executable, "-m", "daskfleet.cli.scheduler"]
        words += ["--scheduler-file", str(self._file), "--port", str(options.pop("port", 0))]
        if options.get("dashboard_address") is None:
            words.append("--no-dashboard")
        for key, value in options.items():
            words += [f"--{key.replace('_', '-')}", str(value)] if value else []
        text = self._script("scheduler", command=" ".join(map(scripts.quote, words)), resources=resources)
        timeout = self._settings["scheduler_start_timeout"]
        return {"queue": self._queue, "text": text, "file": self._file, "timeout": timeout}

    async def _connect(self, address: str) -> None:
        if isinstance(self.scheduler, SchedulerJob):
            self.security = self.scheduler.security
        await super()._connect(address)
        if isinstance(self.scheduler, Scheduler):
            scheduler_file.write(str(self._file), self._info, self.security or Security())

    async def _find_workers(self) -> None:
        assert self._queue is not None
        for name, id in self._queue.noted().items():
            if name == "scheduler":
                self.scheduler = SchedulerJob(queue=self._queue, text="-", job_id=id, file=self._file, timeout=10)
                await self.scheduler
                continue
            number = int(name.rpartition("-")[2])
            self.worker_spec[name] = {**(self.new_spec or {}), "options": {"job_id": id, "number": number}}
        await self._queue.look()

    async def _end_processes(self, workers: list[Any], link: Any) -> None:
        await super()._end_processes(workers, link)
        if self._queue is not None:
            await self._queue.settle()

    async def _stop(self) -> None:
        ended = self.shutdown_on_close or isinstance(self.scheduler, Scheduler)
        died = bool(self._false_starts)
        await super()._stop()
        if self._queue is not None:
            await self._queue.settle()
            self._queue.close()
        if ended and not died:
            shutil.rmtree(self.folder, ignore_errors=True)  # logs of jobs that died stay for whoever asks why
        elif ended:
            with contextlib.suppress(OSError):
                self._file.unlink()

    # ------------------------------------------------------------------------------------------------------ how many

    def _new_worker_name(self, number: int) -> str:
        return f"{self.name}-{number}"

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        ((name, spec),) = super().new_worker_spec().items()
        return {name: {**spec, "options": {"number": int(name.rpartition("-")[2])}}}

    def _make(self, name: Any, cls: Any, options: dict[str, Any]) -> Any:
        if cls is Job:
            options = {"queue": self._queue, "lifetime": scripts.lifetime(self._walltime), **options}
        return super()._make(name, cls, options)

    def _threads_per_worker(self) -> int:
        return self.cores // self.processes

    def _memory_per_worker(self) -> int:
        return self.memory // self.processes

    def scale(  # type: ignore[override]  # dask-jobqueue's second argument
        self,
        n: int | None = None,
        jobs: int | None = None,
        memory: str | int | None = None,
        cores: int | None = None,
    ) -> Any:
        """Ask for so many workers or jobs, or as many as have this memory or these cores together. Returns at once."""
        if jobs is not None:
            n = max(n or 0, jobs * self.processes)
        return super().scale(n, memory, cores)

    def adapt(
        self, *args: Any, minimum_jobs: int | None = None, maximum_jobs: int | None = None, **options: Any
    ) -> Any:
        """Let the load decide, between bounds in workers, jobs, cores or memory. Jobs that wait in the queue count."""
        if minimum_jobs is not None:
            options["minimum"] = minimum_jobs * self.processes
        if maximum_jobs is not None:
            options["maximum"] = maximum_jobs * self.processes
        return super().adapt(*args, **options)

    def jobs(self) -> dict[str, JobStatus]:
        """What the queue says of each job, by its name."""
        return {str(name): job.queue_status for name, job in self.workers.items()}
