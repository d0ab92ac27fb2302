"""`connect` and `listen`: both ends run the handshake before anything else is read."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import socket
import ssl
from collections.abc import Callable
from typing import Any

from daskfleet import config
from daskfleet.comm import inproc, tcp, unix
from daskfleet.comm.addresses import ANY, Address, own_ip, parse_address, place
from daskfleet.comm.connection import CommClosedError, Connection
from daskfleet.comm.stream import StreamConnection
from daskfleet.protocol.compression import offered
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
            connection.open_up(MAX_FRAME, handshake.codec)
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


def _codecs(connection: StreamConnection) -> tuple[str, ...]:
    """What is offered for compression: nothing within one machine."""
    sock = connection.options_socket
    if sock is None or sock.family == socket.AF_UNIX or _host(connection.peer) == _host(connection.local):
        return ()
    return offered(config.get("distributed.comm.compression"))


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0]


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
    require_encryption: bool = False,
    server_hostname: str | None = None,
    setup: Callable[[Connection], None] | None = None,
    shortcut: bool = True,
) -> Connection:
    """Connect to `address` and prove the token.

    A ``tcp://`` address of this very event loop or of this machine is reached without TCP (`inproc`, `unix`).

    Parameters
    ----------
    timeout
        Seconds for the connection and the handshake together.
    patience
        Seconds for the connection alone, for callers that try again: when its first packet is lost, as those to a
        Kubernetes Service are that has no rules yet, the kernel repeats it only after one second, and then after two.
    require_encryption
        Refuse ``tcp://`` addresses.
    server_hostname
        Name to ask for under TLS, for proxies that route by it; that of `address` by default.
    setup
        Called with the connection before any message of the peer's can arrive: the place to set its handlers.
    shortcut
        False for TCP in any case.

    Raises
    ------
    OSError
        Nothing answers there; the message names the address and the reason.
    ProtocolError, AuthenticationError
        Something answers, but not a daskfleet peer with our token.
    ValueError
        Encryption is required and the address is without, or there are no certificates.
    """
    target = parse_address(address)
    _check_encryption(require_encryption, target.scheme, address)
    if target.scheme == "tls" and ssl_context is None:
        raise ValueError(f"{address} needs TLS certificates: pass security=Security(tls_ca_file=..., ...)")
    connection: StreamConnection | None = None
    ready = setup or (lambda _: None)
    try:
        async with asyncio.timeout(timeout):
            if target.scheme == "inproc" or (shortcut and target.scheme == "tcp"):
                listener = inproc.find(target.host, target.port)
                if listener is not None:
                    return listener.connect(f"{_literal(target.host)}:{target.port}", token, ready)
            async with asyncio.timeout(patience):
                connection = await _open(target, shortcut, ssl_context, server_hostname)
            await _shaken(_shake_hands(connection, Handshake("client", token, _codecs(connection)), ready))
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
        text = f"cannot connect to {target}: {_reason(error, target)}"
        raise type(error)(*([error.errno] if error.errno else []), text) from None
    except BaseException:
        _abort(connection)
        raise
    return connection


def _check_encryption(required: bool, scheme: str, address: str) -> None:
    if required and scheme == "tcp":
        raise ValueError(f"{address}: encryption is required (require_encryption), so the address must be tls://…")


def _reason(error: OSError, target: Address) -> str:
    """What went wrong, and where it may be TLS on one side only, that."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message}: the tls_ca_file here does not vouch for the certificate there"
    if target.scheme == "tls" and isinstance(error, (ConnectionResetError, ssl.SSLError)):
        return f"no TLS handshake ({str(error) or 'it hung up'}): does it speak TLS? if not, its address is tcp://…"
    if isinstance(error, CommClosedError):
        return f"{error}; if it speaks TLS, its address is tls://…"
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


async def _open(target: Address, shortcut: bool, ssl_context: Any, server_hostname: str | None) -> StreamConnection:
    """A connected socket, by the shortest way there is."""
    if target.scheme == "inproc":
        raise ConnectionRefusedError(errno.ECONNREFUSED, "nothing in this event loop has that address")
    if target.scheme == "unix" or (shortcut and target.scheme == "tcp"):
        sock = unix.connect(target.host, target.port)
        if sock is not None:
            return await _over_unix(target, sock)
        if target.scheme == "unix":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody on this machine has that address")
    tls = {"ssl": ssl_context, "server_hostname": server_hostname} if target.scheme == "tls" else {}
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(StreamConnection, target.host, target.port, **tls)
    tcp.tune(connection.options_socket)
    return connection


async def _over_unix(target: Address, sock: socket.socket) -> StreamConnection:
    unix.tune(sock)
    _, connection = await asyncio.get_running_loop().create_unix_connection(StreamConnection, sock=sock)
    host = _literal(target.host)
    connection.peer, connection.local = f"{host}:{target.port}", f"{host}:0"
    return connection


def _literal(host: str) -> str:
    """How `Connection.peer` has it."""
    host = place(host)
    return f"[{host}]" if ":" in host else host


