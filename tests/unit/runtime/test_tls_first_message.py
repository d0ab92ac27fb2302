"""Under TLS the first message may arrive in the same packet as the end of the peer's TLS handshake."""

import asyncio
import subprocess

import pytest
from daskfleet.comm import connect, listen
from daskfleet.security import Security, new_token


@pytest.fixture
def security(tmp_path):
    """A token, and a certificate that vouches for itself."""
    pair = str(tmp_path / "pair.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "1"]
    done = subprocess.run([*command, "-keyout", "-", "-out", "-"], capture_output=True, check=True)
    (tmp_path / "pair.pem").write_bytes(done.stdout)
    certificates = {f"tls_{role}_cert": pair for role in ("scheduler", "client")}
    return Security(token=new_token(), tls_ca_file=pair, **certificates)


async def test_it_is_not_lost(security):
    listener = await listen("127.0.0.1", 0, lambda _: None, scheme="tls", **security.get_listen_args("scheduler"))

    async def coalesce(source, sink):
        await asyncio.sleep(0.1)  # what the client writes meanwhile goes into the same packet
        while data := await source.read(1 << 16):
            sink.write(data)
            await asyncio.sleep(0.1)
        sink.close()

    async def copy(source, sink):
        while data := await source.read(1 << 16):
            sink.write(data)
        sink.close()

    async def relay(reader, writer):
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", listener.port)
        await asyncio.gather(coalesce(reader, there_writer), copy(there_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = await connect(f"tls://127.0.0.1:{port}", timeout=5, **security.get_connection_args("client"))
    connection.abort()
    server.close()
    listener.close()
