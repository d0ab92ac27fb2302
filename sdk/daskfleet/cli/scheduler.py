"""``dask-scheduler``: one scheduler, until a signal ends it."""

from __future__ import annotations

import asyncio
import logging

import click

from daskfleet.cli.common import fail, first, pid_file, run, security, set_up_logging, tls_options, version_option

logger = logging.getLogger("daskfleet.scheduler")


@click.command(name="dask-scheduler", context_settings={"show_default": True})
@click.option("--host", default="", help="Address to listen on.  [default: every interface]", show_default=False)
@click.option("--port", type=click.IntRange(0, 65535), default=8786, help="Port to listen on, 0 for any free one.")
@click.option("--interface", default=None, help='Network interface to listen on, such as "eth0" or "ib0".')
@click.option("--protocol", type=click.Choice(["tcp", "tls"]), default=None, help="tls when certificates are given.")
@tls_options
@click.option("--dashboard-address", default=":8787", help="Address of the HTTP server.")
@click.option("--dashboard/--no-dashboard", default=True, help="Serve the dashboard, metrics and API over HTTP.")
@click.option("--pid-file", "pid_path", default=None, help="File to write the process id to.")
@click.option("--scheduler-file", default=None, help="File to write the address to, for workers and clients to read.")
@click.option("--idle-timeout", default=None, help='End after so long without work, such as "10 minutes".')
@version_option
def main(
    host: str,
    port: int,
    interface: str | None,
    protocol: str | None,
    tls_ca_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    dashboard_address: str,
    dashboard: bool,
    pid_path: str | None,
    scheduler_file: str | None,
    idle_timeout: str | None,
) -> None:
    """Start a Dask scheduler. Workers and clients connect to the address that it logs."""
    from dask.utils import parse_timedelta

    from daskfleet.deploy.scheduler_file import write
    from daskfleet.scheduler.server import Scheduler

    set_up_logging()
    try:
        guard = security("scheduler", tls_ca_file, tls_cert, tls_key)
        if scheduler_file and not guard.token:
            from daskfleet.security import new_token

            guard.token = new_token()  # it travels in the file, which only its owner can read
        scheduler = Scheduler(
            host=host,
            port=port,
            interface=interface,
            protocol=protocol or ("tls" if guard.encrypted else "tcp"),
            dashboard_address=dashboard_address if dashboard else None,
            security=guard,
            idle_timeout=parse_timedelta(idle_timeout) if idle_timeout else None,
        )
    except ValueError as error:
        fail(error)

    async def serve(stop: asyncio.Event) -> int:
        try:
            await scheduler.start()
            if scheduler_file:
                write(scheduler_file, scheduler.identity(), guard)
        except (OSError, ValueError) as error:
            fail(error)
        logger.info("  Scheduler at: %25s", scheduler.address)
        if scheduler.dashboard_port:
            shown = scheduler.address.partition("://")[2].rpartition(":")[0]
            logger.info("  dashboard at: %25s", f"http://{shown}:{scheduler.dashboard_port}/status")
        if not guard.token and not guard.encrypted:
            logger.warning(
                "No token: whoever reaches this port can run code here. Set DASKFLEET_TOKEN for scheduler, workers and "
                "clients, or use --scheduler-file, to close it."
            )
        await first(stop.wait(), scheduler.finished())
        await scheduler.close("the scheduler was told to stop")
        logger.info("Stopped")
        return 0

    with pid_file(pid_path):
        run(serve)


if __name__ == "__main__":
    main()
