"""Connections within one event loop: batches of messages are handed over as they are, not even encoded.

A client and the scheduler of its `LocalCluster` live on one loop, and so do workers in threads. Both ends run the same
handshake as over a socket, so that a wrong token is as wrong here.

Nothing that one side may still change reaches the other: messages are lists that their sender has given up, and what
calls carry is copied, containers and buffers. (The buffers of a submission's arguments are copies already.)
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from daskfleet.comm.addresses import own_ip, place
from daskfleet.comm.connection import Connection
from daskfleet.protocol.frames import Message, Raw
from daskfleet.protocol.handshake import AuthenticationError, Handshake

_listeners: dict[tuple[str, int], InprocListener] = {}
#: Of addresses that have no other.
numbers = itertools.count(1)


class InprocConnection(Connection):
    """One end; the other is its `other`."""

    inproc = True

    def __init__(self, peer: str, local: str) -> None:
        super().__init__()
        self.peer, self.local = peer, local
        self.other: InprocConnection = self

    def flush(self) -> None:
        """Nothing: a callback of the loop is due already, and handing over here and now would run the peer's code in
        the midst of the caller's."""

    def send(self, message: Message | dict[str, Any]) -> None:
        """Queue `message`; it arrives with this pass of the event loop."""
        if self.closed:
            return
        if not self._outgoing:
            self._loop.call_soon(self._hand_over)
        self._outgoing.append(message)

    def send_now(self, messages: list[Any]) -> None:
        """Send these at once; what the peer makes of them, an error even, is its own affair."""
        if not self.closed:
            self._outgoing += messages
            try:
                self._hand_over()
            except Exception as error:
                self._loop.call_exception_handler({"message": f"{self.peer} failed on a message", "exception": error})

    def _hand_over(self) -> None:
        messages, self._outgoing = self._outgoing, []
        if messages and not self.other.closed:
            self.other._dispatch([_own(message) for message in messages])

    def close(self) -> None:
        """End both sides, after what is queued."""
        self._loop.call_soon(self.abort)

    def abort(self) -> None:
        """End both sides now."""
        self._finish(None)
        self._loop.call_soon(self.other._finish, None)


def _own(message: Any) -> Any:
    if type(message) is tuple and message[0] in ("call", "reply"):
        return _copy(message)
    return message


def _copy(value: Any) -> Any:
    """`value` as it would come off a socket, but for its buffers, which stay marked."""
    kind = type(value)
    if kind is tuple or kind is list:
        return tuple([_copy(item) for item in value])
    if kind is dict:
        return {key: _copy(item) for key, item in value.items()}
    if kind is Raw:
        return memoryview(bytearray(value.buffer))
    return value


class InprocListener:
    """Where a listener's address leads within its own process."""

    def __init__(self, host: str, port: int, token: str | None, on_connection: Callable[[Connection], Any]) -> None:
        self.token, self._on_connection = token, on_connection
        self._loop = asyncio.get_running_loop()
        self._key = (place(host), port)
        _listeners[self._key] = self

    def close(self) -> None:
        """Be found no more."""
        if _listeners.get(self._key) is self:
            del _listeners[self._key]

    def connect(self, peer: str, token: str | None, setup: Callable[[Connection], Any]) -> Connection:
        """A connection to it, after the handshake; raises what that raises."""
        client, server = Handshake("client", token), Handshake("server", self.token)
        said: Any = client.start()
        while not client.done:
            try:
                answer: Any = server.receive([said])
            except AuthenticationError as error:
                answer = error.args[1]
            said = client.receive([answer])
        host = peer.rpartition(":")[0]
        ours, theirs = InprocConnection(peer, f"{host}:0"), InprocConnection(f"{host}:0", peer)
        ours.other, theirs.other = theirs, ours
        self._on_connection(theirs)
        setup(ours)
        return ours


def find(host: str, port: int) -> InprocListener | None:
    """The listener at this address, if it is one of the running loop's."""
    if not _listeners:
        return None
    host = place(host)
    listener = _listeners.get((host, port))
    if listener is None and (listener := _listeners.get(("*", port))) is not None and own_ip(host) != host:
        return None
    return listener if listener is not None and listener._loop is asyncio.get_running_loop() else None
