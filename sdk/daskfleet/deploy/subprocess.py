"""`SubprocessCluster`: a scheduler and workers of this machine that share nothing with this process.

`LocalCluster` has its scheduler in this process, which is quicker to start and can be looked into. Here the scheduler
has an interpreter of its own, so that neither a long computation of the user's nor the client's own work delays it.
"""

from __future__ import annotations

import logging
from typing import Any

from daskfleet import system
from daskfleet.deploy.local import shape
from daskfleet.deploy.session import Here, Scheduler, Worker
from daskfleet.deploy.spec import SpecCluster


class SubprocessCluster(SpecCluster):
    """A cluster on this machine, every part of it in a process of its own.

    Parameters
    ----------
    host
        Address to listen on; only this machine can connect by default.
    scheduler_port
        0 for any free port.
    scheduler_kwargs
        Further parameters of `daskfleet.Scheduler`.
    dashboard_address
        ``":8787"`` by default (another free port if that is taken); None for no dashboard.
    worker_class
        ``"daskfleet.Nanny"`` by default.
    n_workers, threads_per_worker
        By default the processors are split over workers.
    worker_dashboard_address
        Where each worker serves its metrics; nowhere by default.
    worker_kwargs
        Further parameters of `worker_class`.
    **kwargs
        Further parameters of `SpecCluster`.

    Examples
    --------
    >>> with SubprocessCluster(n_workers=2) as cluster, cluster.get_client() as client:  # doctest: +SKIP
    ...     client.submit(sum, [1, 2]).result()
    3
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        scheduler_port: int = 0,
        scheduler_kwargs: dict[str, Any] | None = None,
        dashboard_address: str | None = ":8787",
        worker_class: Any = "daskfleet.Nanny",
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        worker_dashboard_address: str | None = None,
        worker_kwargs: dict[str, Any] | None = None,
        silence_logs: Any = logging.WARNING,
        **kwargs: Any,
    ) -> None:
        n_workers, nthreads = shape(n_workers, threads_per_worker, True, system.cpu_count())
        here = Here()
        scheduler = {
            "host": host,
            "port": scheduler_port,
            "dashboard_address": dashboard_address,
            **(scheduler_kwargs or {}),
        }
        options = {
            "nthreads": nthreads,
            "host": host,
            "dashboard_address": worker_dashboard_address,
            **(worker_kwargs or {}),
        }
        worker = {"cls": Worker, "options": {"place": here, "worker_class": worker_class, "options": options}}
        super().__init__(
            dict.fromkeys(range(n_workers), worker),
            {"cls": Scheduler, "options": {"place": here, "options": scheduler}},
            worker,
            silence_logs=silence_logs,
            **kwargs,
        )
