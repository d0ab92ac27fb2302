"""Keyword arguments of distributed's constructors that ours do not take: which have no effect here, and what to do
instead of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: By themselves they change nothing that a user of daskfleet could see.
WITHOUT_EFFECT = frozenset({"heartbeat_interval", "loop", "low_level_profiler", "nanny", "profile_cycle_interval"})
WITHOUT_EFFECT |= {"quiet", "reconnect", "scheduler_sync_interval", "silence_logs", "start", "transition_counter_max"}
WITHOUT_EFFECT |= {"validate"}
_ADDRESS = "dashboard_address= says where the HTTP server listens"
_INTERNAL = "that is a part of distributed's inside, which there is not here"
#: What to do instead, for all classes.
INSTEAD = {
    "WorkerStateClass": _INTERNAL,
    "blocked_handlers": "give the cluster a token (security=Security(token=…)), so that no stranger asks for anything",
    "config": 'env={"DASK_DISTRIBUTED__…": "…"} sets dask\'s configuration in the worker\'s process',
    "data": "what goes to disk, and when, is said by distributed.worker.memory.target, .spill and .max-spill",
    "executor": "tasks run in nthreads= threads; run a worker of one thread where they need a process each",
    "extensions": "write a plugin (plugins=[…])",
    "listen_address": "host= and port= say where it listens",
    "metrics": "write a WorkerPlugin (plugins=[…]), whose setup may start what calls worker.log_event now and then",
    "service_kwargs": _ADDRESS,
    "services": _ADDRESS,
    "startup_information": "Client.run asks the workers for what you want to know",
    "worker_services": "worker_dashboard_address= says where the workers' HTTP servers listen",
}


def refuse(kind: str, given: Mapping[str, Any]) -> None:
    """Keyword arguments that `kind` does not know: those without effect, and those that are empty, are let pass.

    Raises
    ------
    TypeError
        There are others; the message says what to do.
    """
    wrong = [name for name, value in given.items() if name not in WITHOUT_EFFECT and not _empty(name, value)]
    if wrong:
        reasons = (INSTEAD.get(name, f"help({kind}) lists what there is") for name in wrong)
        text = "; ".join(f"{kind}() takes no {name}=: {reason}" for name, reason in zip(wrong, reasons, strict=True))
        raise TypeError(text)


def _empty(name: str, value: Any) -> bool:
    """Whether somebody only writes down what distributed has by default."""
    return name in INSTEAD and (value is None or value is False or value == {} or value == () or value == [])
