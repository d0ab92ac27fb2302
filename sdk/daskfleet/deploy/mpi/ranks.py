"""What each rank of an MPI job is: `Rank`, behind `initialize`, `execute` and ``dask-mpi``.

The scheduler's address and the token go to all ranks, by one MPI message each, and another one says to the workers that
the cluster has ended, also to those that have not started yet; nothing else uses MPI, and nothing is written anywhere.
When rank 1 is done, in whatever way, it tells the scheduler to shut down, the scheduler tells the workers, and every
rank leaves by itself: so ``mpirun`` ends with the exit status of the script. A scheduler that cannot start says so in
the first message, and all ranks fail. A worker that cannot start says why and aborts the job, as MPI has it: a rank
that merely ended would wait for the others where MPI is finalized, and the script for its workers.

Each rank imports what its part needs, when it does: there are many of them, and they all start at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskfleet import scheduler_file as files
from daskfleet import system
from daskfleet.deploy.process import load_class, takes
from daskfleet.exceptions import DaskfleetError
from daskfleet.security import Security

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

logger = logging.getLogger(__name__)

#: Of our messages: where the scheduler is, and that the cluster has ended.
MEET, OVER = 8786, 8787
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

    def _over(self) -> bool:
        """Whether the scheduler's rank has said that the cluster has ended."""
        root = self.parts.scheduler
        return root not in (None, self.comm.Get_rank()) and bool(self.comm.iprobe(source=root, tag=OVER))

    async def _worker(self) -> list[Any]:
        """The worker of this rank, started; none if the cluster ends before. If it fails, all ranks end."""
        rank = self.comm.Get_rank()
        options = {"death_timeout": DEATH_TIMEOUT, **self.worker_options, "security": self.security}
        name = f"{self.name}-{rank}" if self.name else rank
        try:
            cls = load_class(self.worker_class)
            if not takes(cls, "death_timeout"):
                del options["death_timeout"]
            worker = cls(self.address, name=name, **options)
            starting = asyncio.ensure_future(_started(worker))
            while not starting.done() and not self._over():
                await asyncio.wait([starting], timeout=0.1)
            if starting.done():
                return [starting.result()]
        except Exception as error:  # whatever it is: a worker's class may be the user's
            logger.debug("no worker", exc_info=True)
            sys.stderr.write(f"Error: the worker on rank {rank} cannot start: {error}\n")
            sys.stderr.flush()
            await asyncio.sleep(0.2)  # what mpirun has not read by then it may drop
            self.comm.Abort(1)
            raise
        starting.cancel()
        with contextlib.suppress(Exception):  # it never was a worker
            async with asyncio.timeout(5):
                await worker.close()
        return []

    async def serve(self, scheduler: Scheduler | None, stop: asyncio.Event | None = None) -> None:
        """Be what this rank is (the client aside) until it is over, or until `stop`."""
        system.allow_many_files()
        rank = self.comm.Get_rank()
        workers = await self._worker() if self.parts.works(rank) else []
        servers = workers if scheduler is None else [scheduler, *workers]
        over: asyncio.Future[Any] = asyncio.gather(*(server.finished() for server in servers))
        interrupted: asyncio.Future[Any] = asyncio.ensure_future((stop or asyncio.Event()).wait())
        await asyncio.wait([interrupted, over], return_when=asyncio.FIRST_COMPLETED)
        for worker in workers:
            await worker.close()
        if scheduler is not None:
            self._list(None)
            await scheduler.close("told to stop", close_workers=True)
        if not interrupted.done():
            await self._part()
        interrupted.cancel()

    async def _part(self) -> None:
        """Let the workers' ranks know that the cluster has ended; on those, wait for that word."""
        rank, root = self.comm.Get_rank(), self.parts.scheduler
        if rank == root:
            for other in range(self.comm.Get_size()):
                if other != rank and self.parts.works(other):
                    self.comm.send(None, dest=other, tag=OVER)
        elif root is not None:
            with contextlib.suppress(TimeoutError):  # its rank has been killed
                async with asyncio.timeout(DEATH_TIMEOUT):
                    while not self._over():  # noqa: ASYNC110  # MPI has no events
                        await asyncio.sleep(0.02)
                self.comm.recv(source=root, tag=OVER)


async def _started(server: Any) -> Any:
    return await server


def _told_to_all(comm: Any, told: Any, root: int) -> Any:
    """What `root` says, on every rank. Who waits for a broadcast spins, and takes the processors from `root`."""
    if comm.Get_rank() == root:
        for rank in range(comm.Get_size()):
            if rank != root:
                comm.send(told, dest=rank, tag=MEET)
        return told
    while not comm.iprobe(source=root, tag=MEET):
        time.sleep(0.01)
    return comm.recv(source=root, tag=MEET)


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
        "protocol": protocol,
        "dashboard_address": dashboard_address if dashboard else None,
    }
    return Rank(
        comm, parts, scheduler, worker_class or default, worker, security, worker_name, scheduler_file,
        scheduler_address,
    )  # fmt: skip
