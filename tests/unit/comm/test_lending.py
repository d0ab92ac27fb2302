"""Buffers read out of another process: right, only from that process, and otherwise the way everything goes."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy
import pytest
from daskfleet import Client
from daskfleet.comm import Connection
from daskfleet.comm.lending import LENT, Lender, Refused, read
from daskfleet.protocol.frames import Raw


class Peer:
    """All that a lender asks of a connection."""

    closed = False


OWNER = """
import pickle, sys
from daskfleet.comm.lending import LENT, Lender
from daskfleet.protocol.frames import Raw

kept = bytes(range(256)) * (LENT // 256) + b"end"
class Peer:
    closed = False

value = (b"the pickle", Raw(kept), Raw(b"small"), Raw(bytearray(kept)))
shown = Lender().lend(Peer, [value, b"plain"])
shown[2][0] = tuple(part.buffer if isinstance(part, Raw) else part for part in shown[2][0])
pickle.dump(shown, sys.stdout.buffer)
sys.stdout.buffer.flush()
sys.stdin.read()
"""


@pytest.fixture
def owner() -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """A process that lends, and what it shows."""
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        shown = pickle.load(process.stdout)
        try:
            read(process.pid, shown[1], shown[2][0])
        except Refused as error:
            if os.strerror(errno.EPERM) in str(error) or os.strerror(errno.ENOSYS) in str(error):
                pytest.skip(f"the system does not let a process read another's memory: {error}")
            raise
        yield process, shown
    finally:
        process.kill()
        process.wait(10)


def test_what_is_lent_can_be_read(owner: tuple[subprocess.Popen[bytes], Any]) -> None:
    process, (number, mark, values) = owner
    pickled, first, small, second = read(process.pid, mark, values[0])
    whole = bytes(range(256)) * (LENT // 256) + b"end"
    assert number and bytes(first) == bytes(second) == whole
    assert (pickled, small, read(process.pid, mark, values[1])) == (b"the pickle", b"small", b"plain")


def test_nobody_else_is_read(owner: tuple[subprocess.Popen[bytes], Any]) -> None:
    process, (_, (address, mark), values) = owner
    with pytest.raises(Refused, match="is not the one that lends"):
        read(process.pid, (address, mark[::-1]), values[0])
    with pytest.raises(Refused, match=str(process.pid)):
        read(process.pid, (address, mark), (b"", (8, LENT)))
    process.kill()
    process.wait(10)
    with pytest.raises(Refused, match=str(process.pid)):
        read(process.pid, (address, mark), values[0])


def test_what_is_lent_is_kept_until_it_is_taken_back_or_the_peer_is_gone() -> None:
    lender, peer, other = Lender(), *(cast(Connection, Peer()) for _ in range(2))
    array = numpy.ones(LENT, "u1")
    number, mark, values = lender.lend(peer, [(b"", Raw(memoryview(array)))])
    assert bytes(cast(Any, read(os.getpid(), mark, values[0]))[1]) == bytes(array)
    assert not lender.take_back(other, number), "it is another's"
    assert lender.take_back(peer, number)
    assert not lender.take_back(peer, number)
    number, _, _ = lender.lend(peer, [(b"", Raw(memoryview(array)))])
    lender.forget(peer)
    assert not lender.take_back(peer, number)
    assert lender.lend(peer, [(b"", Raw(b"small")), b""])[0] == 0


def nothing(dask_worker: Any) -> None:
    pass


def sends_nothing(dask_worker: Any) -> None:
    async def get_data(*_: Any) -> None:
        raise RuntimeError("it should have been read")

    dask_worker._handlers["get_data"] = get_data


def reads_nothing(dask_worker: Any) -> None:
    from daskfleet.worker import data

    def read(*_: Any) -> None:
        raise Refused("as if by the system")

    data.read = read  # type: ignore[assignment]


def keeps_nothing(dask_worker: Any) -> None:
    dask_worker._data.lender.take_back = lambda connection, number: False


@pytest.mark.parametrize(
    ("owner_does", "reader_does", "readable"),
    [(sends_nothing, nothing, True), (nothing, reads_nothing, False), (keeps_nothing, nothing, False)],
    ids=["read", "refused", "not kept"],
)
@pytest.mark.usefixtures("owner")
def test_from_worker_to_worker(
    owner_does: Callable[..., None], reader_does: Callable[..., None], readable: bool
) -> None:
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        client.wait_for_workers(2, timeout=90)
        first, second = client.scheduler_info()["workers"]
        client.run(owner_does, workers=[first])
        client.run(reader_does, workers=[second])
        array = client.submit(numpy.arange, 3 * LENT // 8, workers=[first])
        frame = client.submit(lambda: {"a": numpy.ones(2 * LENT, "u1"), "b": "text"}, workers=[first])
        added = client.submit(lambda x, y: (x + y["a"][0], y["b"]), array, frame, workers=[second])
        got, text = added.result(timeout=60)
        assert text == "text" and (got == numpy.arange(3 * LENT // 8) + 1).all()
        refused = client.run(lambda dask_worker: dask_worker._data._unreadable, workers=[second])[second]
        assert refused == (set() if readable else {first})
        lent = client.run(lambda dask_worker: list(dask_worker._data.lender._lent.values()), workers=[first])[first]
        assert not any(lent) or owner_does is keeps_nothing
