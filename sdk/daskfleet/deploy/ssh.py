"""`SSHCluster`: a scheduler and workers on machines that one can log in to.

Each process is one SSH session that runs `daskfleet.deploy.remote`, which ends with the session. The first host is the
scheduler's; the others are a pool over which workers are spread, one process tree a session with as many workers in it
as ``n_workers`` says.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from daskfleet.deploy.cluster import Status
from daskfleet.deploy.process import ProcessInterface
from daskfleet.deploy.remote import order
from daskfleet.deploy.scheduler_link import RemoteLink
from daskfleet.deploy.spec import SpecCluster
from daskfleet.exceptions import DaskfleetError
from daskfleet.security import TOKEN_VARIABLE, Security

if TYPE_CHECKING:
    import asyncssh

logger = logging.getLogger(__name__)

#: Seconds for a session: logging in, starting Python, the server being up.
TIMEOUT = 60.0
#: Log lines that are kept of each process.
LOG_LINES = 10_000
#: Sessions that are being opened at a time: sshd refuses more than about ten that have not logged in yet.
LOGINS = 6

_GROUP = re.compile(r"\{([^{}]*)\}|\[([0-9,-]+)\](?=$|[^:\]])")


def expand_hosts(text: str) -> list[str]:
    """The hosts of ``node{1,2}``, ``10.0.0.{1..4}`` or ``node[08-11]`` (what queues write), in order."""
    parts: list[list[str]] = []
    end = 0
    for match in _GROUP.finditer(text):
        parts += [[text[end : match.start()]], list(_alternatives(match))]
        end = match.end()
    parts.append([text[end:]])
    if "{" in text[end:] or "}" in text[end:]:
        raise ValueError(f"host {text!r}: its braces do not match; expected something like node{{1,2}}")
    return ["".join(combination) for combination in product(*parts)]


def _alternatives(match: re.Match[str]) -> Iterator[str]:
    braces, brackets = match.groups()
    for item in (braces if braces is not None else brackets).split(","):
        low, sep, high = item.partition(".." if braces is not None else "-")
        if sep and low.isdecimal() and high.isdecimal():
            yield from (str(number).zfill(len(low)) for number in range(int(low), int(high) + 1))
        else:
            yield item


class Process(ProcessInterface):
    """One SSH session with servers in it.

    Parameters
    ----------
    host, connect_options
        Where, and keyword arguments of `asyncssh.connect`.
    remote_python
        The Python there.
    on_line
        Called with each line of the remote log.
    """

    def __init__(
        self,
        scheduler: str | None = None,
        *,
        host: str,
        connect_options: dict[str, Any],
        remote_python: str | None,
        name: Any = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(scheduler, name)
        self.host = host
        self._connect_options = dict(connect_options)
        self._python = remote_python or sys.executable
        self._lines: collections.deque[str] = collections.deque(maxlen=LOG_LINES)
        self._on_line = on_line
        self._connection: asyncssh.SSHClientConnection | None = None
        self._process: asyncssh.SSHClientProcess[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._up: asyncio.Future[list[dict[str, Any]]] | None = None

    def servers(self) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        """What the session is to run (see `daskfleet.deploy.remote.order`)."""
        raise NotImplementedError

    def logs(self) -> str:
        return "\n".join(self._lines)

    async def start(self) -> None:
        """Log in and start the servers.

        Raises
        ------
        DaskfleetError
            Logging in, Python or a server failed; the message says on which host and why.
        """
        try:
            async with asyncio.timeout(TIMEOUT):
                self._connection = await _login(self.host, self._connect_options)
                self._process = await self._connection.create_process(
                    f"exec {shlex.quote(self._python)} -u -m daskfleet.deploy.remote", encoding=None
                )
                self._up = asyncio.get_running_loop().create_future()
                self._tasks = [asyncio.create_task(self._hear()), asyncio.create_task(self._read_log())]
                level = min(logging.INFO, logging.getLogger("daskfleet").getEffectiveLevel())
                self._process.stdin.write(order(self.servers(), level))
                answers = await self._up
        except TimeoutError:
            await self.close()
            raise DaskfleetError(f"{self.host}: not up within {TIMEOUT:g} s{self._tail()}") from None
        except DaskfleetError as error:
            await self.close()
            raise DaskfleetError(f"{self.host}: {error}") from None
        self.address = answers[0]["address"]
        await super().start()

    def _tail(self) -> str:
        lines = list(self._lines)[-10:]
        return ": " + "\n".join(lines) if lines else ""

    async def _hear(self) -> None:
        """Read the session's answers until it ends."""
        assert self._process is not None and self._up is not None
        failure = ""
        while line := await self._process.stdout.readline():
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                failure = message.get("failed") or message.get("ended") or failure
                if "up" in message and not self._up.done():
                    self._up.set_result(message["up"])
        with contextlib.suppress(OSError):
            await self._process.wait_closed()
        await asyncio.wait(self._tasks[1:], timeout=2)
        status = self._process.exit_status
        signalled = self._process.exit_signal
        if not failure and (status or status is None):
            how = f"ended with status {status}" if status is not None else f"was killed ({signalled or 'lost'})"
            failure = f"{self._python} {how}{self._tail()}"
        if not self._up.done():
            self._up.set_exception(DaskfleetError(failure or f"ended before it was up{self._tail()}"))
            self._up.exception()
        self.failure = "" if self.status is Status.closing else failure
        self.status = Status.closed
        if self._connection is not None:
            self._connection.close()
        self._ended.set()

    async def _read_log(self) -> None:
        assert self._process is not None
        while raw := await self._process.stderr.readline():
            line = raw.decode(errors="replace").rstrip("\n")
            self._lines.append(line)
            if self._on_line is not None:
                self._on_line(line)

    async def close(self) -> None:
        """End the session, and with it what runs there."""
        if self._process is None:
            if self._connection is not None:
                self._connection.close()
            await super().close()
            return
        if self.status is not Status.closed:
            self.status = Status.closing
            with contextlib.suppress(OSError):
                self._process.stdin.write_eof()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.finished(), 10)
        assert self._connection is not None
        self._connection.close()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(self._connection.wait_closed(), 5)
        await super().close()


