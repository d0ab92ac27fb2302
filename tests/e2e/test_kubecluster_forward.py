"""Port-forwards of ours, through a real API server and kubelet, into real pods."""

import asyncio
import hashlib
import json
import socket

import kubeclusters as bed
import pytest
from daskfleet.deploy.kubernetes import PortInUse
from daskfleet.deploy.kubernetes.api import Api
from daskfleet.deploy.kubernetes.forward import PortForward

BLOCK = bytes(range(256)) * 1024


@pytest.fixture(scope="module")
def server(cluster_with_images, module_namespace):
    """A pod that serves TCP: its namespace and name."""
    kubectl = cluster_with_images.kubectl
    kubectl("-n", module_namespace, "apply", "-f", "-", input=bed.server_pod("server"))
    kubectl("-n", module_namespace, "wait", "--for=condition=Ready", "pod/server", "--timeout=180s")
    return module_namespace, "server"


@pytest.fixture
async def forward(server):
    """Open a forward to a port of the pod; all are closed afterwards."""
    api, opened = await Api.connect(), []

    async def open_one(port, *, pod=server[1], local_port=0, api=api):
        async def find():
            return pod

        one = PortForward(api, server[0], find, port, local_port)
        opened.append(one)
        await one.start()
        return one

    yield open_one
    for one in opened:
        await one.close()
    await api.close()


async def connect(forward):
    return await asyncio.open_connection("127.0.0.1", forward.local_port)


async def ask(forward, question=b""):
    """All that the pod says until it ends."""
    reader, writer = await connect(forward)
    writer.write(question)
    answer = await reader.read()
    writer.close()
    return answer


async def test_all_bytes_arrive_on_the_way_down(forward):
    n = 50_000_000
    received = await ask(await forward(bed.SOURCE), b"%d\n" % n)
    assert len(received) == n
    assert received[: len(BLOCK)] == BLOCK and received[-(n % len(BLOCK)) :] == BLOCK[: n % len(BLOCK)]


@pytest.mark.parametrize("end", ["close", "half-close"])
async def test_all_bytes_arrive_on_the_way_up(forward, end):
    report, sink = await forward(bed.REPORT), await forward(bed.SINK)
    before = json.loads(await ask(report))["ends"]
    _, writer = await connect(sink)
    digest, total = hashlib.sha256(), 0
    for _ in range(100):
        writer.write(BLOCK)
        await writer.drain()
        digest.update(BLOCK)
        total += len(BLOCK)
    if end == "close":
        writer.close()
    else:
        writer.write_eof()
    seen = json.loads(await ask(report))
    while seen["ends"] == before:
        seen = json.loads(await ask(report))
    assert (seen["bytes"], seen["sha256"]) == (total, digest.hexdigest())


async def test_an_answer_still_arrives_after_a_half_close(forward):
    reader, writer = await connect(await forward(bed.SOURCE))
    writer.write(b"3000000\n")
    writer.write_eof()
    assert len(await reader.read()) == 3_000_000


async def test_many_connections_at_once_do_not_mix(forward):
    echo = await forward(bed.ECHO)

    async def one(i):
        reader, writer = await connect(echo)
        message = bytes([i]) * 200_000
        writer.write(message)
        assert await reader.readexactly(len(message)) == message
        writer.close()

    await asyncio.gather(*map(one, range(60)))


async def test_a_connection_made_before_the_pod_listens_is_served_once_it_does(forward, server, cluster_with_images):
    namespace, kubectl = server[0], cluster_with_images.kubectl
    kubectl("-n", namespace, "apply", "-f", "-", input=bed.server_pod("late", silent_seconds=3))
    kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/late", "--timeout=180s")
    reader, writer = await connect(await forward(bed.ECHO, pod="late"))
    writer.write(b"are you there?")
    assert await reader.readexactly(14) == b"are you there?"
    writer.close()


async def test_a_cut_resets_what_was_open_and_the_next_connection_works(
    forward, cluster_with_images, tmp_path, monkeypatch
):
    relay = bed.Relay(*bed.api_address(cluster_with_images.kubeconfig))
    await relay.start()
    address = f"https://127.0.0.1:{relay.port}"
    config = bed.kubeconfig_with(cluster_with_images.kubeconfig, tmp_path / "kubeconfig", server=address)
    monkeypatch.setenv("KUBECONFIG", str(config))
    api = await Api.connect()
    echo = await forward(bed.ECHO, api=api)
    reader, writer = await connect(echo)
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    relay.cut()
    with pytest.raises(ConnectionError):  # never a clean end of file: the stream was cut short
        await reader.readexactly(1)
    reader, writer = await connect(echo)
    writer.write(b"after")
    assert await reader.readexactly(5) == b"after"
    writer.close()
    await echo.close()
    await api.close()
    await relay.stop()


async def test_a_local_port_in_use_is_one_sentence(forward):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"^the local port {port} is in use"):
            await forward(bed.ECHO, local_port=port)
