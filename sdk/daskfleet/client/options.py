"""What users may ask of a task beyond the usual, as the scheduler reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from daskfleet.client.spans import current
from daskfleet.client.times import seconds


def task_options(
    workers: str | Iterable[str] | None,
    resources: Mapping[str, float] | None,
    retries: int | None,
    allow_other_workers: bool,
    timeout: float | str | None = None,
    actor: bool = False,
) -> dict[str, Any] | None:
    """The options of `Client.submit`; None when there are none, which is the common case and costs nothing."""
    options: dict[str, Any] = current()
    if workers is not None:
        options["workers"] = worker_names(workers)
        options["allow_other_workers"] = allow_other_workers
    elif allow_other_workers:
        raise ValueError("allow_other_workers=True says nothing without workers=")
    if resources:
        options["resources"] = dict(resources)
    if retries:
        options["retries"] = retries
    if timeout is not None:
        options["timeout"] = seconds(timeout)
    if actor:
        options["actor"] = True
    return options or None


def graph_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of `Client.compute`, for every task of a graph."""
    known = current() | {
        name: kwargs[name]
        for name in ("priority", "retries", "resources", "allow_other_workers", "timeout")
        if kwargs.get(name)
    }
    if kwargs.get("workers"):
        known["workers"] = worker_names(kwargs["workers"])
    return known


def worker_names(workers: Any) -> list[str] | None:
    """A list of names or addresses, from one or several; None, which is all workers, from None."""
    if workers is None:
        return None
    return [workers] if isinstance(workers, str) else [str(worker) for worker in workers]
