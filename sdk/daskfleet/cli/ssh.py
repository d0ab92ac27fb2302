"""``dask-ssh``: a scheduler and workers on machines that one can log in to, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daskfleet.cli.common import fail, first, run, set_up_logging, version_option
from daskfleet.exceptions import DaskfleetError

if TYPE_CHECKING:
    from daskfleet.deploy.ssh import Host

#: What a line of a host file may say behind the host, and the option that it replaces there.
HOST_OPTIONS = {
    "user": "ssh_username",
    "port": "ssh_port",
    "key": "ssh_private_key",
    "python": "remote_python",
    "nworkers": "nworkers",
    "nprocs": "nworkers",
    "nthreads": "nthreads",
    "memory-limit": "memory_limit",
    "local-directory": "local_directory",
}

Hosts = list[tuple[str, dict[str, str]]]

_COLOURS = ("cyan", "green", "yellow", "magenta", "blue")


def read_hostfile(text: str) -> Hosts:
    """``(host, options)`` of each line, such as ``node{1,2} user=ada nworkers=4``; ``#`` begins a comment.

    Raises
    ------
    ValueError
        With the line's number and what is wrong with it.
    """
    from daskfleet.deploy.ssh import expand_hosts

    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = shlex.split(line, comments=True)
        options = {}
        for word in words[1:]:
            name, sep, value = word.partition("=")
            if not sep or name not in HOST_OPTIONS:
                known = ", ".join(f"{name}=…" for name in HOST_OPTIONS)
                raise ValueError(f"line {number} of the host file: {word!r}: expected one of {known}")
            options[HOST_OPTIONS[name]] = value
        found += [(host, options) for host in (expand_hosts(words[0]) if words else [])]
    return found


@click.command(name="dask-ssh", context_settings={"show_default": True})
@click.argument("hostnames", nargs=-1)
@click.option("--scheduler", default=None, help="Host of the scheduler.  [default: the first]", show_default=False)
@click.option("--scheduler-port", type=click.IntRange(1, 65535), default=8786, help="Its port.")
@click.option("--nthreads", type=click.IntRange(1), default=None, help="Threads of each worker; by default all.")
@click.option("--nworkers", "--nprocs", default="1", help="Workers on each host: a number, auto, or -1.")
@click.option(
    "--hostfile",
    type=click.Path(exists=True, dir_okay=False),
    default=None,
    help="File with a host on each line, and maybe options of its own behind it: node7 user=ada port=2222 "
    "key=~/.ssh/hpc python=/opt/python/bin/python nworkers=4 nthreads=2 memory-limit=8GB local-directory=/scratch.",
)
@click.option("--ssh-username", default=None, help="User to log in as.  [default: you]", show_default=False)
@click.option("--ssh-port", type=click.IntRange(1, 65535), default=None, help="Port of the SSH servers.  [default: 22]")
@click.option("--ssh-private-key", default=None, help="File of the private key.  [default: yours]", show_default=False)
@click.option("--ssh-known-hosts", default=None, help="File of the hosts' keys, or none to trust every host.")
@click.option("--nohost", is_flag=True, help="Do not tell each worker to listen on the name by which it is reached.")
@click.option("--log-directory", default=None, help="Folder on this machine that gets a log file for each process.")
@click.option("--local-directory", default=None, help="Folder for the workers' temporary files, on each host.")
@click.option("--remote-python", default=None, help="Python on the hosts.  [default: this one]", show_default=False)
@click.option("--memory-limit", default="auto", help='For each worker: bytes, a fraction, "5GB", auto, or 0.')
@click.option("--worker-port", default=None, help="Port of the workers, or lo:hi for a range.")
@click.option("--nanny-port", default=None, help="Port of the nannies, or lo:hi for a range.")
@click.option("--remote-dask-worker", default="daskfleet.cli.worker", help="Module to run as worker.")
@version_option
def main(hostnames: tuple[str, ...], **options: Any) -> None:
    """Start a cluster by SSH: a scheduler on the first of HOSTNAMES, workers on all of them.

    A name may stand for several: 192.168.0.{1,2,3,4} or node{01..16}. Everything ends with this command.
    """
    from daskfleet.deploy.ssh import expand_hosts

    set_up_logging()
    try:
        hosts: Hosts = [(host, {}) for name in hostnames for host in expand_hosts(name)]
        if options["hostfile"]:
            hosts += read_hostfile(Path(options["hostfile"]).read_text())
        if not hosts:
            raise click.UsageError("no hosts: name them (dask-ssh node1 node2) or give --hostfile")
        logs = _LogFiles(options["log_directory"])
    except (ValueError, OSError) as error:
        fail(error)
    run(lambda stop: _serve(stop, hosts, options, logs))


async def _serve(
    stop: asyncio.Event, hosts: list[tuple[str, dict[str, str]]], options: dict[str, Any], logs: Any
) -> int:
    from daskfleet.deploy.session import Command
    from daskfleet.deploy.spec import SpecCluster
    from daskfleet.security import Security, new_token

    head = options["scheduler"] or hosts[0][0]
    port = options["scheduler_port"]
    own = next((own for host, own in hosts if host == head), {})
    security = Security()
    security.token = security.token or new_token()
    scheduler = {
        "place": _place(head, {**options, **own}),
        "module": "daskfleet.cli.scheduler",
        "arguments": ["--port", str(port), *([] if options["nohost"] else ["--host", head])],
        "answers_at": f"tcp://{head}:{port}",
        "on_line": logs.sink(f"scheduler {head}:{port}", f"dask_scheduler_{head}_{port}", "red"),
    }
    workers = {
        f"{host}-{number}": {"cls": Command, "options": _worker(host, number, {**options, **own}, logs)}
        for number, (host, own) in enumerate(hosts)
    }
    cluster = SpecCluster(workers, {"cls": Command, "options": scheduler}, asynchronous=True, security=security)
    starting = asyncio.ensure_future(cluster._ensure_started())
    await first(stop.wait(), asyncio.wait([starting]))
    try:
        if starting.done():
            starting.result()
            click.echo(f"Cluster of {len(hosts)} hosts at {cluster.scheduler_address}; from this machine: ")
            click.echo(f"    cluster = daskfleet.SpecCluster.from_name({cluster.name!r})")
            click.echo("Ctrl-C ends it.")
            await first(stop.wait(), cluster.scheduler.finished())
        if not stop.is_set():
            fail(f"the scheduler on {head} ended: {cluster.scheduler.failure}")
    except DaskfleetError as error:
        fail(error)
    finally:
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
        await cluster._close()
        logs.close()
    return 0


def _place(host: str, options: dict[str, Any]) -> Host:
    from daskfleet.deploy.ssh import Host

    connect: dict[str, Any] = {}
    if options["ssh_username"]:
        connect["username"] = options["ssh_username"]
    if options["ssh_port"]:
        connect["port"] = int(options["ssh_port"])
    if options["ssh_private_key"]:
        connect["client_keys"] = [os.path.expanduser(options["ssh_private_key"])]
    if options["ssh_known_hosts"]:
        known = options["ssh_known_hosts"]
        connect["known_hosts"] = None if known == "none" else os.path.expanduser(known)
    return Host(host, connect, options["remote_python"] or sys.executable)


def _worker(host: str, number: int, options: dict[str, Any], logs: _LogFiles) -> dict[str, Any]:
    arguments = ["--name", f"{host}-{number}"] + ([] if options["nohost"] else ["--host", host])
    for name in ("nworkers", "nthreads", "memory_limit", "local_directory", "worker_port", "nanny_port"):
        if options[name] is not None:
            arguments += [f"--{name.replace('_', '-')}", str(options[name])]
    return {
        "place": _place(host, options),
        "module": options["remote_dask_worker"],
        "arguments": arguments,
        "on_line": logs.sink(f"worker {host}", f"dask_worker_{host}_{number}", _COLOURS[number % len(_COLOURS)]),
    }


class _LogFiles:
    """Shows the lines of all processes, and keeps those of each in a file if there is a folder for that."""

    def __init__(self, folder: str | None) -> None:
        self._folder = Path(folder).expanduser() if folder else None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._files = contextlib.ExitStack()

    def sink(self, label: str, name: str, colour: str) -> Callable[[str], None]:
        head = click.style(f"[ {label} ]", fg=colour)
        file = (
            self._files.enter_context((self._folder / f"{name}.log").open("a", buffering=1)) if self._folder else None
        )

        def on_line(line: str) -> None:
            click.echo(f"{head} : {line}")
            if file is not None and not file.closed:
                file.write(line + "\n")

        return on_line

    def close(self) -> None:
        self._files.close()


if __name__ == "__main__":
    main()
