"""Memory for what is received: lent pieces are nobody else's, and what comes back serves again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import pytest
from daskfleet.protocol import buffers

SIZE = 2 * buffers.MAPPED


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing waits but what the test lets go, and that for as long as it likes."""
    monkeypatch.setattr(buffers, "SECONDS", 3600.0)
    buffers._waiting.clear()
    yield
    buffers._waiting.clear()


def marked(size: int = SIZE) -> memoryview:
    piece = buffers.allocate(size)
    piece[:4] = b"mark"
    return piece


def test_sizes_large_and_small_can_be_written_to() -> None:
    for size in (1, 1000, buffers.MAPPED - 1, buffers.MAPPED, SIZE + 1):
        piece = buffers.allocate(size)
        assert (len(piece), piece.format, piece.readonly) == (size, "B", False)
        piece[size - 1] = 7
        assert piece[size - 1] == 7


def test_what_comes_back_serves_again() -> None:
    piece = marked()
    del piece
    assert bytes(buffers.allocate(SIZE)[:4]) == b"mark"


def test_it_comes_back_with_the_last_view_of_it() -> None:
    array = numpy.frombuffer(marked(), "u1")[100:]
    assert not buffers._waiting
    other = buffers.allocate(SIZE)
    other[:] = bytes(SIZE)
    array[:] = 1
    assert not any(other[100:1000])
    del array
    assert len(buffers._waiting) == 1


def test_it_serves_for_sizes_a_little_smaller() -> None:
    piece = marked()
    del piece
    assert bytes(buffers.allocate(int(SIZE * buffers.FIT) + 1)[:4]) == b"mark"
    for other in (SIZE + 1, int(SIZE * buffers.FIT) - 1):
        assert bytes(buffers.allocate(other)[:4]) != b"mark"
    assert bytes(buffers.allocate(SIZE)[:4]) == b"mark", "it was not given away meanwhile"


def test_only_so_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "KEEP", 3 * SIZE)
    pieces = [buffers.allocate(SIZE) for _ in range(5)]
    del pieces
    assert len(buffers._waiting) == 3


def test_what_has_waited_in_vain_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    piece = buffers.allocate(SIZE)
    late = buffers.allocate(SIZE)
    del piece
    assert buffers.expire()
    assert len(buffers._waiting) == 1
    monkeypatch.setattr(buffers, "SECONDS", 0.0)
    assert not buffers.expire()
    assert not buffers._waiting
    del late  # nothing has been received for a while
    assert not buffers._waiting
