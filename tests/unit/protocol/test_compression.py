"""Compression on the wire: whatever the codec, what arrives is what was sent, and nothing is compressed in vain."""

from __future__ import annotations

import random
from typing import Any

import pytest
from daskfleet.protocol import compression
from daskfleet.protocol.frames import FrameReader, ProtocolError, Raw, encode

PLAIN = bytes(range(100)) * 3000
NOISE = random.Random(1).randbytes(300_000)


def receive(reader: FrameReader, parts: list[Any]) -> list[Any]:
    stream, messages = memoryview(b"".join(parts)), []
    while len(stream):
        target = reader.buffer()
        n = min(len(target), len(stream))
        target[:n], stream = stream[:n], stream[n:]
        for batch in reader.received(n):
            messages.extend(batch)
    return messages


@pytest.fixture(params=compression.CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(compression.CODECS[request.param].module)
    return str(request.param)


def test_buffers_arrive_as_they_were_and_can_be_written_to(codec: str) -> None:
    parts = encode([("op", Raw(PLAIN), Raw(NOISE), Raw(b"short"), "text")], codec)
    assert sum(map(len, parts)) < len(NOISE) + len(PLAIN) // 4
    assert any(part == NOISE for part in parts), "noise was not worth it"
    [(_, plain, noise, short, text)] = receive(FrameReader(compressed=True), parts)
    assert (plain, noise, short, text) == (PLAIN, NOISE, b"short", "text")
    plain[0] = 7


def test_what_is_broken_is_refused(codec: str) -> None:
    head, body = encode([("op", Raw(PLAIN))], codec)
    broken = bytearray(body)
    broken[: len(broken) // 2] = bytes(len(broken) // 2)
    with pytest.raises(ProtocolError):
        receive(FrameReader(compressed=True), [head, broken])
    with pytest.raises(ValueError, match=f"{codec} "):
        compression.restore(codec, body, len(PLAIN) + 1)


def test_a_stranger_may_not_compress() -> None:
    with pytest.raises(ProtocolError, match="unknown extension 3"):
        receive(FrameReader(), encode([("op", Raw(PLAIN))], "zlib"))


def test_what_is_offered_and_agreed() -> None:
    assert compression.offered(None) == compression.offered(False) == ()
    assert compression.offered("zlib") == ("zlib",)
    assert "zlib" not in compression.offered("auto")
    with pytest.raises(ValueError, match="'gzip': expected auto, lz4, zstd, snappy, zlib or false"):
        compression.offered("gzip")
    assert compression.in_common(("lz4", "zlib"), ("zlib", "lz4")) == "lz4"
    for theirs in ((), None, 3, ("zstd",), [["lz4"]]):
        assert compression.in_common(("lz4", "zlib"), theirs) is None
