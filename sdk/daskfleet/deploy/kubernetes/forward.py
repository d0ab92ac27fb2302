"""A local port that leads to a port of a pod, over the API server: `PortForward`.

Each accepted connection gets a websocket of its own (subprotocol ``v4.channel.k8s.io``, as the kubelet speaks it:
channel 0 is data, channel 1 errors; the first message on either repeats the port). So there is nothing to heal: a
connection that dies takes only itself along, and the next one finds the pod that is the scheduler by then.

- **Not listening yet.** The protocol has no acknowledgement, only an error when the pod refuses. Bytes sent before the
  pod's first answer are kept (up to `REPLAY` of them) and sent again to a new websocket after a refusal, so that a
  client can connect while the container is still starting.
- **Ends.** The pod's end arrives as an end of file behind its last byte. The protocol cannot pass on a half-close:
  what was sent before it is delivered, answers are passed back until the pod has been silent for `LINGER` (container
  runtimes give no more), then the pod sees the connection closed. A forward that breaks resets the local connection,
  so a truncated stream is never taken for a complete one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from daskfleet.deploy.kubernetes.api import Api, resource_path
from daskfleet.deploy.kubernetes.errors import Forbidden, KubernetesError, PortInUse

logger = logging.getLogger(__name__)

CHUNK = 256 * 1024
REPLAY = 256 * 1024
LINGER = 1.0  # s
PATIENCE = 30.0  # s that a local connection waits for the pod to listen
KEEPALIVE = 30.0  # s between pings that keep load balancers from dropping an idle websocket
DATA, ERROR = 0, 1
# How kubelets and container runtimes say that the pod was not reached, as opposed to a connection that broke.
_NOT_REACHED = ("refused", "failed to connect", "not found", "not running", "not exist", "no such")


class _Refused(Exception):
    """Nothing listens on the pod's port: no byte was delivered."""


class PortForward:
    """Forward connections to ``127.0.0.1:{local_port}`` to a port of a pod.

    Parameters
    ----------
    api
        The API server to go through.
    namespace
        The pod's namespace.
    pod
        Coroutine function that returns the name of the pod to connect to; it may wait for there to be one.
    port
        The pod's port.
    local_port
        The local port; 0 for a free one.

    Attributes
    ----------
    problem
        Why the latest attempt to reach the pod failed, if one did.
    """

    def __init__(
        self, api: Api, namespace: str, pod: Callable[[], Awaitable[str]], port: int, local_port: int = 0
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._pod = pod
        self._port = port
        self.local_port = local_port
        self.problem: Exception | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.

        Raises
        ------
        PortInUse
            If the local port is taken.
        """
        try:
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", self.local_port, limit=CHUNK, backlog=256
            )
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise PortInUse(f"the local port {self.local_port} {reason}: choose another, or leave it open") from None
        self.local_port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(reader, writer)
        try:
            async with asyncio.timeout(PATIENCE) as deadline:
                await self._carry(connection, deadline)
        except TimeoutError:
            logger.warning("no connection to port %d of the pod within %g s: %s", self._port, PATIENCE, self.problem)
            _reset(writer)
        except (KubernetesError, OSError) as error:
            logger.info("a forwarded connection to port %d ended: %s", self._port, error)
            _reset(writer)
        except BaseException:
            _reset(writer)
            raise
        finally:
            writer.close()

    async def _carry(self, connection: _Connection, deadline: asyncio.Timeout) -> None:
        """Try websockets until the pod takes the connection, then stay until it ends."""
        delay = 0.02
        while not connection.abandoned:
            try:
                websocket = await self._open(await self._pod())
                return await connection.run(websocket, lambda: deadline.reschedule(None))
            except _Refused as error:
                self.problem = error
            except Forbidden as error:
                self.problem = error
                raise
            except KubernetesError as error:  # the pod went, or the API server restarts
                self.problem = error
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 0.3)

    async def _open(self, pod: str) -> Any:
        path = resource_path("pods", self._namespace, pod, "portforward")
        websocket = await self._api.websocket(path, {"ports": self._port}, "v4.channel.k8s.io")
        if (raw := websocket.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return websocket


class _Connection:
    """One local connection, and what must be sent again as long as the pod has not taken it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._unanswered: bytearray | None = bytearray()
        self._received = 0

    @property
    def abandoned(self) -> bool:
        """Whether the local side went away without having said anything."""
        return self._reader.at_eof() and not self._unanswered

    async def run(self, websocket: Any, taken: Callable[[], None]) -> None:
        """Carry bytes both ways until either side ends; call `taken` once the pod is known to have the connection.

        Raises
        ------
        _Refused
            If nothing listens at the pod's port; another websocket may be tried.
        """
        loop = asyncio.get_running_loop()
        down = loop.create_task(self._down(websocket, taken))
        up = loop.create_task(self._up(websocket, taken))
        alive = loop.create_task(_keep_alive(websocket))
        try:
            await asyncio.wait({down, up}, return_when=asyncio.FIRST_COMPLETED)
            if not down.done():  # what the pod has said must still arrive, even when it takes no more
                await self._linger(down)
            if down.done():
                down.result()
            else:
                up.result()
        finally:
            for task in (down, up, alive):
                task.cancel()
            await asyncio.gather(down, up, alive, return_exceptions=True)
            with contextlib.suppress(OSError):
                await websocket.close()

    async def _linger(self, down: asyncio.Task[None]) -> None:
        """The local side has ended: wait until the pod has, too, or says nothing more."""
        silent_since = self._received
        while not down.done():
            await asyncio.wait({down}, timeout=LINGER)
            if self._received == silent_since:
                return
            silent_since = self._received

    async def _up(self, websocket: Any, taken: Callable[[], None]) -> None:
        if self._unanswered:
            await websocket.send_bytes(b"\x00" + self._unanswered)
        while data := await self._reader.read(CHUNK):
            if self._unanswered is not None:
                self._unanswered += data
                if len(self._unanswered) > REPLAY:  # by now a refusal would have come
                    self._answered(taken)
            await websocket.send_bytes(b"\x00" + data)

    def _answered(self, taken: Callable[[], None]) -> None:
        if self._unanswered is not None:
            self._unanswered = None
            taken()

    async def _down(self, websocket: Any, taken: Callable[[], None]) -> None:
        import aiohttp

        greeted: set[int] = set()
        while True:
            message = await websocket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                break
            channel, data = message.data[0], memoryview(message.data)[1:]
            if channel not in greeted:  # the port number, little-endian
                greeted.add(channel)
                data = data[struct.calcsize("<H") :]
            if not data:
                continue
            if channel == ERROR:
                self._fail(bytes(data).decode("utf-8", "replace"))
            self._answered(taken)
            self._received += len(data)
            self._writer.write(data)
            await self._writer.drain()
        # `websocket.close_code` would be 1006 as well when only our own farewell came too late: ask the peer's frame
        if message.type is not aiohttp.WSMsgType.CLOSE or message.data not in (0, None, 1000, 1005):
            raise ConnectionResetError(f"the websocket broke: {websocket.exception() or message}")
        self._writer.write_eof()

    def _fail(self, problem: str) -> None:
        if self._unanswered is not None and any(words in problem for words in _NOT_REACHED):
            raise _Refused("nothing listens there")
        raise ConnectionResetError(problem)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset instead of an end of file."""
    with contextlib.suppress(OSError):  # it is closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _keep_alive(websocket: Any) -> None:
    while True:
        await asyncio.sleep(KEEPALIVE)
        await websocket.ping()
