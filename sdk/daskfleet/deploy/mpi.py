"""A cluster inside an MPI job: every rank runs the same script, and `initialize` or `execute` gives each its part.

By default rank 0 is the scheduler, rank 1 runs the script, and the others are workers. The scheduler's address and the
token go to all ranks, by one MPI message each; nothing else uses MPI, and nothing is written anywhere. When rank 1 is
done, in whatever way, it tells the scheduler to shut down, the scheduler tells the workers, and every rank leaves by
itself: so ``mpirun`` ends with the exit status of the script. A rank that fails to start says so in the same message,
and all ranks fail together instead of waiting for one another.

Each rank imports what its part needs, when it does: there are many of them, and they all start at once.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from daskfleet import scheduler_file as files
from daskfleet import system
from daskfleet.deploy.process import load_class, takes
from daskfleet.exceptions import DaskfleetError
from daskfleet.security import TOKEN_VARIABLE, Security

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Of our one message.
TAG = 8786
#: Seconds after which a worker gives up on a scheduler that is gone: the other ranks are, too.
DEATH_TIMEOUT = 30.0


@dataclass(frozen=True)
class Parts:
    """Which rank does what.

    Attributes
    ----------
    scheduler, client
        Their ranks, None where there is none.
    exclusive
        Whether the scheduler and the client have their ranks to themselves, or share them with a worker.
    """

    scheduler: int | None = 0
    client: int | None = 1
    exclusive: bool = True

    def works(self, rank: int) -> bool:
        """Whether there is a worker on `rank`."""
        return not self.exclusive or rank not in (self.scheduler, self.client)

    def check(self, size: int) -> None:
        """Raise ValueError unless `size` ranks are enough."""
        taken = {rank for rank in (self.scheduler, self.client) if rank is not None}
        needed = max([*(rank + 1 for rank in taken), len(taken) + 1 if self.exclusive else 1])
        if size < needed:
            raise ValueError(
                f"{size} MPI ranks are too few, {needed} are needed (a scheduler, the script, and a worker): "
                f"mpirun -np {max(needed, 4)} …"
            )


def world(comm: Any) -> Any:
    """The communicator given, or that of all ranks. Raises DaskfleetError if there is no mpi4py."""
    if comm is not None:
        return comm
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise DaskfleetError(f"MPI needs mpi4py, built for your mpirun: pip install mpi4py ({error})") from None
    return MPI.COMM_WORLD


@dataclass
class Rank:
    """This rank's part, with what `initialize` and ``dask-mpi`` have been given.

    Attributes
    ----------
    scheduler_options, worker_options
        Keyword arguments of the scheduler and of `worker_class`.
    scheduler_file
        File that the scheduler writes, or that says where the existing one is.
    address
        The scheduler's, where there is one already.
    """

    comm: Any
    parts: Parts
    scheduler_options: dict[str, Any]
    worker_class: Any
    worker_options: dict[str, Any]
    security: Security
    name: str | None = None
    scheduler_file: str | None = None
    address: str | None = None

    def _list(self, scheduler: Scheduler | None) -> None:
        """Have ``daskfleet list`` show the cluster, or no more."""
        from daskfleet.deploy import registry
        from daskfleet.deploy.spec import SpecCluster

        name = f"mpi-{socket.gethostname()}-{os.getpid()}"
        with contextlib.suppress(OSError, ValueError):  # nowhere to write
            if scheduler is None:
                registry.forget(name)
            else:
                registry.record(name, scheduler.identity(), self.security, SpecCluster, {})

    async def meet(self) -> Scheduler | None:
        """Have the scheduler up, and its address and token on every rank; the scheduler, on its own rank.

        Raises
        ------
        DaskfleetError
            On every rank, if the scheduler could not be started.
        """
        rank, root = self.comm.Get_rank(), self.parts.scheduler
        if root is None:
            return None
        scheduler, told = None, None
        if rank == root:
            from daskfleet.scheduler.server import Scheduler

            try:
                scheduler = await Scheduler(security=self.security, **self.scheduler_options)
                if self.scheduler_file:
                    files.write(self.scheduler_file, scheduler.identity(), self.security)
                self._list(scheduler)
                told = ("", scheduler.address, self.security.token)
            except Exception as error:  # whatever it is: all others wait for word, and would do so for ever
                logger.debug("no scheduler", exc_info=True)
                told = (f"the scheduler on rank {root} cannot start: {error}", "", None)
        problem, self.address, self.security.token = _told_to_all(self.comm, told, root)
        if problem:
            raise DaskfleetError(problem)
        return scheduler

    async def serve(self, scheduler: Scheduler | None, stop: asyncio.Event | None = None) -> None:
        """Be what this rank is (the client aside) until it is over, or until `stop`."""
        system.allow_many_files()
        rank = self.comm.Get_rank()
        servers: list[Any] = [scheduler] if scheduler is not None else []
        if self.parts.works(rank):
            options = {"death_timeout": DEATH_TIMEOUT, **self.worker_options, "security": self.security}
            name = f"{self.name}-{rank}" if self.name else rank
            cls = load_class(self.worker_class)
            if not takes(cls, "death_timeout"):
                del options["death_timeout"]
            servers.append(await cls(self.address, name=name, **options))
        over: asyncio.Future[Any] = asyncio.gather(*(server.finished() for server in servers))
        interrupted: asyncio.Future[Any] = asyncio.ensure_future((stop or asyncio.Event()).wait())
        await asyncio.wait([interrupted, over], return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        for server in reversed(servers):
            if server is not scheduler:
                await server.close()
        if scheduler is not None:
            self._list(None)
            await scheduler.close("told to stop", close_workers=True)


def _told_to_all(comm: Any, told: Any, root: int) -> Any:
    """What `root` says, on every rank. Who waits for a broadcast spins, and takes the processors from `root`."""
    if comm.Get_rank() == root:
        for rank in range(comm.Get_size()):
            if rank != root:
                comm.send(told, dest=rank, tag=TAG)
        return told
    while not comm.iprobe(source=root, tag=TAG):
        time.sleep(0.01)
    return comm.recv(source=root, tag=TAG)


def make(
    comm: Any,
    parts: Parts,
    *,
    interface: str | None = None,
    nthreads: int | None = 1,
    local_directory: str | None = None,
    memory_limit: str | float | None = "auto",
    nanny: bool = False,
    dashboard: bool = True,
    dashboard_address: str | None = ":8787",
    protocol: str | None = None,
    worker_class: Any = None,
    worker_options: dict[str, Any] | None = None,
    worker_name: str | None = None,
    scheduler_port: int = 0,
    scheduler_file: str | None = None,
    scheduler_address: str | None = None,
    security: Security | None = None,
) -> Rank:
    """This rank's `Rank`, from the parameters that `initialize`, `execute` and ``dask-mpi`` have in common."""
    parts.check(comm.Get_size())
    security = security or Security.with_token()
    if parts.scheduler is None and scheduler_file and not scheduler_address:
        info = files.read(scheduler_file, wait=True)
        scheduler_address, security = info.address, info.security or security
    default = "daskfleet.Nanny" if nanny else "daskfleet.Worker"
    worker = {
        "nthreads": nthreads,
        "interface": interface,
        "memory_limit": memory_limit,
        "local_directory": local_directory or None,
        "protocol": protocol,
        **(worker_options or {}),
    }
    scheduler = {
        "port": scheduler_port,
        "interface": interface,
        "protocol": protocol or ("tls" if security.encrypted else "tcp"),
        "dashboard_address": dashboard_address if dashboard else None,
    }
    return Rank(
        comm, parts, scheduler, worker_class or default, worker, security, worker_name, scheduler_file,
        scheduler_address,
    )  # fmt: skip


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
    asyncio.run(_meet_and_serve(rank))
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

    return asyncio.run(part())
