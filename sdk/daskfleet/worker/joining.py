"""How a worker finds its scheduler, which may be started later."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from typing import Any

from daskfleet.comm import Connection, connect
from daskfleet.protocol.frames import ProtocolError

logger = logging.getLogger(__name__)

#: Seconds between attempts to reach the scheduler: it may be started after us. If something is there and hangs up,
#: each is twice as long as the one before, up to the last.
RETRY, LONGEST_RETRY = 0.1, 5.0
#: Seconds for which attempts are short, one after the other: a Service's address swallows packets until its rules are
#: there, which takes up to a second; a path that is merely slow gets longer attempts afterwards.
EAGER = 3.0
#: Seconds that the first attempt waits for an answer; each that got none makes the next one wait half as long again.
FIRST_PATIENCE = 0.2
LONGEST_PATIENCE = 10.0


async def reach(
    where: Callable[[], str],
    setup: Callable[[Connection], None],
    death_timeout: float | None,
    args: dict[str, Any],
) -> Connection:
    """Connect to the scheduler, however long that takes (up to `death_timeout` seconds).

    Parameters
    ----------
    where
        Its address, asked for before each attempt.
    setup, args
        For `daskfleet.comm.connect`.
    """
    deadline = None if death_timeout is None else time.monotonic() + death_timeout
    said, patience, pause, started = False, FIRST_PATIENCE, RETRY, time.monotonic()
    while True:
        address = where()
        try:
            return await connect(address, setup=setup, patience=patience, **args)
        except (ConnectionRefusedError, ConnectionResetError, TimeoutError, OSError) as error:
            if isinstance(error, (ProtocolError, ssl.SSLCertVerificationError)):
                raise  # waiting does not mend that
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(
                    f"no scheduler at {address} within {death_timeout:g} s ({error}): "
                    "is it running, and reachable from here?"
                ) from None
            if not said:
                logger.info("waiting for the scheduler at %s: %s", address, error)
                said = True
            if isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError):
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_RETRY)
            elif not isinstance(error, TimeoutError):
                await asyncio.sleep(RETRY)
            elif time.monotonic() - started > EAGER:
                patience = min(1.5 * patience, LONGEST_PATIENCE)
