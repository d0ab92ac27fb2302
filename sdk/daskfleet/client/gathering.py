"""From futures to values: waiting, fetching, `Client.gather`.

Most results never get here: one that is small has come with the news that it is ready, so taking it is `loads` in the
user's own thread. Large ones are fetched from the workers, or through the scheduler for a client that cannot reach
them; and data that went missing between the two is asked for again, since the cluster computes it anew meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from daskfleet import loop as loops
from daskfleet.client.core import Core
from daskfleet.client.inside import giving_way
from daskfleet.client.states import CANCELLED, ERROR, FINISHED, PENDING, FutureState, drop_settled, wait_all
from daskfleet.client.times import due, left, seconds
from daskfleet.importing import Lazy
from daskfleet.protocol.serialize import Serialized, loads

if TYPE_CHECKING:
    from daskfleet.client import future as handles
else:
    handles = Lazy("daskfleet.client.future")

logger = logging.getLogger(__name__)

#: How often data that went missing between two questions is asked for again.
GATHER_TRIES = 20


class Gathering(Core):
    """Results."""

    def _result(self, future: handles.Future, timeout: float | str | None) -> Any:
        state = future._state
        if self.asynchronous:
            return self._await_result(state, timeout)
        due_at = due(timeout)
        while True:
            if not wait_all([state], left(due_at)):
                raise TimeoutError(f"{state.key!r} was not ready within {timeout} s")
            if state.status == FINISHED:
                value = state.value
                if value is not None:
                    return loads(value)
                return loops.sync(self.loop, self._gather_states, [state], "raise", left(due_at))[0]
            if state.status != PENDING:
                raise state.error()

    def _value(self, future: handles.Future) -> Any:
        """The value of a future that has one; blocks, whatever the client is."""
        state = future._state
        if state.value is not None:
            return loads(state.value)
        return loops.sync(self.loop, self._gather_states, [state], "raise", None)[0]

    async def _await_result(self, state: FutureState, timeout: float | str | None = None) -> Any:
        return (await self._gather_states([state], "raise", seconds(timeout)))[0]

    def _when_settled(self, future: handles.Future, timeout: float | str | None, function: Callable[[], Any]) -> Any:
        if self.asynchronous:

            async def settled() -> Any:
                await self._settled([future._state], seconds(timeout))
                return function()

            return settled()
        if not wait_all([future._state], seconds(timeout)):
            raise TimeoutError(f"{future.key!r} was not ready within {timeout} s")
        return function()

    async def _settled(self, states: Collection[FutureState], timeout: float | None) -> None:
        """Wait until all have a final status.

        Raises
        ------
        TimeoutError
        """
        pending = [state for state in states if state.status == PENDING]
        if not pending:
            return
        try:
            with giving_way():
                async with asyncio.timeout(timeout):
                    while pending:  # see `wait_all`
                        arrived = asyncio.Event()
                        pending[-1].when_done(arrived.set)
                        await arrived.wait()
                        drop_settled(pending)
        except TimeoutError:
            unsettled = sum(state.status == PENDING for state in states)
            raise TimeoutError(f"{unsettled} of {len(states)} results were not ready within {timeout:g} s") from None

    async def _gather_states(
        self, states: Sequence[FutureState], errors: str, timeout: float | None, direct: bool | None = None
    ) -> list[Any]:
        """The values of `states`, in order; with ``errors="skip"`` only of those that have one."""
        due_at = due(timeout)
        values: dict[int, Any] = {}
        unique = {state.cid: state for state in states}
        for attempt in range(GATHER_TRIES):
            await self._settled(unique.values(), left(due_at))
            absent: dict[int, FutureState] = {}
            for cid, state in unique.items():
                if cid in values:
                    continue
                if state.status == FINISHED:
                    if state.value is not None:
                        values[cid] = loads(state.value)
                    else:
                        absent[cid] = state
                elif state.status != PENDING and errors == "raise":
                    raise state.error()
            if absent:
                values.update(await self._fetch(absent, left(due_at), direct))
            if all(cid in values or state.status in (ERROR, CANCELLED) for cid, state in unique.items()):
                return [values[state.cid] for state in states if state.cid in values]
            await asyncio.sleep(min(0.01 * 2**attempt, 1))  # a worker has just gone; its data is being computed again
        raise TimeoutError(f"could not fetch {len(unique) - len(values)} results after {GATHER_TRIES} attempts")

    async def _fetch(
        self, states: Mapping[int, FutureState], timeout: float | None, direct: bool | None
    ) -> dict[int, Any]:
        """What can be had now of results that are on workers."""
        if not (self._direct if direct is None else direct):
            rows = await self._call("gather", list(states), timeout=timeout)
            with self.as_current():  # whose the futures in the values will be
                return {cid: await _loads(value) for cid, value in rows}
        by_address: dict[str, dict[int, int]] = {}
        for cid, id, addresses in await self._call("locate", list(states), timeout=timeout):
            by_address.setdefault(addresses[0], {})[id] = cid
        assert self._pool is not None
        values: dict[int, Any] = {}

        async def fetch(address: str, wanted: dict[int, int]) -> None:
            assert self._pool is not None
            try:
                rows = await self._pool.call(address, "get_data", self._info["id"], list(wanted), timeout=timeout)
            except (ConnectionError, TimeoutError) as error:
                logger.info("could not fetch from %s: %s", address, error)
                return
            with self.as_current():
                for id, _, _, value in rows:
                    values[wanted[id]] = await _loads(value)

        await asyncio.gather(*(fetch(address, wanted) for address, wanted in by_address.items()))
        return values

    def gather(
        self, futures: Any, errors: str = "raise", direct: bool | None = None, asynchronous: bool | None = None
    ) -> Any:
        """The results of futures, in the structure in which they are given: lists, tuples, sets and dicts, nested.

        Parameters
        ----------
        errors
            ``"raise"`` the first error, or ``"skip"`` what failed: left out of whatever it is in. (distributed puts
            None into dicts; and of an iterator it returns one, where here is a list.)
        direct
            Whether to fetch large results from the workers themselves; by default as the client does.

        Raises
        ------
        Exception
            What a task raised.
        """
        if errors not in ("raise", "skip"):
            raise ValueError(f'errors={errors!r}: expected "raise" or "skip"')
        if isinstance(futures, Iterator):
            futures = list(futures)
        found: dict[int, FutureState] = {}
        find_states(futures, found)
        states = list(found.values())

        if self.asynchronous or asynchronous:

            async def gather() -> Any:
                values = await self._gather_states(states, errors, None, direct)
                return _replace(futures, states, values, errors)

            return gather()
        wait_all(states, None)
        if errors == "raise" and all(state.status == FINISHED and state.value is not None for state in states):
            values = [loads(cast(Serialized, state.value)) for state in states]
        else:
            values = loops.sync(self.loop, self._gather_states, states, errors, None, direct)
        return _replace(futures, states, values, errors)


def _replace(futures: Any, states: list[FutureState], values: list[Any], errors: str) -> Any:
    if errors == "skip":
        states = [state for state in states if state.status == FINISHED]
    by_cid = {state.cid: value for state, value in zip(states, values, strict=True)}
    return put_values(futures, by_cid)


def find_states(value: Any, found: dict[int, FutureState]) -> None:
    """Add the states of the futures in `value` to `found`."""
    kind = type(value)
    if kind is handles.Future:
        found[value._state.cid] = value._state
    elif kind in (list, tuple, set, frozenset):
        for item in value:
            find_states(item, found)
    elif kind is dict:
        for item in value.values():
            find_states(item, found)


def put_values(value: Any, values: Mapping[int, Any]) -> Any:
    """`value` with its futures replaced; in containers, those without a value are left out."""
    kind, handle = type(value), handles.Future
    if kind is handle:
        return values[value._state.cid]
    if kind in (list, tuple, set, frozenset):
        return kind(put_values(item, values) for item in value if type(item) is not handle or item._state.cid in values)
    if kind is dict:
        return {
            key: put_values(item, values)
            for key, item in value.items()
            if type(item) is not handle or item._state.cid in values
        }
    return value


async def _loads(value: Serialized) -> Any:
    size = sum(len(part) for part in value) if type(value) is tuple else len(cast(bytes, value))
    return await asyncio.to_thread(loads, value) if size > 4 << 20 else loads(value)
