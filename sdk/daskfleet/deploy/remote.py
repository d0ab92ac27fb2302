"""What runs at the far end of an SSH session: ``python -m daskfleet.deploy.remote``.

It reads one line from standard input, which says what to run (`order`), runs it, answers with JSON lines on standard
output, and logs to standard error. It lives exactly as long as its standard input: sshd closes that when the session
ends, however the client ended, for root and for others, with a terminal or without. So nothing has to be killed from
afar and no process is left behind. What it runs shares its process group, which it ends as a whole, so that not even
what tasks started survives.

The order, with the token in it, comes by the encrypted channel and not on the command line, where ``ps`` would show it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from typing import Any

from daskfleet import system
from daskfleet.deploy.process import ProcessInterface, load_class, takes
from daskfleet.deploy.status import Status

logger = logging.getLogger("daskfleet.remote")

#: Seconds that processes may take to hand over their data when the session ends.
GRACE = 5.0


def order(servers: Sequence[tuple[Any, tuple[Any, ...], dict[str, Any]]], level: int = logging.INFO) -> bytes:
    """The line that says what to run: ``(class, arguments, keyword arguments)`` of each server."""
    return base64.b64encode(pickle.dumps((list(servers), level), protocol=4)) + b"\n"


class Program(ProcessInterface):
    """A command of that machine, as a server."""

    def __init__(self, *command: str, env: dict[str, str], name: Any = None) -> None:
        super().__init__(name=name)
        self._command = command
        self._env = env
        self._process: asyncio.subprocess.Process | None = None
        self._waiter: asyncio.Task[None] | None = None

    async def start(self) -> None:
        env, nothing = os.environ | self._env, asyncio.subprocess.DEVNULL
        self._process = await asyncio.create_subprocess_exec(*self._command, env=env, stdin=nothing)
        self._waiter = asyncio.create_task(self._wait())
        await super().start()

    async def _wait(self) -> None:
        assert self._process is not None
        status = await self._process.wait()
        self.failure = f"exit status {status}" if status else ""
        self.status = Status.closed
        self._ended.set()

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
        await self.finished()


class Module(Program):
    """``python -m MODULE ARGUMENTS`` there: for ``--remote-dask-worker``."""

    def __init__(self, *arguments: str, module: str, env: dict[str, str], name: Any = None) -> None:
        super().__init__(sys.executable, "-m", module, *arguments, env=env, name=name)


async def _main() -> int:
    loop = asyncio.get_running_loop()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what tasks print belongs to the log
    stdin = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    line = await stdin.readline()
    if not line.endswith(b"\n"):
        return 1  # the client was gone before it had said what to run
    parts, level = pickle.loads(base64.b64decode(line))
    logging.basicConfig(level=level, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")

    def say(**message: Any) -> None:
        with contextlib.suppress(OSError):
            answers.write(json.dumps(message) + "\n")

    servers: list[Any] = []
    end_of_session = asyncio.ensure_future(_until_end(stdin))
    life = asyncio.ensure_future(_run(parts, servers, say))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([end_of_session, life, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not life.done():
        life.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await asyncio.gather(*(_close(server) for server in servers), return_exceptions=True)
    failed = life.done() and not life.cancelled() and life.result()
    say(ended=failed or "")
    return 1 if failed else 0


async def _until_end(stdin: asyncio.StreamReader) -> None:
    while await stdin.read(65536):
        pass


async def _run(parts: list[Any], servers: list[Any], say: Any) -> str:
    """Start what was ordered and wait for the end of all of it; why it failed, if it did."""
    try:
        share = max(1, system.cpu_count() // len(parts))
        for cls, args, options in parts:
            if len(parts) > 1 and not options.get("nthreads") and takes(load_class(cls), "nthreads"):
                options["nthreads"] = share  # several workers on one machine split it
            servers.append(load_class(cls)(*args, **options))
        await asyncio.gather(*servers)
    except Exception as error:
        logger.debug("cannot start", exc_info=True)
        say(failed=f"{error}" or type(error).__name__)
        return str(error) or type(error).__name__
    say(up=[_describe(server) for server in servers], pid=os.getpid())
    await asyncio.gather(*(server.finished() for server in servers))
    failures = [getattr(server, "failure", "") or getattr(server, "exit_status", None) for server in servers]
    return next((str(failure) for failure in failures if failure), "")


def _describe(server: Any) -> dict[str, Any]:
    address = getattr(server, "worker_address", "") or getattr(server, "address", "")
    return {"address": address or "", "dashboard": getattr(server, "dashboard_port", None)}


async def _close(server: Any) -> None:
    if takes(server.close, "timeout"):  # a nanny: its worker hands over its data
        await server.close(timeout=GRACE - 1)
    else:
        await getattr(server, "close_gracefully", server.close)()


def main() -> None:
    """Run until the order is done or standard input ends; then end the whole process group."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # sshd has made us the leader already; other ways to start us have not
    system.allow_many_files()
    status = asyncio.run(_main())
    sys.stderr.flush()
    if os.getpgrp() == os.getpid():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        for child in _group_members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    os._exit(status)


def _group_members() -> list[int]:
    import psutil

    group, own = os.getpgrp(), os.getpid()
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if pid != own and os.getpgid(pid) == group:
                members.append(pid)
    return members


if __name__ == "__main__":
    main()