_logins: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


async def _login(host: str, options: dict[str, Any]) -> asyncssh.SSHClientConnection:
    """Log in; a server that is only busy (``MaxStartups``) is asked again. Raises `DaskfleetError` with what to do."""
    try:
        import asyncssh
    except ImportError:
        raise DaskfleetError("SSH needs asyncssh: pip install 'daskfleet[ssh]'") from None
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    limit = _logins.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(LOGINS))
    for attempt in range(4):
        try:
            async with limit:
                return await asyncssh.connect(host, **{"keepalive_interval": 15, **options})
        except asyncssh.PermissionDenied as error:
            raise DaskfleetError(
                f"cannot log in: {error.reason}. Which user, key and port? See connect_options"
            ) from None
        except asyncssh.HostKeyNotVerifiable as error:
            raise DaskfleetError(
                f"the host's key is not known: {error.reason}. Log in once by ssh and accept it, or give "
                'connect_options={"known_hosts": None} to trust every host'
            ) from None
        except asyncssh.ConnectionLost as error:
            if attempt == 3:
                raise DaskfleetError(f"the SSH server hung up: {error.reason}") from None
        except asyncssh.Error as error:
            raise DaskfleetError(f"SSH: {error.reason}") from None
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error
            raise DaskfleetError(f"cannot connect by SSH: {reason}") from None
        await asyncio.sleep(0.3 * 2**attempt)
    raise AssertionError


class Scheduler(Process):
    """The scheduler's session."""

    def __init__(self, *, options: dict[str, Any], security: Security | None = None, **where: Any) -> None:
        super().__init__(name="scheduler", **where)
        self._options = {"port": 0, "security": security, **options}
        if not isinstance(self._options.get("dashboard_address", ""), str):
            self._options["dashboard_address"] = None

    def servers(self) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        return [("daskfleet.Scheduler", (), self._options)]


class Worker(Process):
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


class Command(Process):
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
                    raise DaskfleetError(f"{self.host}: the scheduler does not answer: {why}{self._tail()}") from None
                await asyncio.sleep(0.1)
            finally:
                link.close()


