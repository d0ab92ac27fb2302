"""Servers in a session with another process: what an SSH login and a process of our own have in common.

The other end is `daskfleet.deploy.remote`, which reads on standard input what to run, answers on standard output, logs
on standard error, and lives as long as its standard input. How such a process comes to be is a `Place`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from daskfleet.deploy.process import ProcessInterface
from daskfleet.deploy.remote import order
from daskfleet.deploy.scheduler_link import RemoteLink
from daskfleet.deploy.status import Status
from daskfleet.exceptions import DaskfleetError
from daskfleet.security import TOKEN_VARIABLE, Security

#: Seconds for a session: logging in, starting Python, the server being up.
TIMEOUT = 60.0
#: Characters of the log that are kept of each process: its last lines.
LOG_LENGTH = 4 << 20
#: Lines of it that an error shows: what launchers say of a failure takes most of them.
TAIL = 20
#: Bytes after which a log line without an end is taken for one.
LONGEST_LINE = 1 << 16
#: The module at the other end.
REMOTE = "daskfleet.deploy.remote"


class Pipe(Protocol):
    """A process that runs `REMOTE` somewhere, and the way to it."""

    stdin: Any
    stdout: Any
    stderr: Any

    async def ended(self) -> str:
        """Wait for the end of the process; how it failed, ``""`` if it did not."""

    async def close(self) -> None:
        """Give up the way there; the process ends by it, if it has not yet."""


class Place(Protocol):
    """Where sessions can be had; its text is for messages."""

    async def open(self) -> Pipe:
        """Start `REMOTE` there."""


@dataclass(frozen=True)
class Here:
    """Processes of this machine, by a Python of it."""

    python: str = sys.executable

    def __str__(self) -> str:
        return "here"

    async def open(self) -> Pipe:
        pipe = asyncio.subprocess.PIPE
        command = [self.python, "-u", "-m", REMOTE]
        return _Child(self.python, await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe))


class _Child:
    def __init__(self, python: str, process: asyncio.subprocess.Process) -> None:
        self._python, self._process = python, process
        self.stdin, self.stdout, self.stderr = process.stdin, process.stdout, process.stderr

    async def ended(self) -> str:
        status = await self._process.wait()
        return f"{self._python} ended with status {status}" if status else ""

    async def close(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


class Session(ProcessInterface):
    """One session with servers in it.

    Parameters
    ----------
    place
        Where.
    on_line
        Called with each line of its log.
    """

    def __init__(
        self,
        scheduler: str | None = None,
        *,
        place: Place,
        name: Any = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(scheduler, name)
        self.place = place
        self._lines: collections.deque[str] = collections.deque()
        self._length = 0
        self._on_line = on_line
        self._pipe: Pipe | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._up: asyncio.Future[list[dict[str, Any]]] | None = None

    def servers(self) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        """What the session is to run (see `daskfleet.deploy.remote.order`)."""
        raise NotImplementedError

    def logs(self) -> str:
        return "\n".join(self._lines)

    async def start(self) -> None:
        """Open the session and start the servers.

        Raises
        ------
        DaskfleetError
            The way there, Python or a server failed; the message says where and why.
        """
        try:
            async with asyncio.timeout(TIMEOUT):
                self._pipe = await self.place.open()
                self._up = asyncio.get_running_loop().create_future()
                self._tasks = [asyncio.create_task(self._hear()), asyncio.create_task(self._read_log())]
                level = min(logging.INFO, logging.getLogger("daskfleet").getEffectiveLevel())
                self._pipe.stdin.write(order(self.servers(), level))
                answers = await self._up
        except TimeoutError:
            await self.close()
            raise DaskfleetError(f"{self.place}: not up within {TIMEOUT:g} s{self._tail()}") from None
        except DaskfleetError as error:
            await self.close()
            raise DaskfleetError(f"{self.place}: {error}") from None
        self.address = answers[0]["address"]
        await super().start()

    def _tail(self) -> str:
        lines = list(self._lines)[-TAIL:]
        return ": " + "\n".join(lines) if lines else ""

    async def _hear(self) -> None:
        """Read the session's answers until it ends."""
        assert self._pipe is not None and self._up is not None
        failure = ""
        while line := await self._pipe.stdout.readline():
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                failure = message.get("failed") or message.get("ended") or failure
                if "up" in message and not self._up.done():
                    self._up.set_result(message["up"])
        how = await self._pipe.ended()
        await asyncio.wait(self._tasks[1:], timeout=2)
        if not self._up.done():
            self._up.set_exception(DaskfleetError(failure or f"{how or 'ended before it was up'}{self._tail()}"))
            self._up.exception()
        failure = failure or how
        self.failure = f"{failure}{self._tail()}" if failure and self.status is not Status.closing else ""
        self.status = Status.closed
        await self._pipe.close()
        self._ended.set()

    async def _read_log(self) -> None:
        """Keep the lines. What tasks print is among them, so there may be gigabytes of it, and no end of a line."""
        assert self._pipe is not None
        rest = b""
        while piece := await self._pipe.stderr.read(LONGEST_LINE):
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) >= LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            self._on_log(lines)
        self._on_log([rest] if rest else [])

    def _on_log(self, lines: list[bytes]) -> None:
        for raw in lines:
            line = raw.decode(errors="replace")
            self._lines.append(line)
            self._length += len(line) + 1
            while self._length > LOG_LENGTH:
                self._length -= len(self._lines.popleft()) + 1
            if self._on_line is not None:
                self._on_line(line)

    async def close(self) -> None:
        """End the session, and with it what runs there."""
        if self._pipe is not None:
            if self.status is not Status.closed:
                self.status = Status.closing
                with contextlib.suppress(OSError):
                    self._pipe.stdin.write_eof()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(10):
                        await self.finished()
            await self._pipe.close()
        await super().close()


