"""The nanny: keeps one worker process alive, within its memory, and tells how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from daskfleet import config, system
from daskfleet.exceptions import DaskfleetError
from daskfleet.functions import run_function
from daskfleet.http.logs import ring
from daskfleet.preload import Preloads
from daskfleet.protocol.serialize import loads
from daskfleet.security import Security
from daskfleet.worker.folder import remove_if_dead, share
from daskfleet.worker.link import AGAIN, Lines, NannyPlugins, pack, say, unpack
from daskfleet.worker.memory import Thresholds, own_memory, resident_memory

logger = logging.getLogger(__name__)

#: Seconds between looks at the worker's memory.
WATCH = 0.2
#: Seconds between a worker's death and the next attempt: doubled with each death in a row, up to the last, unless it
#: has lived for so long.
BACKOFF, STEADY = (0.05, 10.0), 1.0
#: Seconds that a worker may take to hand over its data when told to stop.
GRACE = 28.0


class Nanny:
    """Runs a `daskfleet.worker.server.Worker` in a process of its own and starts it anew when it dies.

    Awaitable, and an asynchronous context manager. The parameters are those of `Worker`.

    Parameters
    ----------
    worker_port
        Another name of the worker's `port`; the nanny has none of its own.
    env
        Environment variables for the worker's process.
    worker_class
        Instead of `Worker`.
    preload_nanny, preload_nanny_argv
        Code to run in the nanny itself as it starts (`daskfleet.preload`), and arguments for it.
    """

    def __init__(
        self,
        scheduler_address: str | None = None,
        scheduler_port: int | None = None,
        *,
        worker_port: int | range | None = None,
        env: dict[str, str] | None = None,
        preload_nanny: str | Sequence[str] | None = None,
        preload_nanny_argv: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        if options.get("name") is None:
            options["name"] = f"worker-{uuid.uuid4().hex[:8]}"
        options["name"] = str(options["name"])
        if scheduler_port is not None:
            scheduler_address = f"{scheduler_address}:{scheduler_port}"
        if worker_port is not None:
            options["port"] = worker_port
        self.options = {"scheduler_address": scheduler_address, **options}
        nthreads = options.get("nthreads") or system.cpu_count()
        self.memory_limit = system.parse_memory_limit(options.get("memory_limit", "auto"), nthreads)
        self._terminate = Thresholds.configured().terminate or 0.0
        self.env = env or {}
        self.status = "init"
        self.pid: int | None = None
        self.worker_address = ""
        self._imported: set[str] = set()
        self._folder: int | None = None  # what keeps others from removing that of the worker
        self.deaths = 0
        self.exit_status: int | None = None
        self._failure = ""
        self._over_memory = False
        self._up: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()
        self._stopped = asyncio.Event()
        self.plugins = NannyPlugins(self)
        self.preloads = Preloads(self, preload_nanny, preload_nanny_argv, "nanny")
        self._lines = Lines()
        self._sending = asyncio.Lock()
        self._answering: set[asyncio.Task[None]] = set()
        ring()  # the last log lines are kept from now on

    @property
    def name(self) -> str:
        return str(self.options["name"])

    def __repr__(self) -> str:
        return f"<Nanny {self.name!r} {self.worker_address} {self.status}, pid {self.pid}>"

    async def start(self) -> Nanny:
        """Start the worker and wait until it has registered.

        Raises
        ------
        DaskfleetError
            The worker could not start, for a reason that another attempt would not mend.
        """
        await self.preloads.start()
        self.status = "starting"
        self._up = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep())
        await asyncio.shield(self._up)
        return self

    def __await__(self) -> Generator[Any, None, Nanny]:
        return self.start().__await__()

    async def __aenter__(self) -> Nanny:
        return self if self.status == "running" else await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def finished(self) -> None:
        """Wait until the worker has ended for good."""
        await self._finished.wait()

    async def close(self, timeout: float = GRACE) -> None:
        """Tell the worker to stop, give it `timeout` seconds to hand over its data, then end it."""
        if self.status == "closed":
            return
        self.status = "closing"
        self._stopped.set()
        await self.preloads.teardown()
        await self.plugins.close()
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout):
                await self._finished.wait()
        except TimeoutError:
            logger.warning("worker %s did not stop within %g s: killing it", self.name, timeout)
            self._signal(signal.SIGKILL)
            await self._finished.wait()

    async def kill(self) -> None:
        """End the worker's process at once; it is started anew."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    # ---------------------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Run worker after worker until one ends on purpose or cannot be started."""
        wait = BACKOFF[0]
        try:
            while True:
                started, oom_kills, self._over_memory = asyncio.get_running_loop().time(), _oom_kills(), False
                status = await self._run_once()
                if status == AGAIN and self.status != "closing":
                    continue
                if status in (0, 78) or self.status == "closing":
                    self.exit_status = status
                    return
                self.deaths += 1
                by_system = self._over_memory or _oom_kills() != oom_kills
                self.options["predecessor"] = "memory" if by_system else "killed" if status == -signal.SIGKILL else ""
                logger.warning("worker %s (pid %s) %s; starting it anew", self.name, self.pid, _how(status))
                if asyncio.get_running_loop().time() - started > STEADY:
                    wait = BACKOFF[0]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._stopped.wait()
                    return
                wait = min(2 * wait, BACKOFF[1])
        finally:
            self.status = "closed"
            self.pid = None
            self._keep_folder(None)
            if self._up is not None and not self._up.done():
                self._up.set_exception(DaskfleetError(self._failure or f"worker {self.name} ended before it was up"))
                self._up.exception()  # whoever waits gets it; nobody has to
            self._finished.set()

    async def _run_once(self) -> int:
        """Start one process and wait for its end: its exit status, negative for a signal."""
        ours, theirs = socket.socketpair()
        self._lines, self._anew = Lines(), False
        with ours:
            process: subprocess.Popen[bytes] | None = None
            if threading.active_count() == 1:
                self.pid = self._fork(ours, theirs)
            else:
                process = self._spawn(theirs)
                self.pid = process.pid
            theirs.close()
            ours.setblocking(False)
            watch = [asyncio.create_task(self._listen(ours)), asyncio.create_task(self._watch_memory(self.pid))]
            try:
                status = await _wait(self.pid, process)
            finally:
                for task in watch:
                    task.cancel()
                await asyncio.gather(*watch, return_exceptions=True)
            self._hear(ours)
            return AGAIN if self._anew else status

    def _keep_folder(self, folder: str | None) -> None:
        """The worker's folder is this one now, which the next worker goes on in if this one is killed."""
        before, kept = self.options.get("predecessors_folder"), self._folder
        self.options["predecessors_folder"] = folder
        self._folder = share(Path(folder)) if folder else None
        if kept is not None:
            os.close(kept)
        if before and before != folder:
            remove_if_dead(Path(before))

    def _fork(self, ours: socket.socket, theirs: socket.socket) -> int:
        from daskfleet.worker.process import become  # before the fork: imported once for all workers

        if self.deaths:
            self._import_what_it_had()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.environ.update(self._environment())
            become(self.options, theirs)
        return pid

    def _import_what_it_had(self) -> None:
        """A worker that dies every few seconds would spend its life importing pandas: the next is forked with it."""
        missing = [name for name in sorted(self._imported) if name not in sys.modules]
        if not missing:
            return
        before = dict(os.environ)
        os.environ.update(self._environment())  # numeric libraries look at it as they are imported
        try:
            for name in missing:
                importlib.import_module(name)
        except Exception as error:  # the worker will see for itself
            logger.info("cannot import what the worker had imported: %s", error)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "daskfleet.worker.process", str(theirs.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            env=os.environ | self._environment(),
        )
        assert process.stdin is not None
        with process.stdin as stream:
            stream.write(pickle.dumps((self.options, {"level": logging.getLogger("daskfleet").getEffectiveLevel()})))
        return process

    def _environment(self) -> dict[str, str]:
        """What is configured (``distributed.nanny.*environ``), unless it is set already, and what we were told."""
        configured = config.get("distributed.nanny.environ") | config.get("distributed.nanny.pre-spawn-environ")
        return {name: str(value) for name, value in configured.items() if name not in os.environ} | self.env

    async def _listen(self, pipe: socket.socket) -> None:
        """Hear what the worker says through the pipe, until it is gone."""
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(pipe, readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                if not self._hear(pipe):
                    return
        finally:
            loop.remove_reader(pipe)

    def _hear(self, pipe: socket.socket) -> bool:
        there, messages = self._lines.read(pipe)
        for message in messages:
            if "ask" in message:
                task = asyncio.create_task(self._answer(pipe, message))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
                continue
            if "imported" in message:
                self._imported.add(message["imported"])
                continue
            if "failed" in message:
                self._failure = message["failed"]
                continue
            self.worker_address = message["address"]
            self._keep_folder(message["folder"])
            if self.status == "starting":
                self.status = "running"
            if self._up is not None and not self._up.done():
                self._up.set_result(None)
        return there

    async def _answer(self, pipe: socket.socket, message: dict[str, Any]) -> None:
        asked: dict[str, Callable[..., Awaitable[Any]]] = {
            "plugin": self._change_plugin,
            "run": self._call,
            "logs": self._logs,
        }
        error = value = None
        try:
            value = await asked[message["ask"]](*message["args"])
        except Exception as reason:
            logger.exception("%s %s failed", message["ask"], message["args"][:1] if message["ask"] == "plugin" else "")
            error = f"{type(reason).__name__}: {reason}"
        if not self._anew:
            async with self._sending:
                await say(pipe, {"number": message["number"], "value": value, "error": error})

    async def _change_plugin(self, name: str, blob: str | None) -> None:
        if await self.plugins.change(name, blob):
            logger.info("worker %s starts anew for plugin %r", self.name, name)
            self._anew = True
            self._signal(signal.SIGTERM)

    async def _call(self, call: list[str], wait: bool) -> list[str]:
        """Run a function of the user's (`Client.run`)."""
        function, args, kwargs = loads(unpack(call))
        return pack(await run_function(function, args, kwargs, {"dask_worker": self}, wait))

    async def _logs(self) -> list[str]:
        security = self.options.get("security") or Security()
        return ring().text(security.token).splitlines()

    async def _watch_memory(self, pid: int) -> None:
        if not self.memory_limit or not self._terminate:
            return
        most = self._terminate * self.memory_limit
        while True:
            await asyncio.sleep(WATCH)
            with contextlib.suppress(OSError, IndexError):
                if resident_memory(pid) > most and (used := own_memory(pid)) > most:
                    logger.warning(
                        "worker %s (pid %d) uses %.2f GB, over %d %% of its limit of %.2f GB: killing it",
                        self.name, pid, used / 1e9, self._terminate * 100, self.memory_limit / 1e9,
                    )  # fmt: skip
                    self._over_memory = True
                    os.kill(pid, signal.SIGKILL)
                    return


def _oom_kills() -> str:
    """How many processes the system has ended for want of memory, as far as it says."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return line
    return ""


def _how(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


async def _wait(pid: int, process: subprocess.Popen[bytes] | None) -> int:
    """Wait for a child without a thread where the system can tell by a file descriptor (Linux)."""
    if hasattr(os, "pidfd_open"):
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        descriptor = os.pidfd_open(pid)
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return _collect(pid, process)  # at once, and without a thread: the nanny may want to fork again
    return await asyncio.to_thread(_collect, pid, process)


def _collect(pid: int, process: subprocess.Popen[bytes] | None) -> int:
    return process.wait() if process is not None else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
