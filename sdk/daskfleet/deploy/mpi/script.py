"""A cluster inside an MPI job: every rank runs the same script, and `initialize` or `execute` gives each its part.

By default rank 0 is the scheduler, rank 1 runs the script, and the others are workers.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from daskfleet import entering
from daskfleet.deploy.mpi.ranks import Parts, Rank, make, world
from daskfleet.exceptions import DaskfleetError
from daskfleet.security import TOKEN_VARIABLE, Security

T = TypeVar("T")

logger = logging.getLogger(__name__)


def initialize(
    interface: str | None = None,
    nthreads: int = 1,
    local_directory: str = "",
    memory_limit: str | float | None = "auto",
    nanny: bool = False,
    dashboard: bool = True,
    dashboard_address: str = ":8787",
    protocol: str | None = None,
    worker_class: Any = None,
    worker_options: dict[str, Any] | None = None,
    worker_name: str | None = None,
    comm: Any = None,
    exit: bool = True,
) -> bool:
    """Turn the ranks of this MPI job into a cluster; rank 1 goes on with the script.

    After it, ``Client()`` connects. The cluster ends with the script.

    Parameters
    ----------
    interface, protocol, dashboard, dashboard_address
        As the scheduler and the workers have them.
    nthreads, local_directory, memory_limit, worker_options
        Keyword arguments of each worker.
    nanny
        Let a nanny keep each worker's process.
    worker_class
        Instead of `daskfleet.Worker`.
    worker_name
        Before the rank, in the workers' names.
    comm
        The `mpi4py.MPI.Intracomm`; that of all ranks by default.
    exit
        Let the scheduler and the workers exit when the cluster has ended. Otherwise they return, too, and the script
        calls `send_close_signal` on rank 1.

    Returns
    -------
    bool
        Whether this is the rank that runs the script: always, unless `exit` is false.

    Raises
    ------
    ValueError
        There are too few ranks.
    DaskfleetError
        There is no mpi4py, or the scheduler could not start.

    Examples
    --------
    >>> from daskfleet.deploy.mpi import initialize  # doctest: +SKIP
    >>> initialize()  # doctest: +SKIP
    >>> client = Client()  # doctest: +SKIP
    """
    rank = make(
        world(comm), Parts(),
        interface=interface, nthreads=nthreads, local_directory=local_directory, memory_limit=memory_limit,
        nanny=nanny, dashboard=dashboard, dashboard_address=dashboard_address, protocol=protocol,
        worker_class=worker_class, worker_options=worker_options, worker_name=worker_name,
    )  # fmt: skip
    if rank.comm.Get_rank() == rank.parts.client:
        _become_client(rank)
        if exit:
            atexit.register(send_close_signal)
        return True
    entering.run(_meet_and_serve(rank))
    if exit:
        sys.exit(0)
    return False


async def _meet_and_serve(rank: Rank, stop: asyncio.Event | None = None) -> None:
    await rank.serve(await rank.meet(), stop)


def _become_client(rank: Rank) -> None:
    import dask

    asyncio.run(rank.meet())
    assert rank.address is not None
    dask.config.set({"scheduler-address": rank.address})
    if rank.security.token:
        os.environ[TOKEN_VARIABLE] = rank.security.token


def send_close_signal() -> None:
    """End the cluster that `initialize` has made. It does so by itself at the end of the script."""
    import dask

    from daskfleet.deploy.scheduler_link import RemoteLink

    address = dask.config.get("scheduler-address", None)
    if address is None:
        return

    async def send() -> None:
        link = RemoteLink(address, Security())
        try:
            await link.shut_down()
        except (OSError, DaskfleetError):
            logger.debug("the scheduler is gone already", exc_info=True)
        finally:
            link.close()

    asyncio.run(send())


def execute(
    client_function: Callable[..., T] | None = None,
    *args: Any,
    scheduler: bool = True,
    scheduler_rank: int = 0,
    scheduler_address: str | None = None,
    scheduler_port: int = 0,
    scheduler_file: str | None = None,
    client_rank: int = 1,
    exclusive_workers: bool = True,
    comm: Any = None,
    function_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> T | None:
    """Run a function on a cluster of this MPI job's ranks; without one, run the cluster until a client ends it.

    Parameters
    ----------
    client_function
        Called with `args` and `function_kwargs` on `client_rank`, where ``Client()`` connects.
    scheduler, scheduler_rank, scheduler_address, scheduler_port, scheduler_file
        Whether and where one of the ranks is the scheduler; without it, workers join the one at `scheduler_address`,
        or in `scheduler_file`.
    exclusive_workers
        Whether the scheduler and the client have their ranks for themselves, or share them with workers. With shared
        ranks a single one is enough.
    options
        Those of `initialize`.

    Returns
    -------
    Any
        What the function returned, on its rank; None on the others, when the cluster has ended.

    Raises
    ------
    Exception
        What the function raised, on its rank, after the cluster has ended.
    """
    parts = Parts(
        scheduler_rank if scheduler else None, client_rank if client_function is not None else None, exclusive_workers
    )
    rank = make(
        world(comm), parts, scheduler_address=scheduler_address, scheduler_port=scheduler_port,
        scheduler_file=scheduler_file, **options,
    )  # fmt: skip

    async def part() -> T | None:
        here = await rank.meet()
        if client_function is None or rank.comm.Get_rank() != client_rank:
            await rank.serve(here)
            return None
        servers = asyncio.ensure_future(rank.serve(here)) if here is not None or not exclusive_workers else None
        import dask

        assert rank.address is not None
        dask.config.set({"scheduler-address": rank.address})
        if rank.security.token:
            os.environ[TOKEN_VARIABLE] = rank.security.token
        try:
            return await asyncio.to_thread(client_function, *args, **(function_kwargs or {}))
        finally:
            await asyncio.to_thread(send_close_signal)
            if servers is not None:
                await servers

    return entering.run(part())