class Scheduler(Session):
    """The scheduler's session."""

    def __init__(self, *, options: dict[str, Any], security: Security | None = None, **where: Any) -> None:
        super().__init__(name="scheduler", **where)
        self._options = {"port": 0, "security": security, **options}
        if not isinstance(self._options.get("dashboard_address", ""), str):
            self._options["dashboard_address"] = None

    def servers(self) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        return [("daskfleet.Scheduler", (), self._options)]


class Worker(Session):
    """A session with workers, each with its nanny."""

    def __init__(
        self,
        scheduler: str,
        *,
        worker_class: Any,
        options: dict[str, Any],
        group: Sequence[str] = (),
        security: Security | None = None,
        **where: Any,
    ) -> None:
        super().__init__(scheduler, **where)
        self._class, self._group = worker_class, list(group) or [""]
        self._options = {"security": security, **options}

    def servers(self) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        return [
            (self._class, (self.scheduler,), {**self._options, "name": f"{self.name}{suffix}"})
            for suffix in self._group
        ]


class Command(Session):
    """A session that runs ``python -m MODULE ARGUMENTS``: what ``dask-ssh`` starts.

    Parameters
    ----------
    answers_at
        Address at which a scheduler must answer before it counts as started.
    """

    def __init__(
        self,
        scheduler: str | None = None,
        *,
        module: str,
        arguments: Sequence[str],
        security: Security | None = None,
        answers_at: str = "",
        **where: Any,
    ) -> None:
        super().__init__(scheduler, **where)
        self._module, self._arguments = module, list(arguments)
        self._security = security or Security()
        self._answers_at = answers_at

    def servers(self) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        env = {TOKEN_VARIABLE: self._security.token} if self._security.token else {}
        arguments = [self.scheduler, *self._arguments] if self.scheduler else self._arguments
        return [("daskfleet.deploy.remote.Module", tuple(arguments), {"module": self._module, "env": env})]

    async def start(self) -> None:
        await super().start()
        self.address = self._answers_at or None
        deadline = asyncio.get_running_loop().time() + TIMEOUT
        while self._answers_at:
            link = RemoteLink(self._answers_at, self._security)
            try:
                await link.identity()
                return
            except OSError as error:
                if self.status is Status.closed or asyncio.get_running_loop().time() > deadline:
                    why = self.failure or error
                    await self.close()
                    raise DaskfleetError(f"{self.place}: the scheduler does not answer: {why}{self._tail()}") from None
                await asyncio.sleep(0.1)
            finally:
                link.close()
