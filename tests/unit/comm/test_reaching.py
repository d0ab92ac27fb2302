"""What is said of a scheduler that was not reached in time."""

from __future__ import annotations

import asyncio

import pytest
from daskfleet.comm.reaching import reach


async def test_an_attempt_that_was_cut_short_hides_no_answer() -> None:
    attempts: list[asyncio.StreamWriter] = []

    async def hangs_up_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(writer)
        if len(attempts) == 1:
            writer.close()

    async with await asyncio.start_server(hangs_up_once, "127.0.0.1", 0) as server:
        address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(TimeoutError, match=rf"no scheduler at {address} within 3 s .*if it speaks TLS"):
            await reach(lambda: address, lambda _: None, 3, {}, early=True)
        assert len(attempts) > 1
        for writer in attempts:
            writer.close()