def _abort(connection: Connection | None) -> None:
    if connection is not None:
        connection.abort()


class Listener:
    """Accepts connections; made by `listen`.

    Attributes
    ----------
    address
        Where others reach it: the wildcard is replaced by this machine's own address.
    """

    def __init__(self, address: Address, servers: list[asyncio.Server], local: inproc.InprocListener | None) -> None:
        self._servers, self._local = servers, local
        self.address = address
        self.port = address.port

    def close(self) -> None:
        """Accept no more; connections that exist stay."""
        for server in self._servers:
            server.close()
        if self._local is not None:
            self._local.close()


async def listen(
    host: str,
    port: int | range,
    on_connection: Callable[[Connection], Any],
    *,
    scheme: str = "tcp",
    token: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    require_encryption: bool = False,
    shortcut: bool = True,
) -> Listener:
    """Listen on `host` (``""`` for every interface) at `port` (0 for any free one, a range for the first free one of
    it).

    `on_connection` is called with each connection after its handshake, before its first message is read.

    Parameters
    ----------
    scheme
        ``tcp``, ``tls``, ``unix`` (this machine only; without a token our own user and root only) or ``inproc`` (this
        event loop only). At a ``tcp`` address the latter two are at home as well, for whoever is near, unless
        `shortcut` is False.

    Raises
    ------
    OSError
        The port is taken or the address is not this machine's; the message says which and what to do.
    """
    _check_encryption(require_encryption, scheme, f"{scheme}://{host}")
    if scheme == "tls" and ssl_context is None:
        raise ValueError("listening on tls:// needs certificates: pass security=Security(tls_ca_file=..., ...)")
    if scheme == "inproc":
        address = Address(scheme, str(os.getpid()), next(inproc.numbers))
        return Listener(address, [], inproc.InprocListener(address.host, address.port, token, on_connection))
    offered(config.get("distributed.comm.compression"))  # a mistake in it is to be known now
    loop = asyncio.get_running_loop()
    accepted = _acceptor(token, on_connection, own_only=scheme == "unix" and token is None)
    sock = _bind(scheme, host, port)
    servers, local = [], None
    if scheme == "unix":
        bound = int(sock.getsockname().decode().rpartition("/")[2])
        servers.append(await loop.create_unix_server(accepted, sock=sock, backlog=4096))
        local = inproc.InprocListener(host, bound, token, on_connection)
    else:
        bound = sock.getsockname()[1]
        servers.append(await loop.create_server(accepted, sock=sock, ssl=ssl_context, backlog=4096))
    if scheme == "tcp" and shortcut:
        local = inproc.InprocListener(host, bound, token, on_connection)
        if unix.AVAILABLE:
            with contextlib.suppress(OSError):  # the name is taken: TCP it is
                servers.append(await loop.create_unix_server(accepted, sock=unix.bind(host, bound), backlog=4096))
    reachable = own_ip() if host in ANY else host
    return Listener(Address(scheme, reachable, bound), servers, local)


def _bind(scheme: str, host: str, port: int | range) -> socket.socket:
    """A socket at the first port of a range that is free."""
    candidates = port if isinstance(port, range) else range(port, port + 1)
    if scheme == "unix" and port == 0:  # the system has no way to pick one
        candidates = range(first := random.randrange(20_000, 60_000), first + 1000)
    for candidate in candidates:
        try:
            return unix.bind(host, candidate) if scheme == "unix" else tcp.bind(host, candidate)
        except OSError as error:
            if candidate == candidates[-1]:
                where = f"{scheme}://{host or '*'}:{port if isinstance(port, int) else f'{port[0]}-{port[-1]}'}"
                reason = error.strerror or str(error)
                raise type(error)(
                    error.errno, f"cannot listen on {where}: {reason}; choose another port or 0"
                ) from None
    raise ValueError(f"no port to listen on: {port}")


def _acceptor(token: str | None, on_connection: Callable[[Connection], Any], own_only: bool) -> type[StreamConnection]:
    """What a server makes of each socket that it accepts; with `own_only`, none of another user's."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def greet(connection: StreamConnection, finished: asyncio.Future[None]) -> None:
        try:
            await _shaken(finished)
        except (BrokenPipeError, ConnectionResetError):
            connection.close()  # it has gone by itself
        except (OSError, TimeoutError) as error:
            logger.warning("dropped a connection from %s: %s", connection.peer, error.args[0] if error.args else error)
            connection.close()

    class Accepted(StreamConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            sock = self.options_socket
            if sock.family == socket.AF_UNIX:
                if own_only and not unix.trusted(sock):
                    logger.warning("refused a connection of another user of this machine, who would need a token")
                    self.abort()
                    return
                unix.tune(sock)
                self.peer = "this machine"
            else:
                tcp.tune(sock)
            handshake = Handshake("server", token, _codecs(self))
            task = loop.create_task(greet(self, _shake_hands(self, handshake, on_connection)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    return Accepted
