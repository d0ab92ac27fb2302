"""What a worker and its nanny say to each other through the pipe between them: JSON, one message a line.

A worker says ``{"address", "name", "folder"}`` when it is up, ``{"failed": why}`` when it cannot start,
``{"imported": name}`` when it has imported something that takes long, and passes on what is asked of the nanny as
``{"ask": what, "args": [...], "number": n}``; the nanny answers with ``{"number": n, "value": v, "error": text or
null}``, unless it ends the worker because a plugin wants it to start anew. The pipe's end is a message too.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from daskfleet.exceptions import DaskfleetError
from daskfleet.plugins import NannyPlugin, call
from daskfleet.protocol.serialize import Serialized, flat, loads

if TYPE_CHECKING:
    from daskfleet.worker.nanny import Nanny

logger = logging.getLogger(__name__)

#: Exit status of a worker that is to be started anew at once.
AGAIN = 79


class Lines:
    """Messages out of what arrives piece by piece."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def read(self, pipe: socket.socket) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the other end is still there, and the messages that are complete now."""
        try:
            piece = pipe.recv(1 << 18)
        except BlockingIOError:
            return True, []
        except OSError:
            return False, []
        self._rest += piece
        if b"\n" not in piece:
            return bool(piece), []
        *lines, self._rest = self._rest.split(b"\n")
        return bool(piece), [json.loads(line) for line in lines]


def pack(serialized: Serialized) -> list[str]:
    """As what JSON can hold."""
    return [base64.b64encode(part).decode() for part in flat(serialized)]


def unpack(parts: list[str]) -> Serialized:
    """What `pack` was given."""
    return tuple(base64.b64decode(part) for part in parts)


async def say(pipe: socket.socket, message: dict[str, Any]) -> None:
    """Send a message; nothing when the other end is gone."""
    try:
        await asyncio.get_running_loop().sock_sendall(pipe, json.dumps(message).encode() + b"\n")
    except OSError as error:
        logger.debug("the other end of the pipe is gone: %s", error)


class WorkerEnd:
    """The worker's end of the pipe.

    Parameters
    ----------
    on_end
        Called when the nanny is gone.
    """

    def __init__(self, pipe: socket.socket, on_end: Callable[[], Any]) -> None:
        self._pipe, self._on_end, self._lines = pipe, on_end, Lines()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._sending = asyncio.Lock()
        asyncio.get_running_loop().add_reader(pipe, self._hear)

    def _hear(self) -> None:
        there, messages = self._lines.read(self._pipe)
        for message in messages:
            answer = self._answers.get(message["number"])
            if answer is not None and not answer.done():
                error = message["error"]
                answer.set_exception(DaskfleetError(error)) if error else answer.set_result(message["value"])
        if not there:
            self._on_end()

    async def say(self, message: dict[str, Any]) -> None:
        """Tell the nanny something."""
        async with self._sending:
            await say(self._pipe, message)

    async def plugin_add(self, name: str, blob: bytes) -> None:
        """Have the nanny set up a plugin, if it has not: this worker may not live to see the answer.

        Raises
        ------
        DaskfleetError
            It failed.
        """
        await self._ask("plugin", name, base64.b64encode(blob).decode())

    async def plugin_remove(self, name: str) -> None:
        """Have the nanny tear down a plugin; raises as `plugin_add` does."""
        await self._ask("plugin", name, None)

    async def run(self, call: Serialized, wait: bool) -> Serialized:
        """Have the nanny call a function (`daskfleet.functions.run_function`)."""
        return unpack(await self._ask("run", pack(call), wait))

    async def logs(self) -> list[str]:
        """The nanny's last log lines."""
        lines: list[str] = await self._ask("logs")
        return lines

    async def _ask(self, what: str, *args: Any) -> Any:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            await self.say({"ask": what, "args": args, "number": number})
            return await answer
        finally:
            del self._answers[number]

    def start_anew(self) -> NoReturn:
        """End this process; the nanny starts another at once."""
        os._exit(AGAIN)


class NannyPlugins:
    """A nanny's plugins, by name."""

    def __init__(self, nanny: Nanny) -> None:
        self._nanny = nanny
        self._own: dict[str, tuple[str, NannyPlugin]] = {}  # with their pickles, to know one that is there already

    async def change(self, name: str, blob: str | None) -> bool:
        """Set a plugin up, or tear it down (`blob` is None); whether the worker is to start anew."""
        known = self._own.get(name)
        if known is not None and known[0] == blob:
            return False
        if known is not None:
            del self._own[name]
            await call(known[1].teardown, self._nanny)
        if blob is None:
            return False
        plugin: NannyPlugin = loads(base64.b64decode(blob))
        await call(plugin.setup, self._nanny)
        self._own[name] = blob, plugin
        return plugin.restart

    async def close(self) -> None:
        """Tear all of them down."""
        for name in list(self._own):
            try:
                await self.change(name, None)
            except Exception:
                logger.exception("tearing down plugin %r failed", name)
