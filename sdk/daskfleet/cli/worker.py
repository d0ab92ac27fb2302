"""``dask-worker``: one or more workers, each with a nanny, until a signal ends them."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import click

from daskfleet import config, system
from daskfleet.cli import common
from daskfleet.cli.common import (
    check_argv,
    fail,
    first,
    pid_file,
    preload_options,
    run,
    security,
    server_options,
    set_up_logging,
    version_option,
)
from daskfleet.cli.common import seconds as _seconds
from daskfleet.exceptions import DaskfleetError

logger = logging.getLogger("daskfleet.worker")


class Ports(click.ParamType):  # type: ignore[type-arg]
    """A port, or a range such as ``3000:3026``."""

    name = "port"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | range:
        if isinstance(value, (int, range)):
            return value
        first_, _, last = str(value).partition(":")
        if not first_.isdecimal() or (last and not last.isdecimal()) or int(last or first_) > 65535:
            self.fail(f"{value!r}: expected a port such as 3000, or a range such as 3000:3026", param, ctx)
        return range(int(first_), int(last) + 1) if last else int(first_)


class Resources(click.ParamType):  # type: ignore[type-arg]
    """``GPU=2 MEM=10e9``."""

    name = "resources"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, float]:
        if isinstance(value, dict):
            return value
        try:
            pairs = [item.split("=") for item in str(value).replace(",", " ").split()]
            return {name: float(amount) for name, amount in pairs}
        except ValueError:
            self.fail(f'{value!r}: expected something like "GPU=2 MEM=10e9"', param, ctx)


def how_many(nworkers: str) -> int:
    """Workers to start: a number; ``auto``, one for every few processors; or negative, one per processor less that."""
    if nworkers == "auto":
        # As distributed: processes for isolation, threads for sharing memory, about the square root of each.
        return max(1, round(math.sqrt(system.cpu_count())))
    try:
        number = int(nworkers)
    except ValueError:
        raise ValueError(f"--nworkers {nworkers!r}: expected a number or auto") from None
    if number < 0:
        number += system.cpu_count() + 1
    if number < 1:
        raise ValueError(f"--nworkers {nworkers}: that leaves no worker on {system.cpu_count()} processors")
    return number


@click.command(name="dask-worker", context_settings={"show_default": True, "ignore_unknown_options": True})
@click.argument("scheduler", required=False)
@server_options("The scheduler's by default.")
@click.option("--worker-port", type=Ports(), default=0, help="Port, or lo:hi for the first free one of a range.")
@click.option("--dashboard-address", default=":0", help="Address of the worker's HTTP server.")
@click.option("--dashboard/--no-dashboard", default=False, help="Serve health and metrics over HTTP.")
@click.option("--dashboard-prefix", default=None, help="Path before the HTTP server's, such as /w1, behind a proxy.")
@click.option("--listen-address", default=None, help="Address to listen on, such as tcp://0.0.0.0:9000.")
@click.option("--contact-address", default=None, help="Address under which others reach the worker, if it differs.")
@click.option("--scheduler-sni", default=None, help="Name to ask for under TLS, if a proxy routes by it.")
@click.option("--nthreads", type=click.IntRange(1), default=None, help="Threads of each; by default all processors.")
@click.option("--nworkers", "--nprocs", default="1", help="Workers: a number, auto, or -1 for one a processor.")
@click.option("--name", default=None, help="Name of the worker; with several, they get -0, -1, … behind it.")
@click.option("--memory-limit", default="auto", help='For each worker: bytes, a fraction, "5GB", auto, or 0 for none.')
@click.option("--nanny/--no-nanny", default=True, help="Run each worker in a process that is started anew if it dies.")
@click.option("--local-directory", default=None, help="Folder for temporary files.")
@click.option("--resources", type=Resources(), default=None, help='Amounts of abstract resources: "GPU=2 MEM=10e9".')
@click.option("--scheduler-file", default=None, help="File that the scheduler has written its address to.")
@click.option("--death-timeout", default=None, help="Give up on a scheduler that does not answer for so long.")
@click.option("--nanny-port", type=Ports(), default=0, help="Taken for compatibility: nannies open no port here.")
@click.option("--lifetime", default=None, help='Hand the data over and leave after so long, such as "1 hour".')
@click.option("--lifetime-stagger", default=None, help="At most so much sooner or later, by chance.")
@click.option("--lifetime-restart/--no-lifetime-restart", default=None, help="Start anew instead of leaving.")
@click.option("--worker-class", default=None, help="Class of the workers.  [default: daskfleet.Worker]")
@preload_options("--preload", "--preload-nanny")
@version_option
def main(scheduler: str | None, **options: Any) -> None:
    """Start Dask workers for the scheduler at SCHEDULER, such as tcp://10.0.0.1:8786.

    Without SCHEDULER it is the one in --scheduler-file or in DASK_SCHEDULER_ADDRESS. The scheduler may be started
    later: workers wait for it. PRELOAD_ARGV goes to a preload whose dask_setup is a click command.
    """
    set_up_logging()
    if scheduler is not None and scheduler.startswith("-"):
        options["preload_argv"], scheduler = (scheduler, *options["preload_argv"]), None
    check_argv(options["preload_argv"], options["preload"], options["preload_nanny"])
    try:
        count = how_many(options["nworkers"])
        settings = _settings(scheduler, options, count)
        kind, more = _kind(options)
    except (ValueError, OSError) as error:
        fail(error)
    with pid_file(options["pid_path"]):
        run(lambda stop: serve(stop, kind, {**settings, **more}, count))


def _kind(options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What to start, and what it takes besides the settings of a worker."""
    from daskfleet.deploy.process import load_class
    from daskfleet.worker.nanny import Nanny
    from daskfleet.worker.server import Worker

    given = load_class(options["worker_class"]) if options["worker_class"] else None
    if given is not None and not (isinstance(given, type) and issubclass(given, (Worker, Nanny))):
        raise ValueError(f"--worker-class {options['worker_class']}: it is neither a Worker nor a Nanny")
    more: dict[str, Any] = {}
    kind: Any = given or Worker
    if options["nanny"] and not issubclass(kind, Nanny):
        kind, more = Nanny, {"worker_class": kind}
    if issubclass(kind, Nanny):
        more |= {"preload_nanny": options["preload_nanny"] or None, "preload_nanny_argv": options["preload_argv"]}
    return kind, more


