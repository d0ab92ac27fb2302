"""`Variable` and `Queue`: futures and small data, passed between clients and tasks."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

from daskfleet.client.future import Future
from daskfleet.client.named import Named
from daskfleet.client.times import seconds
from daskfleet.protocol.serialize import dumps_by_value, loads

if TYPE_CHECKING:
    from daskfleet.client.client import Client


def _pack(value: Any) -> tuple[str, Any]:
    return ("future", value.key) if isinstance(value, Future) else ("data", dumps_by_value(value))


#: Numbers by which one process's clients take things, each of which the scheduler keeps until it is told how that went.
_tickets = itertools.count(1)


async def _receive(client: Client, subject: str, name: str, *args: Any) -> list[Any] | None:
    """Take values; of futures, the scheduler is told that this client holds them now. None when there were none."""
    ticket = next(_tickets)
    try:
        values = await client._call(f"{subject}_get", name, ticket, *args)
    except BaseException:
        _give_up(client, subject, ticket)
        raise
    if values is None:
        return None
    try:
        return [client._want(value) if what == "future" else loads(value) for what, value in values]
    finally:
        client._send((f"{subject}_taken", ticket))


def _give_up(client: Client, subject: str, ticket: int) -> None:
    """What was asked for with `ticket` is not to be done, or undone where it has been."""
    if client.status != "closed":
        client._send((f"{subject}_drop", ticket))


class Variable(Named):
    """A value that whoever knows its name can set and get.

    The value is a future, whose result stays on the cluster for as long as it is here, or anything that can be pickled;
    it stays on the scheduler and with a few workers, so it should be small. It survives the scheduler: one that is
    started in its place has it from the workers.
    """

    def set(self, value: Any, timeout: float | str | None = None) -> Any:
        """Put `value` in place of what was there."""
        return self._sync(self._set, value, seconds(timeout))

    async def _set(self, value: Any, timeout: float | None) -> None:
        await self.client._call("variable_set", self.name, _pack(value), timeout=timeout)

    def get(self, timeout: float | str | None = None) -> Any:
        """The value, waiting for there to be one.

        Raises
        ------
        TimeoutError
            There was none within `timeout` (seconds, or a text).
        """
        return self._sync(self._get, seconds(timeout))

    async def _get(self, timeout: float | None) -> Any:
        values = await _receive(self.client, "variable", self.name, timeout)
        if values is None:
            raise TimeoutError(f"variable {self.name!r} was not set within {timeout:g} s")
        return values[0]

    def delete(self) -> Any:
        """Forget the value, everywhere."""
        return self._ask("variable_delete")


class Queue(Named):
    """First in, first out, between clients and tasks. Values are those of `Variable`, and survive as those do.

    A `get` that is cancelled, or whose client ends before it has the value, takes nothing. When the scheduler is killed
    in the moment of a `get`, its value may be got once more afterwards; a `put` in that moment fails with
    `CommClosedError`, whether the value is in or not.

    Parameters
    ----------
    name, client
        As `Named` has them.
    maxsize
        `put` waits while there are so many in it; 0 for no limit.
    """

    def __init__(self, name: str | None = None, client: Client | None = None, maxsize: int = 0) -> None:
        super().__init__(name, client)
        self.maxsize = maxsize

    def put(self, value: Any, timeout: float | str | None = None) -> Any:
        """Append `value`.

        Raises
        ------
        TimeoutError
            The queue was full for `timeout` (seconds, or a text).
        """
        return self._sync(self._put, value, seconds(timeout))

    async def _put(self, value: Any, timeout: float | None) -> None:
        client, ticket = self.client, next(_tickets)
        try:
            done = await client._call("queue_put", self.name, ticket, self.maxsize, _pack(value), timeout)
        except asyncio.CancelledError:
            _give_up(client, "queue", ticket)
            raise
        if not done:
            raise TimeoutError(f"queue {self.name!r} was full for {timeout:g} s")

    def get(self, timeout: float | str | None = None, batch: bool | int = False) -> Any:
        """Take the next value.

        Parameters
        ----------
        batch
            A number takes a list of exactly so many; True, a list of all that there are, without waiting.

        Raises
        ------
        TimeoutError
            They did not come within `timeout` (seconds, or a text).
        """
        return self._sync(self._get, seconds(timeout), batch)

    async def _get(self, timeout: float | None, batch: bool | int) -> Any:
        values = await _receive(self.client, "queue", self.name, batch, timeout)
        if values is None:
            raise TimeoutError(f"nothing to take from queue {self.name!r} within {timeout:g} s")
        return values[0] if batch is False else values

    def qsize(self) -> Any:
        """How many are in it."""
        return self._ask("queue_size")

    def close(self) -> Any:
        """Forget the queue and what is in it, everywhere."""
        return self._ask("queue_close")

    def __reduce__(self) -> tuple[Any, ...]:
        return Queue, (self.name, None, self.maxsize)
