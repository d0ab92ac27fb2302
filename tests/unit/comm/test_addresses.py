"""Where servers listen: an interface, the other family of addresses, a range of ports."""

from __future__ import annotations

import contextlib
import random
import socket

import pytest
from daskfleet import Client, Scheduler, Worker


@pytest.mark.parametrize(
    ("options", "host"), [({"interface": "lo"}, "127.0.0.1"), ({"host": "::1"}, "[::1]")], ids=["interface", "IPv6"]
)
async def test_a_cluster_on_an_address(options: dict[str, str], host: str) -> None:
    if host == "[::1]":
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind(("::1", 0))
            except OSError:
                pytest.skip("this machine has no IPv6")
    async with (
        Scheduler(port=0, dashboard_address=None, **options) as scheduler,
        Worker(scheduler.address, nthreads=1, name="a", **options) as a,
        Worker(scheduler.address, nthreads=1, name="b", **options) as b,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        for server in (scheduler, a, b):
            assert server.address.startswith(f"tcp://{host}:"), server
            assert str(server._listener.address) == server.address, "and nowhere else"
        large = client.submit(bytes, 3_000_000, workers="a")
        assert await client.submit(len, large, workers="b") == 3_000_000
        assert len(await large) == 3_000_000


def two_ports() -> tuple[socket.socket, socket.socket]:
    """Two neighbouring ports that nobody else uses, taken."""
    for _ in range(100):
        first = random.randrange(10_000, 20_000)  # none that the system gives to who asks for any
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", first)), socket.create_server(("127.0.0.1", first + 1))
    raise AssertionError("no ports")


async def test_a_range_of_ports_and_its_end() -> None:
    one, two = two_ports()
    ports = range(one.getsockname()[1], two.getsockname()[1] + 1)
    async with Scheduler(port=0, host="127.0.0.1", dashboard_address=None) as scheduler:
        with one, two, pytest.raises(OSError, match=f"cannot listen on tcp://127.0.0.1:{ports[0]}.*{ports[-1]}"):
            await Worker(scheduler.address, nthreads=1, host="127.0.0.1", port=ports)
        with socket.create_server(("127.0.0.1", ports[0])):
            async with Worker(scheduler.address, nthreads=1, host="127.0.0.1", port=ports) as worker:
                assert worker.address == f"tcp://127.0.0.1:{ports[-1]}"
