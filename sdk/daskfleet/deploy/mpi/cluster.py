"""`MPICluster`: workers that an MPI launcher starts, for a notebook or a script that does not run under it itself.

Scripts that do are for `daskfleet.deploy.mpi`. Here each process of the cluster is one launch, ``mpirun -n RANKS
dask-mpi --no-scheduler …``, of which every rank is a worker. The ranks of a launch come and go together, as those of
any MPI program; they are the members of a group. The scheduler runs in this process. The launcher runs in a session
(`daskfleet.deploy.session`), which ends with this process, however that ends, and takes the ranks with it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from daskfleet.deploy.session import Here, Session
from daskfleet.deploy.spec import SpecCluster
from daskfleet.exceptions import DaskfleetError
from daskfleet.scheduler.server import Scheduler
from daskfleet.security import TOKEN_VARIABLE, Security

#: OpenMPI's: the variables that ranks on other hosts get, too. Other launchers hand over all.
FORWARDED = "OMPI_MCA_mca_base_env_list"


class Launch(Session):
    """One run of the launcher, in a session of this machine.

    Parameters
    ----------
    launcher
        What to run, up to the program.
    options
        Of ``dask-mpi``, besides the scheduler and the name.
    """

    def __init__(
        self,
        scheduler: str,
        *,
        launcher: Sequence[str],
        python: str,
        options: dict[str, Any],
        security: Security | None = None,
        **where: Any,
    ) -> None:
        super().__init__(scheduler, **where)
        self._command = [*launcher, python, "-m", "daskfleet.cli.mpi", "--no-scheduler", scheduler]
        for name, value in {"name": self.name, **options}.items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                self._command.append(f"--{option}" if value else f"--no-{option}")
            elif value is not None:
                self._command += [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
        self._token = security.token if security is not None else None

    def servers(self) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
        env = {TOKEN_VARIABLE: self._token} if self._token else {}
        if env and "-x" not in self._command:  # OpenMPI takes a list by one way only
            env[FORWARDED] = ";".join(filter(None, [os.environ.get(FORWARDED), TOKEN_VARIABLE]))
        return [("daskfleet.deploy.remote.Program", tuple(self._command), {"env": env})]


class MPICluster(SpecCluster):
    """A cluster whose workers an MPI launcher starts, on the hosts of an allocation or on those that it is told.

    Parameters
    ----------
    n_workers
        Workers to start at once.
    ranks
        Workers of one launch, which start and end together; all of `n_workers` by default. `scale` and `adapt` work in
        launches, so they need it smaller than what they are to vary.
    launcher
        The command, ``"mpirun"`` or ``["srun", "--mpi=pmi2"]``, with what else it is to be told: ``"mpirun --hostfile
        hosts"``. It gets ``-n RANKS`` besides. An OpenMPI that you give an ``-x`` needs ``-x DASKFLEET_TOKEN``, too.
    interface, protocol
        For scheduler and workers.
    nthreads, memory_limit, local_directory, nanny, worker_class, worker_options
        Of each worker, as `daskfleet.deploy.mpi.initialize` has them; `worker_options` must be such as JSON can hold.
    dashboard_address, scheduler_options
        Keyword arguments of `daskfleet.Scheduler`; port 0, which is any free one, by default.
    python
        The Python of the workers, which has mpi4py; this one by default.
    **kwargs
        Further parameters of `SpecCluster`.

    Raises
    ------
    DaskfleetError
        There is no such launcher.

    Examples
    --------
    >>> cluster = MPICluster(n_workers=64)  # doctest: +SKIP
    >>> cluster = MPICluster(ranks=8, launcher="srun --mpi=pmi2")  # doctest: +SKIP
    >>> cluster.adapt(maximum=64)  # doctest: +SKIP
    """

    def __init__(
        self,
        n_workers: int = 0,
        ranks: int | None = None,
        launcher: str | Sequence[str] = "mpirun",
        *,
        interface: str | None = None,
        protocol: str | None = None,
        nthreads: int = 1,
        memory_limit: str | float | None = "auto",
        local_directory: str | None = None,
        nanny: bool = False,
        worker_class: str | None = None,
        worker_options: dict[str, Any] | None = None,
        dashboard_address: str | None = ":8787",
        scheduler_options: dict[str, Any] | None = None,
        python: str = sys.executable,
        security: Security | None = None,
        silence_logs: Any = logging.WARNING,
        **kwargs: Any,
    ) -> None:
        command = shlex.split(launcher) if isinstance(launcher, str) else list(launcher)
        if not command or not shutil.which(command[0]):
            missing = command[0] if command else launcher
            raise DaskfleetError(f"no command {missing!r} here: load the module of your MPI, or name it by launcher=…")
        ranks = max(1, n_workers if ranks is None else ranks)
        security = security or Security.with_token()
        options = {
            "nthreads": nthreads, "memory_limit": 0 if memory_limit is None else memory_limit, "nanny": nanny,
            "local_directory": local_directory, "interface": interface, "protocol": protocol,
            "worker_class": worker_class, "worker_options": worker_options,
        }  # fmt: skip
        command += ["-n", str(ranks)]
        worker = {
            "cls": Launch,
            "options": {"place": Here(), "launcher": command, "python": python, "options": options},
            "group": [f"-{rank}" for rank in range(ranks)],
        }
        scheduler = {
            "port": 0,
            "interface": interface,
            "protocol": protocol,
            "dashboard_address": dashboard_address,
            **(scheduler_options or {}),
        }
        super().__init__(
            dict.fromkeys(range(math.ceil(n_workers / ranks)), worker),
            {"cls": Scheduler, "options": scheduler},
            worker,
            security=security,
            silence_logs=silence_logs,
            **kwargs,
        )
