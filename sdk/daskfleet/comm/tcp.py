"""Connecting and listening over TCP and TLS; both ends run the handshake before anything else is read."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from daskfleet.comm.addresses import Address, own_ip, parse_address
from daskfleet.comm.connection import CommClosedError, Connection
from daskfleet.protocol.frames import MAX_FRAME, Message, ProtocolError
from daskfleet.protocol.handshake import AuthenticationError, Handshake

logger = logging.getLogger(__name__)

#: Seconds that a stranger may take to prove itself.
HANDSHAKE_TIMEOUT = 10.0


def _shake_hands(
    connection: Connection, handshake: Handshake, ready: Callable[[Connection], Any]
) -> asyncio.Future[None]:
    """Run `handshake` on a fresh connection, then `ready`, with nothing read in between; done when that is.

    No coroutine: the handlers are set at once, since under TLS the peer's first message may be in the same packet as
    the end of its own handshake, and is then delivered before anything else on the loop has its turn.
    """
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(error: Exception | None) -> None:
        if not finished.done():
            finished.set_exception(error) if error else finished.set_result(None)

    def on_messages(_: Connection, messages: list[Message]) -> None:
        try:
            answer = handshake.receive(messages)
        except ProtocolError as error:
            if len(error.args) > 1:
                connection.send(error.args[1])
            end(error)
            return
        if answer is not None:
            connection.send(answer)
            connection.flush()
        if handshake.done:
            connection.open_up(MAX_FRAME)
            connection.reset_handlers()
            ready(connection)
            end(None)

    connection.on_messages = on_messages
    connection.on_close = lambda _, error: end(
        error or CommClosedError(f"{connection.peer} closed the connection before it said what it is")
    )
    if handshake.side == "client":
        connection.send(handshake.start())
    return finished


async def _shaken(finished: asyncio.Future[None]) -> None:
    async with asyncio.timeout(HANDSHAKE_TIMEOUT):
        await finished


async def connect(
    address: str,
    *,
    timeout: float = 10.0,
    patience: float | None = None,
    token: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    setup: Callable[[Connection], None] | None = None,
) -> Connection:
    """Connect to `address` and prove the token.

    Parameters
    ----------
    timeout
        Seconds for the connection and the handshake together.
    patience
        Seconds for the connection alone, for callers that try again: when its first packet is lost, as those to a
        Kubernetes Service are that has no rules yet, the kernel repeats it only after one second, and then after two.
    server_hostname
        Name to ask for under TLS, for proxies that route by it; that of `address` by default.
    setup
        Called with the connection before any message of the peer's can arrive: the place to set its handlers.

    Raises
    ------
    OSError
        Nothing answers there; the message names the address and the reason.
    ProtocolError, AuthenticationError
        Something answers, but not a daskfleet peer with our token.
    """
    target = parse_address(address)
    if target.scheme == "tls" and ssl_context is None:
        raise ValueError(f"{address} needs TLS certificates: pass security=Security(tls_ca_file=..., ...)")
    loop = asyncio.get_running_loop()
    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeout):
            async with asyncio.timeout(patience):
                tls = ssl_context if target.scheme == "tls" else None
                _, connection = await loop.create_connection(
                    Connection, target.host, target.port, ssl=tls, server_hostname=server_hostname if tls else None
                )
            _tune(connection)
            await _shaken(_shake_hands(connection, Handshake("client", token), setup or (lambda _: None)))
    except TimeoutError:
        _abort(connection)
        waited = timeout if connection is not None or patience is None else min(timeout, patience)
        raise TimeoutError(f"{target} did not answer within {waited:g} s") from None
    except AuthenticationError as error:
        _abort(connection)
        raise AuthenticationError(f"{target}: {error.args[0]}") from None
    except ProtocolError as error:
        _abort(connection)
        raise ProtocolError(f"{target}: {error}") from None
    except OSError as error:
        _abort(connection)
        raise type(error)(error.errno, f"cannot connect to {target}: {error.strerror or error}") from None
    except BaseException:
        _abort(connection)
        raise
    return connection


def _abort(connection: Connection | None) -> None:
    if connection is not None:
        connection.abort()


def _tune(connection: Connection) -> None:
    sock = connection.options_socket
    if sock is None:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; for every interface it is one socket for IPv4 and IPv6, so that both have the same port."""
    if host in ("", "::") and socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        except OSError as error:
            if error.errno == errno.EADDRINUSE or host:
                raise
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=4096)


class Listener:
    """Accepts connections; made by `listen`.

    Attributes
    ----------
    address
        Where others reach it: the wildcard is replaced by this machine's own address.
    """

    def __init__(self, server: asyncio.Server, address: Address) -> None:
        self._server = server
        self.address = address
        self.port = address.port

    def close(self) -> None:
        """Accept no more; connections that exist stay."""
        self._server.close()


async def listen(
    host: str,
    port: int | range,
    on_connection: Callable[[Connection], Any],
    *,
    scheme: str = "tcp",
    token: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> Listener:
    """Listen on `host` (``""`` for every interface) at `port` (0 for any free one, a range for the first free one of
    it).

    `on_connection` is called with each connection after its handshake, before its first message is read.

    Raises
    ------
    OSError
        The port is taken or the address is not this machine's; the message says which and what to do.
    """
    if scheme == "tls" and ssl_context is None:
        raise ValueError("listening on tls:// needs certificates: pass security=Security(tls_ca_file=..., ...)")
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def greet(connection: Connection, finished: asyncio.Future[None]) -> None:
        try:
            _tune(connection)
            await _shaken(finished)
        except (OSError, TimeoutError) as error:
            logger.warning("dropped a connection from %s: %s", connection.peer, error.args[0] if error.args else error)
            connection.close()

    class Accepted(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            task = loop.create_task(greet(self, _shake_hands(self, Handshake("server", token), on_connection)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    candidates = port if isinstance(port, range) else range(port, port + 1)
    for candidate in candidates:
        try:
            sock = bind(host, candidate)
            server = await loop.create_server(
                Accepted, sock=sock, ssl=ssl_context if scheme == "tls" else None, backlog=4096
            )
            break
        except OSError as error:
            if candidate == candidates[-1]:
                where = f"{scheme}://{host or '*'}:{port if isinstance(port, int) else f'{port[0]}-{port[-1]}'}"
                reason = error.strerror or str(error)
                raise type(error)(
                    error.errno, f"cannot listen on {where}: {reason}; choose another port or 0"
                ) from None
    bound: int = server.sockets[0].getsockname()[1]
    reachable = own_ip() if host in ("", "0.0.0.0", "::") else host
    return Listener(server, Address(scheme, reachable, bound))
