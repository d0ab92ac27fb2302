"""What the commands share: logging, options of several of them, running a server until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from daskfleet import config, entering, system
from daskfleet._version import __version__
from daskfleet.security import Security

F = TypeVar("F", bound=Callable[..., Any])

FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"


def set_up_logging() -> None:
    """Log to standard error, as the field's commands do; with the levels of ``distributed.logging``."""
    logging.basicConfig(format=FORMAT, level=logging.INFO, stream=sys.stderr)
    logging.getLogger("tornado.access").setLevel(logging.WARNING)
    for name, level in config.get("distributed.logging").items():
        logging.getLogger(name).setLevel(level.upper() if isinstance(level, str) else level)


def version_option(function: F) -> F:
    return click.version_option(__version__, message="%(prog)s, daskfleet %(version)s")(function)


def tls_options(function: F) -> F:
    """``--tls-ca-file``, ``--tls-cert`` and ``--tls-key``."""
    path = click.Path(exists=True, dir_okay=False, resolve_path=True)
    for name, text in (
        ("--tls-key", "Private key of that certificate (PEM)."),
        ("--tls-cert", "Certificate to show (PEM)."),
        ("--tls-ca-file", "Certificates of the authority that vouches for the cluster (PEM)."),
    ):
        function = click.option(name, type=path, default=None, help=text)(function)
    return function


def server_options(protocol: str) -> Callable[[F], F]:
    """Where a server listens and how it is found again: ``--host``, ``--interface``, ``--protocol``, ``--pid-file``.

    Parameters
    ----------
    protocol
        What is to be said of ``--protocol``.
    """
    choice = click.Choice(["tcp", "tls", "unix"])
    every = "Address to listen on.  [default: every interface]"
    options = (
        click.option("--host", default="", help=every, show_default=False),
        click.option("--interface", default=None, help='Network interface to listen on, such as "eth0" or "ib0".'),
        click.option("--protocol", type=choice, default=None, help=protocol, show_default=False),
        tls_options,
        click.option("--pid-file", "pid_path", default=None, help="File to write the process id to."),
    )

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def preload_options(*names: str) -> Callable[[F], F]:
    """``--preload`` and the like, and the ``PRELOAD_ARGV`` behind the options."""
    texts = {"--preload": "it", "--preload-nanny": "each nanny"}

    def add(function: F) -> F:
        function = click.argument("preload_argv", nargs=-1, type=click.UNPROCESSED)(function)
        for name in reversed(names):
            text = f"Module, .py file or URL to run in {texts[name]} as it starts; may be repeated."
            function = click.option(name, multiple=True, default=(), help=text)(function)
        return function

    return add


def check_argv(argv: tuple[str, ...], *preloads: tuple[str, ...]) -> None:
    """Arguments that nobody is there for are mistakes."""
    if argv and not any(preloads):
        if argv[0].startswith("-"):
            option, context = argv[0].partition("=")[0], click.get_current_context()
            known = [name for parameter in context.command.params for name in parameter.opts]
            raise click.NoSuchOption(option, possibilities=difflib.get_close_matches(option, known), ctx=context)
        raise click.UsageError(f"unexpected argument {argv[0]!r}", click.get_current_context())


def seconds(option: str, text: str | None) -> float | None:
    """Seconds of a text such as ``10 minutes``. Raises ValueError that names the option."""
    if not text:
        return None
    try:
        return config.parse_seconds(text)
    except (KeyError, ValueError):
        raise ValueError(f'{option} {text!r}: expected something like "60", "30s" or "10 minutes"') from None


def security(role: str, tls_ca_file: str | None, tls_cert: str | None, tls_key: str | None) -> Security:
    """The `Security` of a command's TLS options; the token comes from the environment."""
    options: dict[str, Any] = {"tls_ca_file": tls_ca_file, f"tls_{role}_cert": tls_cert, f"tls_{role}_key": tls_key}
    return Security(**options)


def fail(error: BaseException | str) -> NoReturn:
    """End with one line and status 1."""
    click.echo(f"Error: {error}", err=True)
    raise SystemExit(1)


@contextlib.contextmanager
def pid_file(path: str | None) -> Any:
    """Write our process id into `path` for as long as we run."""
    if not path:
        yield
        return
    try:
        Path(path).write_text(f"{os.getpid()}\n")
    except OSError as error:
        fail(f"cannot write --pid-file {path}: {error.strerror}")
    try:
        yield
    finally:
        Path(path).unlink(missing_ok=True)


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run ``main(stop)``; SIGTERM and SIGINT set `stop`, a second SIGINT ends at once. Exits with its result.

    It may open as many files as the connections of a large cluster take. As process 1 of a container it also reaps the
    children that tasks leave behind.
    """
    system.allow_many_files()

    async def body() -> int:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def interrupted() -> None:
            if stop.is_set():
                os._exit(130)
            stop.set()

        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, interrupted)
        if os.getpid() == 1:
            loop.add_signal_handler(signal.SIGCHLD, _reap_orphans)
        return await main(stop)

    raise SystemExit(entering.run(body()))


#: Children that somebody waits for; set by the commands that have any.
own_children: Callable[[], set[int]] = set


def _reap_orphans() -> None:
    known = own_children()
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if found.si_pid in known:
                return  # its nanny is about to; orphans behind it wait for the next signal
            os.waitpid(found.si_pid, 0)


async def first(*awaitables: Awaitable[Any]) -> None:
    """Wait until one of these is done."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