class SSHCluster(SpecCluster):
    """A cluster on machines that one can log in to by SSH.

    Everything runs inside SSH sessions of this process and ends with them, so nothing is left behind, not even when
    this process is killed.

    Parameters
    ----------
    hosts
        The scheduler's host, then those of the workers: one that is named twice gets two. ``node{1,2}`` stands for
        several. `scale` spreads further workers over the same hosts.
    connect_options
        Keyword arguments of `asyncssh.connect` (``username``, ``client_keys``, ``port``, ``known_hosts`` …), the same
        for all hosts or a list with one for each.
    worker_options
        Keyword arguments of `worker_class`; ``n_workers`` says how many of them each host gets.
    scheduler_options
        Keyword arguments of `daskfleet.Scheduler`; port 0, which is any free one, by default.
    worker_class
        ``"daskfleet.Nanny"`` by default.
    remote_python
        The Python there, or a list with one for each host; by default the path of this one.

    Raises
    ------
    ValueError
        There are no hosts.
    RuntimeError
        A list does not have one entry for each host.
    DaskfleetError
        A process could not be started; the message says on which host and why.

    Examples
    --------
    >>> cluster = SSHCluster(  # doctest: +SKIP
    ...     ["login", "node1", "node2"],
    ...     connect_options={"known_hosts": None},
    ...     worker_options={"nthreads": 2, "n_workers": 4},
    ... )
    """

    def __init__(
        self,
        hosts: Sequence[str] | None = None,
        connect_options: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        worker_options: dict[str, Any] | None = None,
        scheduler_options: dict[str, Any] | None = None,
        worker_class: Any = "daskfleet.Nanny",
        remote_python: str | Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> None:
        self.hosts = [each for host in hosts or () for each in expand_hosts(host)]
        if not self.hosts:
            raise ValueError(
                'SSHCluster: give hosts, such as ["login", "node1", "node2"]; the first is the scheduler\'s'
            )
        self._where = [
            {"host": host, "connect_options": options or {}, "remote_python": python}
            for host, options, python in zip(
                self.hosts,
                _for_each(self.hosts, connect_options, "connect_options"),
                _for_each(self.hosts, remote_python, "remote_python"),
                strict=True,
            )
        ]
        options = dict(worker_options or {})
        self._per_host = int(options.pop("n_workers", None) or options.pop("nworkers", None) or 1)
        self._pool = self._where[1:] or self._where
        self._class, self._worker_options = worker_class, options
        template = self._spec(self._pool[0])
        workers = {number: self._spec(where) for number, where in enumerate(self._where[1:])}
        scheduler = {"cls": Scheduler, "options": {**self._where[0], "options": dict(scheduler_options or {})}}
        super().__init__(workers, scheduler, template, **kwargs)

    def _spec(self, where: dict[str, Any]) -> dict[str, Any]:
        group = [f"-{number}" for number in range(self._per_host)] if self._per_host > 1 else []
        options = {**where, "worker_class": self._class, "options": self._worker_options, "group": group}
        return {"cls": Worker, "options": options} | ({"group": group} if group else {})

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        """One more session, on the host that has the fewest for how often it is named."""
        used = collections.Counter(spec["options"]["host"] for spec in self.worker_spec.values())
        named = collections.Counter(where["host"] for where in self._pool)
        where = min(self._pool, key=lambda where: used[where["host"]] / named[where["host"]])
        return dict.fromkeys(super().new_worker_spec(), self._spec(where))

    def _threads_per_worker(self) -> int:
        if not self._worker_options.get("nthreads"):
            raise ValueError("scaling by cores needs worker_options with nthreads: the hosts may differ")
        return int(self._worker_options["nthreads"])


def _for_each(hosts: list[str], given: Any, what: str) -> list[Any]:
    if given is None or isinstance(given, (str, dict)):
        return [given] * len(hosts)
    values = list(given)
    if len(values) != len(hosts):
        raise RuntimeError(
            f"{what} has {len(values)} entries for {len(hosts)} hosts: give one for each, or a single one"
        )
    return values
