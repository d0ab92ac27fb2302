"""Tasks that use the cluster: `get_client`, `worker_client`, and not blocking a worker while they wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from daskfleet.client.current import current_client, worker_client_of
from daskfleet.worker.context import in_task, rejoin, running_worker, secede

if TYPE_CHECKING:
    from daskfleet.client.client import Client


@contextlib.contextmanager
def giving_way() -> Iterator[None]:
    """Let other tasks run in this one's place while it waits; does nothing outside of a task."""
    if not in_task():
        yield
        return
    secede()
    try:
        yield
    finally:
        rejoin()


def get_client(address: str | None = None, timeout: float | str | None = None, resolve_address: bool = True) -> Client:
    """The client of the calling task, or the current one outside of tasks.

    A task's client is its worker's, shared with the worker's other tasks. In a coroutine its methods return awaitables.
    Closing it does nothing.

    Parameters
    ----------
    address
        A scheduler's address: when it is not the worker's own scheduler, a new client of that is made.
    timeout
        Seconds (or a text such as ``"10s"``) for making one.

    Raises
    ------
    ValueError
        There is no client and no address.
    """
    worker = running_worker()
    if worker is not None and (address is None or address == worker.scheduler_address):
        return worker_client_of(worker)
    if address is None:
        return current_client()
    with contextlib.suppress(ValueError):
        client = current_client()
        if client.scheduler_address == address:
            return client
    from daskfleet.client.client import Client

    return Client(address, timeout=timeout)


class worker_client:
    """The task's client as a context, in ``with`` and ``async with``: the task secedes for as long as it is open.

    Parameters
    ----------
    timeout
        As `get_client` has it.
    separate_thread
        False to go on occupying a slot of the worker, except while blocking calls of the client wait.

    Examples
    --------
    >>> def count(files):
    ...     with worker_client() as client:
    ...         return sum(client.gather(client.map(len, files)))
    """

    def __init__(self, timeout: float | str | None = None, separate_thread: bool = True) -> None:
        self._timeout, self._separate = timeout, separate_thread

    def __enter__(self) -> Client:
        client = get_client(timeout=self._timeout)
        self._separate = self._separate and in_task()
        if self._separate:
            secede()
        return client

    def __exit__(self, *_: object) -> None:
        if self._separate:
            rejoin()

    async def __aenter__(self) -> Client:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


local_client = worker_client


def default_client(c: Client | None = None) -> Client:
    """`c`, or the current client.

    Raises
    ------
    ValueError
        There is none.
    """
    return c if c is not None else current_client()


def fire_and_forget(obj: Any) -> Any:
    """Let these run to their end though nobody holds their futures.

    Parameters
    ----------
    obj
        A future, a collection, or a list of them; collections are submitted. The results are dropped. They outlive this
        client; should the scheduler be lost, one in its place learns of them from clients that are still there.

    Returns
    -------
    None
        Or an awaitable of it in an asynchronous client.
    """
    from dask.base import is_dask_collection

    from daskfleet.client.collections import futures_of

    def submitted(item: Any) -> Any:
        if isinstance(item, (list, tuple, set)):
            return [submitted(each) for each in item]
        if is_dask_collection(item) and not futures_of(item):
            return current_client().compute(item)
        return item

    futures = futures_of(submitted(obj))
    for future in futures:
        future.client._fire(future._state)