def _settings(scheduler: str | None, options: dict[str, Any], count: int) -> dict[str, Any]:
    """Keyword arguments of each `Worker`, the name aside."""
    from daskfleet.comm import parse_address

    guard = security("worker", options["tls_ca_file"], options["tls_cert"], options["tls_key"])
    death_timeout = _seconds("--death-timeout", options["death_timeout"])
    file = options["scheduler_file"] if scheduler is None else None
    if file:
        from daskfleet.scheduler_file import TIMEOUT, read

        info = read(file, wait=True, timeout=death_timeout or TIMEOUT)
        scheduler = info.address
        guard = info.secured(guard) or guard
    address = scheduler or config.get("scheduler-address")
    if address is None:
        raise ValueError(
            "no scheduler given: name its address (dask-worker tcp://10.0.0.1:8786), --scheduler-file, or "
            "DASK_SCHEDULER_ADDRESS"
        )
    nthreads = options["nthreads"] or max(1, system.cpu_count() // count)
    host, port = options["host"], options["worker_port"]
    if options["listen_address"]:
        listen = parse_address(options["listen_address"], default_port=0)
        host, port = listen.host, listen.port
    limit = system.parse_memory_limit(options["memory_limit"], nthreads, max(nthreads * count, system.cpu_count()))
    return {
        "scheduler_address": str(parse_address(address)),
        "scheduler_file": file,
        "name": options["name"],
        "nthreads": nthreads,
        "host": host,
        "port": port,
        "interface": options["interface"],
        "protocol": options["protocol"],
        "contact_address": options["contact_address"],
        "memory_limit": limit or 0,
        "resources": options["resources"],
        "local_directory": options["local_directory"],
        "security": guard,
        "death_timeout": death_timeout,
        "lifetime": _seconds("--lifetime", options["lifetime"]),
        "lifetime_stagger": _seconds("--lifetime-stagger", options["lifetime_stagger"]),
        "lifetime_restart": options["lifetime_restart"],
        "preload": options["preload"] or None,
        "preload_argv": options["preload_argv"],
        "dashboard_address": options["dashboard_address"] if options["dashboard"] else None,
        "http_prefix": options["dashboard_prefix"],
        "scheduler_sni": options["scheduler_sni"],
    }


async def serve(stop: asyncio.Event, kind: Any, settings: dict[str, Any], count: int) -> int:
    """Run the workers until all have ended or `stop` is set; the exit status."""
    name = settings.pop("name")
    names = [name] if count == 1 else [f"{name}-{i}" if name else None for i in range(count)]
    servers: dict[int, Any] = {}
    common.own_children = lambda: {pid for server in servers.values() if (pid := getattr(server, "pid", None))}

    async def one(place: int) -> str | None:
        while True:
            server = servers[place] = kind(name=names[place], **settings)
            try:
                await server.start()
            except (OSError, ValueError, TimeoutError, DaskfleetError) as error:
                return str(error)
            logger.info("      Start worker at: %25s", getattr(server, "worker_address", "") or server.address)
            await server.finished()
            if not getattr(server, "renew", False) or stop.is_set():  # a nanny has seen to that itself
                return None

    runs = [asyncio.ensure_future(one(place)) for place in range(count)]
    await first(stop.wait(), asyncio.wait(runs))
    if stop.is_set():
        await asyncio.gather(*(_leave(server) for server in servers.values() if server.status != "init"))
    errors = [each.result() for each in runs if each.done() and not each.cancelled() and each.result()]
    for each in runs:
        each.cancel()
    if errors and not stop.is_set():
        fail(errors[0] or "")
    return 0


async def _leave(server: Any) -> None:
    """End a worker, its data handed over: a nanny's `close` does that."""
    await getattr(server, "close_gracefully", server.close)()


if __name__ == "__main__":
    main()
