"""Connections over real sockets: who gets through, what is said to who does not, and what happens when they end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import dask
import pytest
from daskfleet.comm import CommClosedError, Connection, Pool, connect, listen, opening, parse_address, unix
from daskfleet.comm.inproc import InprocConnection
from daskfleet.protocol.frames import HEAD, ProtocolError, Raw
from daskfleet.protocol.handshake import AuthenticationError

WAYS = ("tcp", "unix", "inproc")
every_way = pytest.mark.parametrize("way", WAYS)


async def reach(address: str, way: str, **options: Any) -> Connection:
    """Connect in one of the ways that lead to the same listener."""
    match way:
        case "tcp":
            return await connect(address, shortcut=False, **options)
        case "unix":
            return await connect(address.replace("tcp://", "unix://"), **options)
    return await connect(address, **options)


class Server:
    """A listener that answers a few calls and remembers what it was sent."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.never = asyncio.Event()

    def greet(self, connection: Connection) -> None:
        self.connections.append(connection)
        connection.on_call = self.answer
        connection.on_messages = lambda _, messages: [self.messages.put_nowait(message) for message in messages]

    async def answer(self, connection: Connection, method: str, args: tuple[Any, ...]) -> Any:
        match method:
            case "echo":
                return args
            case "fail":
                raise KeyError("a reason")
            case "odd":
                return object()
            case "never":
                await self.never.wait()
            case "hang up":
                connection.abort()
                await self.never.wait()


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    opened: list[Any] = []

    async def start(host: str = "127.0.0.1", port: int | range = 0, **options: Any) -> tuple[Server, str]:
        server = Server()
        listener = await listen(host, port, server.greet, **options)
        opened.extend([listener, server])
        return server, str(listener.address)

    yield start
    for item in opened:
        if isinstance(item, Server):
            for connection in item.connections:
                connection.abort()
        else:
            item.close()


@every_way
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "", "localhost"])
async def test_calls_and_messages(way: str, serve: Any, host: str) -> None:
    server, address = await serve(host, token="t")
    port = parse_address(address).port
    for name in {"": ("127.0.0.1", "[::1]"), "::1": ("[::1]",)}.get(host, ("127.0.0.1",)):
        connection = await reach(f"tcp://{name}:{port}", way, token="t")
        big = bytes(5_000_000)
        assert await connection.call("echo", 1, "two", big) == (1, "two", big)
        connection.send(("first", 1))
        connection.send(("second", 2))
        assert [await server.messages.get(), await server.messages.get()] == [("first", 1), ("second", 2)]
        assert connection.peer == f"{name}:{port}"
        assert connection.local.rpartition(":")[0] == name
        connection.close()


