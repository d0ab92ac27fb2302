"""``dask-mpi``: a scheduler and workers as the ranks of an MPI job, until a client or a signal ends them."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import click

from daskfleet.cli.common import fail, run, set_up_logging, version_option
from daskfleet.exceptions import DaskfleetError

logger = logging.getLogger("daskfleet.mpi")


class Json(click.ParamType):  # type: ignore[type-arg]
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            parsed = json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail('expected a JSON object, such as {"resources": {"GPU": 1}}', param, ctx)
        return parsed


@click.command(name="dask-mpi", context_settings={"show_default": True})
@click.argument("scheduler_address", required=False)
@click.option("--scheduler-file", default=None, help="File to write the address to, for clients to read.")
@click.option("--scheduler-port", type=click.IntRange(0, 65535), default=0, help="Port of the scheduler, 0 for any.")
@click.option("--scheduler-rank", type=click.IntRange(0), default=0, help="Rank of the scheduler.")
@click.option("--scheduler/--no-scheduler", default=True, help="Whether a rank is the scheduler, or all are workers.")
@click.option("--interface", default=None, help='Network interface to listen on, such as "eth0" or "ib0".')
@click.option("--protocol", type=click.Choice(["tcp", "tls"]), default=None, help="tls when certificates are given.")
@click.option("--nthreads", type=click.IntRange(1), default=1, help="Threads of each worker.")
@click.option("--memory-limit", default="auto", help='For each worker: bytes, a fraction, "5GB", auto, or 0 for none.')
@click.option("--local-directory", default=None, help="Folder for temporary files.")
@click.option("--nanny/--no-nanny", default=False, help="Run each worker in a process that is started anew if it dies.")
@click.option("--worker-class", default=None, help="Class of the workers.  [default: daskfleet.Worker]")
@click.option("--worker-options", type=Json(), default=None, help="More keyword arguments of it, as JSON.")
@click.option(
    "--exclusive-workers/--inclusive-workers", default=True, help="Whether the scheduler has its rank for itself."
)
@click.option("--dashboard/--no-dashboard", default=True, help="Serve the dashboard, metrics and API over HTTP.")
@click.option("--dashboard-address", default=":8787", help="Address of the HTTP server.")
@click.option("--name", default=None, help="What workers are called, with -RANK behind it.")
@version_option
def main(
    scheduler_address: str | None, scheduler: bool, scheduler_rank: int, exclusive_workers: bool, **options: Any
) -> None:
    """Start a cluster with mpirun: mpirun -np 4 dask-mpi --scheduler-file /shared/scheduler.json

    Rank 0 is the scheduler, the others are workers. With --no-scheduler all are workers, for the scheduler at
    SCHEDULER_ADDRESS or in --scheduler-file.
    """
    import dask

    from daskfleet.deploy.mpi import ranks
    from daskfleet.security import Security

    set_up_logging()
    try:
        comm = ranks.world(None)
        address = scheduler_address or dask.config.get("scheduler-address", None)
        if not scheduler and not address and not options["scheduler_file"]:
            raise ValueError("--no-scheduler: say where it is, by address or by --scheduler-file")
        known = options["scheduler_file"]
        rank = ranks.make(
            comm,
            ranks.Parts(scheduler_rank if scheduler else None, None, exclusive_workers),
            worker_name=options.pop("name"),
            security=Security.with_token() if known and scheduler else Security(),
            scheduler_address=None if scheduler else address,
            **options,
        )
    except (OSError, ValueError, DaskfleetError) as error:
        fail(error)

    async def serve(stop: asyncio.Event) -> int:
        try:
            here = await rank.meet()
            if here is not None:
                logger.info("  Scheduler at: %25s", here.address)
            await rank.serve(here, stop)
        except (OSError, ValueError, TimeoutError, DaskfleetError) as error:
            if comm.Get_rank() == (scheduler_rank if scheduler else 0):
                fail(error)
            return 1
        return 0

    run(serve)


if __name__ == "__main__":
    main()
