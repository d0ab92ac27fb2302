"""Which client is meant when none is named.

Inside a task it is the worker's own client, so that a task's futures belong to the worker and go with it. Elsewhere it
is the one that `Client.as_current` has set for the calling thread or coroutine, else the youngest open client of the
process that was made with ``set_as_default=True``.

dask asks its configuration for a scheduler object, and holds on to it. It gets `CurrentClient`, which holds no client
and looks for the right one each time: so one setting serves user code, tasks in worker processes and tasks in threads,
and a client that is dropped is collected.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from daskfleet.importing import when_imported
from daskfleet.shuffle import hooks
from daskfleet.worker.context import running_worker

if TYPE_CHECKING:
    from daskfleet.client.client import Client

_active: ContextVar[Client | None] = ContextVar("daskfleet_client", default=None)
_defaults: list[weakref.ref[Client]] = []
_configuration: Any = None
_waiting = False  # for dask to be imported


def current_client(allow_global: bool = True) -> Client:
    """The client of the calling task, thread or coroutine, or else the process's default.

    Raises
    ------
    ValueError
        There is none.
    """
    client = _active.get()
    if client is not None and client.status != "closed":
        return client
    worker = running_worker()
    if worker is not None:
        return worker_client_of(worker)
    if allow_global:
        for reference in reversed(_defaults):
            client = reference()
            if client is not None and client.status == "running":
                return client
    raise ValueError("no client: create one with Client(...) first")


def worker_client_of(worker: Any) -> Client:
    """The client that the tasks of `worker` share; made when first asked for, without waiting for its connection.

    One that never reached the scheduler, or lost it for good, gives way to another: the worker itself may have it.
    """
    client = cast("Client | None", worker.client)
    if client is not None and client.status != "closed":
        return client
    from daskfleet.client.client import TaskClient

    with worker.client_lock:
        if worker.client is None or (worker.client.status == "closed" and worker.status == "running"):
            worker.client = TaskClient(worker)
        return cast("Client", worker.client)


@contextlib.contextmanager
def as_current(client: Client) -> Iterator[Client]:
    """Make `client` the current one of this thread or coroutine."""
    token = _active.set(client)
    try:
        yield client
    finally:
        _active.reset(token)


class CurrentClient:
    """What dask's configuration holds as its scheduler: whichever client is current when it is asked."""

    def __getattr__(self, name: str) -> Any:
        return getattr(current_client(), name)

    def __repr__(self) -> str:
        return "<the current daskfleet client>"

    def __reduce__(self) -> tuple[Any, ...]:
        return CurrentClient, ()


def configure() -> None:
    """Let dask's collections compute on the current client, in this process."""
    global _configuration
    if _configuration is not None:
        return
    import dask

    settings: dict[str, Any] = {"scheduler": CurrentClient()}
    # Without this dask falls back to shuffling through one process's local disk, which is wrong across workers.
    if dask.config.get("dataframe.shuffle.method", None) is None:
        settings["dataframe.shuffle.method"] = "p2p"
    hooks.install(_ours, _lock, _wait)
    _configuration = dask.config.set(settings)


def _ours() -> bool:
    """Whether what dask is about to do will run on our workers."""
    try:
        current_client()
    except ValueError:
        return "distributed" not in sys.modules
    return True


def _wait(*args: Any) -> Any:
    from daskfleet.client.waiting import wait

    return wait(*args)


def _lock(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """What dask puts around ``store(lock=True)``, ``to_hdf`` …: of the cluster, where threads of one process will not
    do."""

    @functools.wraps(theirs)
    def get_scheduler_lock(collection: Any = None, scheduler: Any = None) -> Any:
        from dask.base import get_scheduler

        try:
            client = current_client()
        except ValueError:
            return theirs(collection, scheduler)
        if get_scheduler(collections=[collection], scheduler=scheduler) != client.get:
            return theirs(collection, scheduler)
        from daskfleet.client.locks import Lock

        return Lock()

    return get_scheduler_lock


def become_default(client: Client) -> None:
    """`client` is the one to use from now on."""
    global _waiting
    _defaults.append(weakref.ref(client))
    if "dask" in sys.modules:
        configure()
    elif not _waiting:
        _waiting = True
        when_imported("dask", _configure_late)


def _configure_late() -> None:
    if _defaults:
        configure()


def resign(client: Client) -> None:
    """`client` is closed: the one before it is the default again, if it is still open."""
    global _configuration
    _defaults[:] = [kept for kept in _defaults if (other := kept()) is not None and other is not client]
    if not _defaults and _configuration is not None:
        import dask

        if isinstance(dask.config.get("scheduler", None), CurrentClient):
            _configuration.__exit__(None, None, None)
        _configuration = None