@every_way
@pytest.mark.parametrize(
    ("theirs", "ours", "text"),
    [
        ("t", None, "asks for a token"),
        (None, "t", "this side has a token but the server asks for none"),
        ("t", "u", "another token"),
    ],
)
async def test_tokens_that_differ(way: str, serve: Any, theirs: str | None, ours: str | None, text: str) -> None:
    server, address = await serve(token=theirs)
    with pytest.raises(AuthenticationError, match=text) as caught:
        await reach(address, way, token=ours)
    assert address.partition("://")[2] in str(caught.value)
    assert not server.connections


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"hello",
    ],
)
async def test_another_protocol_on_our_port_is_dropped_with_one_line(
    serve: Any, said: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, address = await serve(token="t")
    target = parse_address(address)
    with caplog.at_level(logging.DEBUG, logger="daskfleet"), monkeypatch.context() as patch:
        patch.setattr(opening, "HANDSHAKE_TIMEOUT", 0.3)  # what is too short to tell is dropped when the time is up
        reader, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(said)
        assert await asyncio.wait_for(reader.read(), 90) == b""
        writer.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "dropped a connection from 127.0.0.1" in caplog.text
    assert "Traceback" not in caplog.text
    connection = await connect(address, token="t", shortcut=False)  # and the others go on
    assert await connection.call("echo", 1) == (1,)
    connection.close()


async def test_a_stranger_cannot_have_memory_taken_for_it(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It may announce no more than a handshake needs: all else is refused before it comes."""
    _, address = await serve(token="t")
    target = parse_address(address)
    reader, writer = await asyncio.open_connection(target.host, target.port)
    writer.write(HEAD.pack(1 << 30, 0))
    assert await asyncio.wait_for(reader.read(), 90) == b""
    writer.close()
    assert "dropped a connection" in caplog.text and "over the limit of 4,096 bytes" in caplog.text


async def test_something_else_on_their_port_is_named() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(http, "127.0.0.1", 0) as server:
        address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ProtocolError, match=f"^{address}: not a frame of ours"):
            await connect(address)


async def test_a_port_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(TimeoutError, match=rf"^{address} did not answer within 0.2 s"):
            await connect(address, timeout=0.2)


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ConnectionRefusedError, match=f"cannot connect to tcp://127.0.0.1:{port}"):
        await connect(f"tcp://127.0.0.1:{port}")


async def test_a_port_that_is_taken(serve: Any) -> None:
    _, address = await serve()
    port = parse_address(address).port
    with pytest.raises(OSError, match=rf"cannot listen on .*:{port}: .*in use.*; choose another port or 0"):
        await serve(port=port)
    _, other = await serve(port=range(port, port + 50))
    assert port < parse_address(other).port < port + 50


@every_way
async def test_calls_end_when_the_connection_does(way: str, serve: Any) -> None:
    server, address = await serve()
    connection = await reach(address, way)
    closed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    connection.on_close = lambda _, error: closed.set_result(error)
    waiting = asyncio.ensure_future(connection.call("never"))
    with pytest.raises(CommClosedError):
        await connection.call("hang up")
    with pytest.raises(CommClosedError, match="was lost"):
        await waiting
    await closed
    with pytest.raises(CommClosedError, match="is closed"):
        await connection.call("echo")
    connection.send(("into the void",))
    connection.flush()
    assert len(server.connections) == 1


@every_way
async def test_a_call_has_its_deadline(way: str, serve: Any) -> None:
    _, address = await serve()
    connection = await reach(address, way)
    with pytest.raises(TimeoutError, match=r"did not answer 'never' within 0.1 s"):
        await connection.call("never", timeout=0.1)
    assert await connection.call("echo") == ()
    connection.close()


@every_way
async def test_what_the_peer_raises_comes_back(way: str, serve: Any) -> None:
    _, address = await serve()
    connection = await reach(address, way)
    with pytest.raises(KeyError, match="a reason"):
        await connection.call("fail")
    connection.close()


@pytest.mark.parametrize("way", WAYS[:2])
async def test_what_cannot_be_sent_fails_alone(way: str, serve: Any) -> None:
    """… and takes neither the connection nor the messages beside it along."""
    server, address = await serve()
    connection = await reach(address, way)
    others = [asyncio.ensure_future(connection.call("echo", n)) for n in range(3)]
    with pytest.raises(TypeError, match="cannot send object in a message"):
        await connection.call("echo", object())
    assert await asyncio.wait_for(asyncio.gather(*others), 10) == [(0,), (1,), (2,)]
    for _ in range(3):
        odd, fine = await asyncio.wait_for(
            asyncio.gather(connection.call("odd"), connection.call("echo", 1), return_exceptions=True), 10
        )
        assert isinstance(odd, TypeError) and fine == (1,)
    assert not server.connections[0].closed
    connection.close()


@every_way
async def test_everything_that_was_sent_arrives_before_the_end(way: str, serve: Any) -> None:
    server, address = await serve()
    connection = await reach(address, way)
    for n in range(20):
        connection.send(("data", n, bytes(1_000_000)))
    connection.close()
    assert [(await asyncio.wait_for(server.messages.get(), 90))[1] for _ in range(20)] == list(range(20))


async def test_a_pool_connects_once_and_anew_when_the_connection_has_died(serve: Any) -> None:
    server, address = await serve(token="t")
    pool = Pool({"token": "t", "ssl_context": None})
    results = await asyncio.gather(*(pool.call(address, "echo", n) for n in range(20)))
    assert results == [(n,) for n in range(20)] and len(server.connections) == 1
    with pytest.raises(CommClosedError):
        await pool.call(address, "hang up")
    assert await pool.call(address, "echo") == ()
    assert len(server.connections) == 2
    pool.close()


async def test_who_waits_for_a_connection_hears_that_its_peer_was_forgotten() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        pool = Pool({"token": "t", "ssl_context": None})
        call = asyncio.create_task(pool.call(address, "echo"))
        await asyncio.sleep(0.1)
        pool.forget(address)
        with pytest.raises(CommClosedError, match="is gone"):
            await asyncio.wait_for(call, 5)


async def test_what_is_near_is_reached_without_tcp(serve: Any) -> None:
    _, address = await serve(token="t")
    here = await connect(address, token="t")
    assert type(here) is InprocConnection
    child = [sys.executable, "-c", ELSEWHERE, address, "t"]
    there = await asyncio.to_thread(subprocess.run, child, capture_output=True, text=True, timeout=180)
    assert there.stdout.strip() == "AF_UNIX", there.stderr
    here.close()


ELSEWHERE = """
import sys
from daskfleet.comm import parse_address, unix
target = parse_address(sys.argv[1])
print(unix.connect(target.host, target.port).family.name)
"""


async def test_a_stranger_who_took_the_name_is_not_believed(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, address = await serve(token="t", shortcut=False)
    target = parse_address(address)
    with unix.bind(target.host, target.port):
        monkeypatch.setattr(unix.os, "geteuid", lambda: 4711)
        monkeypatch.setattr(unix, "_CREDENTIALS", SwappedCredentials())
        assert unix.connect(target.host, target.port) is None
        connection = await connect(address, token="t")  # by TCP
        assert await connection.call("echo", 1) == (1,)
        connection.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="the system has no such option")
async def test_how_soon_a_peer_that_vanished_is_noticed(serve: Any) -> None:
    _, address = await serve()
    with dask.config.set({"distributed.comm.timeouts.tcp": "60s"}):
        connection = await connect(address, shortcut=False)
    options = [
        connection.options_socket.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    ]
    assert options == [20, 10, 4]
    connection.close()


async def test_compression_between_machines_that_both_want_it(serve: Any) -> None:
    plain = b"much of the same " * 10_000
    with dask.config.set({"distributed.comm.compression": "zlib"}):
        server, address = await serve("127.0.0.2")  # whoever connects does so from 127.0.0.1
        connection = await connect(address, shortcut=False)
        assert (server.connections[-1]._codec, connection._codec) == ("zlib", "zlib")
        assert await connection.call("echo", Raw(plain)) == (plain,)
        connection.close()
        _, address = await serve("127.0.0.1")
        connection = await connect(address, shortcut=False)
        assert connection._codec is None, "within one machine"
        connection.close()
    _, address = await serve("127.0.0.2")
    connection = await connect(address, shortcut=False)
    assert connection._codec is None
    connection.close()
    with dask.config.set({"distributed.comm.compression": "gzip"}), pytest.raises(ValueError, match="expected auto"):
        await serve("127.0.0.2")


class SwappedCredentials:
    """As if the peer were user 4712."""

    size = 12

    def unpack(self, _: bytes) -> tuple[int, int, int]:
        return 1, 4712, 1


@pytest.mark.parametrize("scheme", ["unix", "inproc"])
async def test_addresses_of_this_machine_only(serve: Any, scheme: str) -> None:
    _, address = await serve("127.0.0.1", scheme=scheme, token="t")
    assert address.startswith(f"{scheme}://")
    connection = await connect(address, token="t")
    assert await connection.call("echo", "near") == ("near",)
    connection.close()
    with pytest.raises(ConnectionRefusedError, match=f"cannot connect to {scheme}://127.0.0.1:1"):
        await connect(f"{scheme}://127.0.0.1:1")


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can act as somebody else")
async def test_a_unix_address_without_a_token_is_closed_to_other_users(serve: Any) -> None:
    _, address = await serve("127.0.0.1", scheme="unix")
    code = (
        "import asyncio, os, sys; from daskfleet.comm import connect; os.setgid(65534); os.setuid(65534)\n"
        "async def come():\n"
        "    connection = await connect(sys.argv[1])\n"
        "    return await connection.call('echo', 'in')\n"
        "try: print(asyncio.run(asyncio.wait_for(come(), 180)))\n"
        "except OSError as error: print('refused:', error)"
    )
    command = [sys.executable, "-c", code, address]
    somebody = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await somebody.communicate()
    assert said.startswith(b"refused: "), said
    connection = await connect(address)
    assert await connection.call("echo", "own") == ("own",)
    connection.close()


async def test_what_a_call_carries_within_a_process_is_a_copy(serve: Any) -> None:
    _, address = await serve()
    connection = await connect(address)
    buffer, items = bytearray(b"x" * 100_000), [1]
    answer, numbers = await connection.call("echo", Raw(buffer), items)
    buffer[0], items[0] = 0, 2
    assert bytes(answer[:1]) == b"x" and numbers == (1,)
    connection.close()


async def test_a_call_that_is_cancelled_just_as_its_answer_comes_is_cancelled() -> None:
    class Mute(Connection):
        def _transmit(self, messages: list[Any]) -> None:
            pass

    connection = Mute()
    calling = asyncio.create_task(connection.call("anything", timeout=90))
    await asyncio.sleep(0)
    (answer,) = connection._calls.values()
    answer.set_result(1)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert not connection._calls
