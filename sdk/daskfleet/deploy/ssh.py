"""`SSHCluster`: a scheduler and workers on machines that one can log in to.

Each process is one SSH session that runs `daskfleet.deploy.remote`, which ends with the session. The first host is the
scheduler's; the others are a pool over which workers are spread, one process tree a session with as many workers in it
as ``n_workers`` says.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from daskfleet import system
from daskfleet.deploy.session import REMOTE, Pipe, Scheduler, Worker
from daskfleet.deploy.spec import SpecCluster
from daskfleet.exceptions import DaskfleetError

if TYPE_CHECKING:
    import asyncssh

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


@dataclass(frozen=True)
class Host:
    """A machine that one can log in to: a place for sessions.

    Attributes
    ----------
    host, connect_options
        Where, and keyword arguments of `asyncssh.connect`.
    python
        The Python there.
    """

    host: str
    connect_options: dict[str, Any] = field(default_factory=dict)
    python: str = sys.executable

    def __str__(self) -> str:
        return self.host

    async def open(self) -> Pipe:
        connection = await _login(self.host, self.connect_options)
        command = f"exec {shlex.quote(self.python)} -u -m {REMOTE}"
        try:
            return _Login(self.python, connection, await connection.create_process(command, encoding=None))
        except BaseException:
            connection.close()
            raise


class _Login:
    def __init__(
        self, python: str, connection: asyncssh.SSHClientConnection, process: asyncssh.SSHClientProcess[bytes]
    ) -> None:
        self._python, self._connection, self._process = python, connection, process
        self.stdin, self.stdout, self.stderr = process.stdin, process.stdout, process.stderr

    async def ended(self) -> str:
        with contextlib.suppress(OSError):
            await self._process.wait_closed()
        status, signalled = self._process.exit_status, self._process.exit_signal
        if status is None:
            return f"{self._python} was killed ({signalled or 'lost'})"
        return f"{self._python} ended with status {status}" if status else ""

    async def close(self) -> None:
        self._connection.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                await self._connection.wait_closed()


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
        self._places = [
            Host(host, dict(options or {}), python or sys.executable)
            for host, options, python in zip(
                self.hosts,
                _for_each(self.hosts, connect_options, "connect_options"),
                _for_each(self.hosts, remote_python, "remote_python"),
                strict=True,
            )
        ]
        options = dict(worker_options or {})
        self._per_host = int(options.pop("n_workers", None) or options.pop("nworkers", None) or 1)
        self._pool = self._places[1:] or self._places
        self._class, self._worker_options = worker_class, options
        template = self._spec(self._pool[0])
        workers = {number: self._spec(place) for number, place in enumerate(self._places[1:])}
        scheduler = {"cls": Scheduler, "options": {"place": self._places[0], "options": dict(scheduler_options or {})}}
        super().__init__(workers, scheduler, template, **kwargs)

    def _spec(self, place: Host) -> dict[str, Any]:
        group = [f"-{number}" for number in range(self._per_host)] if self._per_host > 1 else []
        options = {"place": place, "worker_class": self._class, "options": self._worker_options, "group": group}
        return {"cls": Worker, "options": options} | ({"group": group} if group else {})

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        """One more session, on the host that has the fewest for how often it is named."""
        used = collections.Counter(spec["options"]["place"].host for spec in self.worker_spec.values())
        named = collections.Counter(place.host for place in self._pool)
        place = min(self._pool, key=lambda place: used[place.host] / named[place.host])
        return dict.fromkeys(super().new_worker_spec(), self._spec(place))

    def _threads_per_worker(self) -> int:
        return int(self._said("nthreads", "cores"))

    def _memory_per_worker(self) -> int:
        limit = system.parse_memory_limit(self._said("memory_limit", "memory"), 1)
        assert limit
        return limit

    def _said(self, option: str, unit: str) -> Any:
        if not self._worker_options.get(option):
            raise ValueError(f"scaling by {unit} needs worker_options with {option}: the hosts may differ")
        return self._worker_options[option]


def _for_each(hosts: list[str], given: Any, what: str) -> list[Any]:
    if given is None or isinstance(given, (str, dict)):
        return [given] * len(hosts)
    values = list(given)
    if len(values) != len(hosts):
        raise RuntimeError(
            f"{what} has {len(values)} entries for {len(hosts)} hosts: give one for each, or a single one"
        )
    return values
