"""What a client says to its scheduler and hears from it, and how it finds it again.

User threads encode; the loop's thread sends and completes futures. Between the two stands one deque of outgoing
messages, so that what a program does in some order reaches the scheduler in that order, and one wake-up of the loop a
burst. A blocking method that needs nothing but an answer that is already here (a small result travels with the news
that it is ready) never crosses to the loop at all.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from daskfleet.client import current
from daskfleet.client.sent import Sent
from daskfleet.client.states import CANCELLED, ERROR, FINISHED, PENDING, FutureState
from daskfleet.comm import Connection
from daskfleet.comm.reaching import FIRST_PATIENCE, LONGEST_PATIENCE
from daskfleet.exceptions import DaskfleetError
from daskfleet.importing import Lazy
from daskfleet.protocol.frames import Message
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, join

if TYPE_CHECKING:
    from daskfleet.client import future as handles
    from daskfleet.client.client import Client
else:
    handles = Lazy("daskfleet.client.future")

logger = logging.getLogger(__name__)

#: Seconds that released futures wait for a message to go with: waking the loop for each takes as long as a task. Most
#: are let go of soon after they are done, so the loop looks by itself then, and need not be woken for them.
LINGER = 0.002
#: Seconds for which a lost scheduler is looked for.
RECONNECT = 60.0

Handler = Callable[[Any], None]


class Link:
    """The stream of messages, and the states of futures.

    Parameters
    ----------
    loop
        On which the connection lives.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.status = "connecting"
        self._scheduler: Connection | None = None
        self._cids, self._graphs = itertools.count(1), itertools.count(1)
        self._states: dict[Key, weakref.ref[FutureState]] = {}
        self._by_cid: dict[int, weakref.ref[FutureState]] = {}
        self._named: weakref.WeakKeyDictionary[FutureState, Any] = weakref.WeakKeyDictionary()
        self._fired: set[FutureState] = set()  # `fire_and_forget`, not done yet
        self._kept: set[FutureState] = set()  # somebody is to be called when they are done
        self._outgoing: deque[Message] = deque()
        self._released: deque[int] = deque()
        self._waking = self._letting_go = False
        self._handlers: dict[str, Handler] = {}
        self._sent = Sent(self._is_pending)
        self._connected = asyncio.Event()

    async def _come_back(self, patience: float) -> None:
        """Connect to the scheduler once more, or to the one in its place, and tell who we are.

        An address behind which nobody is yet may swallow the attempt that is made then: it is given up after `patience`
        seconds, for a next one.
        """
        raise NotImplementedError

    def _send(self, message: Message) -> None:
        if self.status == "closed":
            raise DaskfleetError("the client is closed: create a new one")
        self._outgoing.append(message)
        self._wake()

    def _wake(self) -> None:
        if not self._waking:
            self._waking = True
            if not self.loop.is_closed():
                self.loop.call_soon_threadsafe(self._flush_now)

    def _flush(self) -> None:
        """Send what has gathered, with this pass of the loop."""
        for message in self._gathered():
            if self._scheduler is not None:
                self._scheduler.send(message)
                if _is_large(message):
                    self._scheduler.flush()

    def _flush_now(self) -> None:
        """Send what has gathered at once: a callback of the loop."""
        batch: list[Message] = []
        for message in self._gathered():
            batch.append(message)
            if _is_large(message) and self._scheduler is not None:
                self._scheduler.send_now(batch)
                batch = []
        if batch and self._scheduler is not None:
            self._scheduler.send_now(batch)

    def _gathered(self) -> list[Message]:
        messages: list[Message] = []
        self._waking = False
        if self._scheduler is None or self.status == "closed":
            return messages
        while self._outgoing:
            message = self._outgoing.popleft()
            if message[0] == "tasks":
                self._sent.add(message)
            messages.append(message)
        if self._released:
            messages.append(("release", self._take_released()))
        return messages

    def _let_go(self) -> None:
        self._letting_go = False
        if self._released:
            self._flush_now()

    def _linger(self) -> None:
        self.loop.call_later(LINGER, self._let_go)

    def _take_released(self) -> list[int]:
        released = []
        while self._released:
            released.append(self._released.popleft())
        return released

    def _release_first(self) -> None:
        """Let go of futures that are gone before what is sent next, which may give their keys to other work."""
        if self._released:
            self._send(("release", self._take_released()))

    def _attach(self, connection: Connection) -> None:
        connection.on_messages = self._on_messages
        connection.on_close = self._on_gone

    def _on_gone(self, connection: Connection, error: Exception | None) -> None:
        if self.status == "running":
            logger.warning("lost the scheduler at %s; trying to reach it again", connection.peer)
            self.status = "reconnecting"
            self._scheduler = None
            self._connected.clear()
            self._reconnecting = self.loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        """Find the scheduler again, or one that has taken its place, and tell it what it has to know."""
        deadline, wait, patience = self.loop.time() + RECONNECT, 0.05, FIRST_PATIENCE
        while self.status == "reconnecting":
            try:
                await self._come_back(patience)
                break
            except (OSError, TimeoutError, DaskfleetError) as error:
                if self.loop.time() > deadline:
                    self._give_up(f"the connection to the scheduler was lost ({error})")
                    return
                await asyncio.sleep(wait)
                wait, patience = min(2 * wait, 1.0), min(1.5 * patience, LONGEST_PATIENCE)
        if self.status != "reconnecting" or self._scheduler is None:
            return
        self.status = "running"
        states = [state for reference in list(self._by_cid.values()) if (state := reference()) is not None]
        # Futures that are done come first, since submissions may depend on them; those that are not come last, so that
        # the submissions that make them are known by then.
        here = [state for state in states if state.status == FINISHED and state.value is not None]
        known = [(state.cid, state.key, state.nbytes, state.type, _to_send(state.value)) for state in here]
        there = [(s.cid, s.key) for s in states if s.status == ERROR or (s.status == FINISHED and s.value is None)]
        messages, cids = self._sent.unfinished()
        for message in (("know", known), ("want", there), *messages):
            self._scheduler.send(message)
        self._flush()  # what was submitted meanwhile, before it is asked for
        self._scheduler.send(("want", [(state.cid, state.key) for state in states if state.status == PENDING]))
        self._scheduler.send(("fire_and_forget", [state.cid for state in list(self._fired)]))
        self._scheduler.send(("release", [cid for cid in cids if cid not in self._by_cid]))
        logger.info("connected to the scheduler again, with %d futures", len(states))

    def _give_up(self, reason: str) -> None:
        self.status = "closed"
        self._connected.set()
        current.resign(cast("Client", self))
        self._cancel_all(reason)

    def _is_pending(self, cid: int) -> bool:
        reference = self._by_cid.get(cid)
        state = reference() if reference is not None else None
        return state is not None and state.status == PENDING

    def _cancel_all(self, reason: str) -> None:
        for reference in list(self._by_cid.values()):
            state = reference()
            if state is not None and state.status == PENDING:
                state.reason = reason
                state.settle(CANCELLED)

    def _on_messages(self, _: Connection, messages: list[Message]) -> None:
        find = self._by_cid.get
        if not self._letting_go:
            self._letting_go = True
            self._linger()
        for op, rows in messages:
            if op == "finished":
                for cid, nbytes, kind, value in rows:
                    if (reference := find(cid)) is not None and (state := reference()) is not None:
                        state.nbytes, state.type, state.value = nbytes, kind, value
                        state.settle(FINISHED)
            elif op == "erred":
                for cid, exception, traceback, key in rows:
                    if (reference := find(cid)) is not None and (state := reference()) is not None:
                        state.exception, state.traceback, state.failed_key = exception, traceback, key
                        state.settle(ERROR)
            elif op == "lost":
                for cid, reason in rows:
                    if (reference := find(cid)) is not None and (state := reference()) is not None:
                        state.reason = reason
                        state.settle(CANCELLED)
            elif op == "pending":
                for cid in rows:
                    if (reference := find(cid)) is not None and (state := reference()) is not None:
                        state.status, state.value = PENDING, None
            elif op == "close":
                self._give_up(rows)
            elif (handler := self._handlers.get(op)) is not None:
                handler(rows)

    # Futures -------------------------------------------------------------------------------------------------------

    def _state(self, key: Key) -> tuple[FutureState, bool]:
        """The state of `key`, and whether it is new, so that the scheduler has to be told."""
        reference = self._states.get(key)
        state = reference() if reference is not None else None
        if state is not None and state.status != CANCELLED:
            return state, False
        state = FutureState(self, key, next(self._cids))
        self._states[key] = self._by_cid[state.cid] = state.reference
        return state, True

    def _forget(self, key: Key, cid: int, reference: weakref.ref[FutureState]) -> None:
        """The last future of a key is gone. Called by the garbage collector: from any thread, at any time."""
        if not cid:
            return
        if self._states.get(key) is reference:
            self._states.pop(key, None)
        self._by_cid.pop(cid, None)
        if self.status != "closed":
            self._released.append(cid)
            if not self._letting_go and not self.loop.is_closed():
                self._letting_go = True
                self.loop.call_soon_threadsafe(self._linger)

    def _fire(self, state: FutureState) -> None:
        """Have a task run to its end though its futures go: another scheduler would have to be told."""
        self._send(("fire_and_forget", [state.cid]))
        _hold_until_done(state, self._fired)

    def _keep(self, state: FutureState) -> None:
        """Want a task until it is done, though its futures go."""
        _hold_until_done(state, self._kept)

    def _want(self, key: Key) -> handles.Future:
        """A future of a key that somebody else has submitted."""
        state, new = self._state(key)
        if new:
            self._send(("want", [(state.cid, key)]))
        return handles.Future(state)


def _hold_until_done(state: FutureState, held: set[FutureState]) -> None:
    held.add(state)
    state.when_done(partial(held.discard, state))


def _is_large(message: Message) -> bool:
    """Whether it is to end its frame: the scheduler has the whole of a frame in memory, decoded, at a time."""
    return message[0] == "tasks" and len(message[-1]) > 100


def _to_send(value: Serialized | None) -> Serialized | None:
    return join(value) if type(value) is tuple else value
