"""``dask-scheduler``: one scheduler, until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import click

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
from daskfleet.security import Security

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

logger = logging.getLogger("daskfleet.scheduler")


@click.command(name="dask-scheduler", context_settings={"show_default": True, "ignore_unknown_options": True})
@click.option("--port", type=click.IntRange(0, 65535), default=8786, help="Port to listen on, 0 for any free one.")
@server_options("unix is for this machine alone.  [default: tcp, or tls when certificates are given]")
@click.option("--dashboard-address", default=":8787", help="Address of the HTTP server.")
@click.option("--dashboard/--no-dashboard", default=True, help="Serve the dashboard, metrics and API over HTTP.")
@click.option("--scheduler-file", default=None, help="File to write the address to, for workers and clients to read.")
@click.option("--idle-timeout", default=None, help='End after so long without work, such as "10 minutes".')
@click.option("--dashboard-prefix", default="", help="Path before the dashboard's, such as /dask, behind a proxy.")
@click.option("--jupyter/--no-jupyter", default=False, help="Serve JupyterLab below the dashboard, at /jupyter.")
@click.option(
    "--show/--no-show", default=False, hidden=True, expose_value=False
)  # upstream's, without effect there too
@click.option("--use-xheaders", default=False, hidden=True, expose_value=False)  # our pages' links are relative
@preload_options("--preload")
@version_option
def main(**options: Any) -> None:
    """Start a Dask scheduler. Workers and clients connect to the address that it logs.

    PRELOAD_ARGV goes to a preload whose dask_setup is a click command.
    """
    set_up_logging()
    check_argv(options["preload_argv"], options["preload"])
    try:
        scheduler, guard = _scheduler(options)
    except ValueError as error:
        fail(error)
    with pid_file(options["pid_path"]):
        run(lambda stop: serve(stop, scheduler, guard))


def _scheduler(options: dict[str, Any]) -> tuple[Scheduler, Security]:
    """The scheduler of these options, not started, and what guards it."""
    from daskfleet.scheduler.server import Scheduler

    guard = security("scheduler", options["tls_ca_file"], options["tls_cert"], options["tls_key"])
    scheduler = Scheduler(
        host=options["host"],
        port=options["port"],
        interface=options["interface"],
        protocol=options["protocol"],
        dashboard_address=options["dashboard_address"] if options["dashboard"] else None,
        jupyter=options["jupyter"],
        security=guard,
        scheduler_file=options["scheduler_file"],
        http_prefix=options["dashboard_prefix"],
        idle_timeout=_seconds("--idle-timeout", options["idle_timeout"]),
        preload=options["preload"] or None,
        preload_argv=options["preload_argv"],
    )
    return scheduler, guard


async def serve(stop: asyncio.Event, scheduler: Scheduler, guard: Security) -> int:
    """Run the scheduler until it ends or `stop` is set; the exit status."""
    try:
        await scheduler.start()
    except (OSError, ValueError, DaskfleetError) as error:
        fail(error)
    _announce(scheduler, guard)
    await first(stop.wait(), scheduler.finished())
    await scheduler.close("the scheduler was told to stop")
    logger.info("Stopped")
    return 0


def _announce(scheduler: Scheduler, guard: Security) -> None:
    """Log where it is, and whether it is open to everyone."""
    logger.info("  Scheduler at: %25s", scheduler.address)
    if scheduler.http is not None and scheduler.dashboard_port:
        host = scheduler.address.partition("://")[2].rpartition(":")[0]
        page = f"http://{host}:{scheduler.dashboard_port}{scheduler.http.mounts.prefix}/status"
        logger.info("  dashboard at: %25s", page)
    if not guard.token and not guard.encrypted and not scheduler.address.startswith("unix:"):
        logger.warning(
            "No token: whoever reaches this port can run code here. Set DASKFLEET_TOKEN for scheduler, workers and "
            "clients, or use --scheduler-file, to close it."
        )


if __name__ == "__main__":
    main()
