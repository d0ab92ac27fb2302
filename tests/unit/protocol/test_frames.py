"""Frames: any messages, cut anywhere, come out as they went in; what is not a frame costs no memory."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from daskfleet.protocol import frames
from daskfleet.protocol.frames import HEAD, MAX_BUFFERS, SCRATCH, FrameReader, ProtocolError, Raw, encode
from hypothesis import given, settings
from hypothesis import strategies as st

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
sizes = st.sampled_from([0, 1, 100, SCRATCH // 2, SCRATCH // 2 + 1, SCRATCH - 17, SCRATCH, SCRATCH + 1, 3 * SCRATCH])
batches = st.lists(st.tuples(st.lists(plain, max_size=3), st.lists(sizes, max_size=3)), min_size=1, max_size=5)


def feed(reader: FrameReader, stream: bytes, cuts: Any) -> list[Any]:
    """Give `stream` to `reader` in pieces of the sizes that `cuts` yields, but no more than it asks for."""
    view, batches = memoryview(stream), []
    while view:
        buffer = reader.buffer()
        assert len(buffer)
        n = min(next(cuts), len(buffer), len(view))
        buffer[:n] = view[:n]
        batches.extend(reader.received(n))
        view = view[n:]
    return batches


def wire(messages: list[Any]) -> bytes:
    return b"".join(bytes(part) for part in encode(messages))


def read(value: Any) -> Any:
    """Buffers as bytes, to compare with."""
    if type(value) is memoryview:
        return value.tobytes()
    return tuple(map(read, value)) if type(value) is tuple else value


@settings(max_examples=60)
@given(batches, st.randoms(use_true_random=False), st.sampled_from([1, 7, 1000, 70_000, 10**7]))
def test_any_messages_cut_anywhere_come_out_as_they_went_in(batches: Any, rng: Any, piece: int) -> None:
    stream, expected = b"", []
    for messages, buffers in batches:
        contents = [rng.randbytes(min(size, 64)) * max(1, size // 64) if size else b"" for size in buffers]
        stream += wire([("m", *messages, tuple(Raw(content) for content in contents))])
        expected.append([("m", *messages, tuple(contents))])
    if piece == 1:
        stream, whole = stream[:5000], len(stream) <= 5000
    else:
        whole = True
    cuts = iter(lambda: rng.randint(1, piece), None)
    found = [read(tuple(batch)) for batch in feed(FrameReader(), stream, cuts)]
    assert found == [read(tuple(batch)) for batch in expected][: None if whole else len(found)]


def test_buffers_outlive_the_next_frames() -> None:
    reader = FrameReader()
    stream = b"".join(wire([("m", Raw(bytes([n]) * 2000))]) for n in range(200))
    batches = feed(reader, stream, iter(lambda: 5000, None))
    assert [bytes(batch[0][1]) for batch in batches] == [bytes([n]) * 2000 for n in range(200)]


def test_received_buffers_can_be_written_to() -> None:
    for size in (100, 10 * SCRATCH):
        [[(_, buffer)]] = feed(FrameReader(), wire([("m", Raw(bytes(size)))]), iter(lambda: 10_000, None))
        buffer[0] = 1
        assert buffer.nbytes == size


@pytest.mark.parametrize("more", [-1, 0, 1, 10])
def test_more_buffers_than_a_frame_may_have(more: int) -> None:
    many = [bytes([n % 256]) * (n % 3) for n in range(MAX_BUFFERS + more)]
    [[(_, received)]] = feed(FrameReader(), wire([("m", [Raw(part) for part in many])]), iter(lambda: 60_000, None))
    assert [bytes(buffer) for buffer in received] == many
    assert all(buffer.nbytes == len(buffer.obj) for buffer in received), "none keeps the others alive"


def test_a_header_that_its_length_cannot_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_HEADER", 1000)
    with pytest.raises(OverflowError, match="pieces under 16 KiB are too many for one message: join them"):
        encode([("m", [bytes(100)] * 10)])
    assert encode([("m", Raw(bytes(2000)))])


def test_numbers_of_numpy_travel_as_numbers() -> None:
    [[message]] = feed(FrameReader(), wire([("m", ("x", np.int64(3)), np.float32(0.5))]), iter(lambda: 100, None))
    assert message == ("m", ("x", 3), 0.5)


def test_what_cannot_be_said_is_named() -> None:
    with pytest.raises(TypeError, match=r"cannot send object in a message"):
        encode([("m", object())])


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: scheduler\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60),  # the start of TLS
        b"\xff" * 64,
        HEAD.pack(4097, 0),
        HEAD.pack(10, 1) + struct.pack("<Q", 1 << 60),
        HEAD.pack(10, 2) + struct.pack("<QQ", 2**63, 2**63),
        HEAD.pack(10, MAX_BUFFERS + 1),
        HEAD.pack(0, 513),  # a table of lengths that is itself too long
        HEAD.pack(1, 0) + b"\x01",  # msgpack, but no list
        HEAD.pack(1, 0) + b"\xc1",  # never msgpack
        HEAD.pack(5, 0) + b"\xdd\xff\xff\xff\xff",  # a list of four billion items
        HEAD.pack(5, 0) + b"\xc6\xff\xff\xff\xff",  # four gigabytes
        HEAD.pack(4096, 0) + b"\x91" * 4096,  # lists in lists in lists
        HEAD.pack(7, 0) + b"\x91" + msgpack.packb(msgpack.ExtType(1, bytes(4))),  # a buffer that was not sent
        HEAD.pack(4, 0) + b"\x91" + msgpack.packb(msgpack.ExtType(1, b"x")),
        HEAD.pack(4, 0) + b"\x91" + msgpack.packb(msgpack.ExtType(99, b"x")),
    ],
    ids=range(16),
)
def test_a_stranger_is_told_from_a_peer_and_costs_no_memory(garbage: bytes) -> None:
    reader = FrameReader(limit=4096)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            feed(reader, garbage + bytes(8), iter(lambda: 1000, None))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@settings(max_examples=300)
@given(st.binary(max_size=600), st.integers(1, 50))
def test_noise_is_refused_or_waited_for_but_never_anything_else(noise: bytes, piece: int) -> None:
    try:
        feed(FrameReader(limit=4096), noise, iter(lambda: piece, None))
    except ProtocolError:
        pass


def test_the_limit_counts_what_is_beside_the_header() -> None:
    stream = wire([("m", Raw(bytes(5000)))])
    with pytest.raises(ProtocolError, match="over the limit of 4,096"):
        feed(FrameReader(limit=4096), stream, iter(lambda: 100, None))
    assert feed(FrameReader(limit=6000), stream, iter(lambda: 100, None))
