"""`Lock`, `Semaphore`, `MultiLock` and `Event` across clients and tasks.

What a client holds is free again when it ends, or has lost its connection and does not come back within 15 s; what a
task holds, when its worker ends. Both outlive the scheduler: who holds what is known to the one in its place. So there
is no timeout to choose, and none that runs out while work goes on. (distributed's leases have to be renewed and end
after ``distributed.scheduler.locks.lease-timeout``.)
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from daskfleet.client.named import Named
from daskfleet.client.times import seconds

if TYPE_CHECKING:
    from daskfleet.client.client import Client


class Semaphore(Named):
    """At most `max_leases` at a time may hold it.

    Parameters
    ----------
    max_leases
        How many.
    name, client
        As `Named` has them.

    Examples
    --------
    >>> semaphore = Semaphore(max_leases=2, name="database")  # doctest: +SKIP
    >>> with semaphore:  # doctest: +SKIP
    ...     query()
    """

    def __init__(self, max_leases: int = 1, name: str | None = None, client: Client | None = None) -> None:
        if max_leases < 1:
            raise ValueError(f"max_leases={max_leases}: a semaphore nobody can hold")
        super().__init__(name, client)
        self.max_leases = max_leases
        self._leases: deque[str] = deque()

    def acquire(self, timeout: float | str | None = None) -> Any:
        """Take a lease, waiting up to `timeout` (seconds, or a text such as ``"10s"``) for one.

        Returns
        -------
        bool
            Whether one was had.
        """
        return self._sync(self._acquire, seconds(timeout))

    async def _acquire(self, timeout: float | None) -> bool:
        lease, client = uuid.uuid4().hex, self.client
        try:
            got = await client._call("semaphore_acquire", self.name, lease, self.max_leases, timeout)
        except BaseException:
            if client.status == "running":
                client._send(("semaphore_drop", (self.name, lease)))  # it may have been granted meanwhile
            raise
        if got:
            self._leases.append(lease)
        return bool(got)

    def release(self) -> Any:
        """Give back the lease that this object took first.

        Returns
        -------
        bool
            True.

        Raises
        ------
        RuntimeError
            It holds none.
        """
        return self._sync(self._release)

    async def _release(self) -> bool:
        if not self._leases:
            raise RuntimeError(f"{self!r} is not held")
        await self.client._call("semaphore_release", self.name, self._leases.popleft())
        return True

    def get_value(self) -> Any:
        """How many leases are taken."""
        return self._ask("semaphore_value")

    def close(self) -> Any:
        """Forget the semaphore; leases that are out are worth nothing any more.

        In difference from distributed it can be used again, and begins anew then.
        """
        self._leases.clear()
        return self._ask("semaphore_close")

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        await self._acquire(None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._release()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.max_leases, self.name)


class Lock(Semaphore):
    """One at a time may hold it.

    Examples
    --------
    >>> with Lock("file"):  # doctest: +SKIP
    ...     write()
    """

    def __init__(self, name: str | None = None, client: Client | None = None) -> None:
        super().__init__(1, name, client)

    def acquire(self, blocking: bool = True, timeout: float | str | None = None) -> Any:  # type: ignore[override]
        """Take the lock, waiting for it up to `timeout` (seconds, or a text) unless not `blocking`.

        Returns
        -------
        bool
            Whether it was had.
        """
        if not blocking and timeout is not None:
            raise ValueError("blocking=False does not wait, so a timeout says nothing")
        return self._sync(self._acquire, seconds(timeout) if blocking else 0.0)

    def locked(self) -> Any:
        """Whether anybody holds it."""
        return self._sync(self._locked)

    async def _locked(self) -> bool:
        return bool(await self.client._call("semaphore_value", self.name))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)


class MultiLock(Named):
    """Several locks at once, taken together or not at all, so that no two holders wait for each other.

    Parameters
    ----------
    names
        The locks' names; `MultiLock` objects that share some of them exclude each other there.
    client
        As `Named` has it.
    """

    def __init__(self, names: Iterable[str] = (), client: Client | None = None) -> None:
        super().__init__("", client)
        self.names = list(names)
        self._lease: str | None = None

    def acquire(self, blocking: bool = True, timeout: float | str | None = None, num_locks: int | None = None) -> Any:
        """Take the locks.

        Parameters
        ----------
        blocking, timeout
            As `Lock.acquire` has them.
        num_locks
            Any so many of them will do; by default all.

        Returns
        -------
        bool
            Whether they were had.
        """
        if self._lease is not None:
            raise RuntimeError("this MultiLock is held already: use another object for another hold")
        if not blocking and timeout is not None:
            raise ValueError("blocking=False does not wait, so a timeout says nothing")
        count = len(self.names) if num_locks is None else num_locks
        if not 1 <= count <= len(self.names):
            raise ValueError(f"num_locks={count} of {len(self.names)} locks")
        return self._sync(self._acquire, count, seconds(timeout) if blocking else 0.0)

    async def _acquire(self, count: int, timeout: float | None) -> bool:
        lease, client = uuid.uuid4().hex, self.client
        try:
            got = await client._call("multilock_acquire", self.names, lease, count, timeout)
        except BaseException:
            if client.status == "running":
                client._send(("multilock_drop", lease))
            raise
        if got:
            self._lease = lease
        return bool(got)

    def release(self) -> Any:
        """Give them back.

        Raises
        ------
        ValueError
            They are not held.
        """
        return self._sync(self._release)

    def locked(self) -> bool:
        """Whether this object holds them."""
        return self._lease is not None

    async def _release(self) -> None:
        if self._lease is None:
            raise ValueError(f"{self!r} is not held")
        lease, self._lease = self._lease, None
        await self.client._call("multilock_release", lease)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        await self._acquire(len(self.names), None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._release()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.names,)

    def __repr__(self) -> str:
        return f"<MultiLock {', '.join(self.names)}>"


class Event(Named):
    """A flag that tasks and clients set and wait for. It survives the scheduler, as a `Variable` does."""

    def wait(self, timeout: float | str | None = None) -> Any:
        """Wait until it is set.

        Returns
        -------
        bool
            False if it was not within `timeout` (seconds, or a text).
        """
        return self._ask("event_wait", seconds(timeout))

    def set(self) -> Any:
        """Set it: whoever waits goes on."""
        return self._ask("event_set")

    def clear(self) -> Any:
        """Clear it."""
        return self._ask("event_clear")

    def is_set(self) -> Any:
        """Whether it is set."""
        return self._ask("event_is_set")
