"""How workers and clients find their scheduler, which may be started later."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from typing import Any

from daskfleet.comm.connection import Connection
from daskfleet.comm.opening import connect
from daskfleet.protocol.frames import ProtocolError

logger = logging.getLogger(__name__)

#: Seconds for one attempt.
ATTEMPT = 10.0
#: Seconds between attempts to reach the scheduler: it may be started after us. If something is there and hangs up,
#: each is twice as long as the one before, up to the last.
RETRY, LONGEST_RETRY = 0.1, 5.0
#: Seconds for which attempts are short, one after the other: a Service's address swallows packets until its rules are
#: there, which takes up to a second; a path that is merely slow gets longer attempts afterwards.
EAGER = 3.0
#: Seconds that the first attempt waits for an answer; each that got none makes the next one wait half as long again.
FIRST_PATIENCE = 0.2
LONGEST_PATIENCE = 10.0
#: Seconds after which somebody who looks on is told what is waited for.
PROGRESS = 2.0


async def reach(
    where: Callable[[], str],
    setup: Callable[[Connection], None],
    timeout: float | None,
    args: dict[str, Any],
    *,
    early: bool,
) -> Connection:
    """Connect to the scheduler, however long that takes (up to `timeout` seconds).

    Parameters
    ----------
    where
        Its address, asked for before each attempt.
    setup, args
        For `daskfleet.comm.connect`.
    early
        We may be there before the scheduler and the network in front of it: what hangs up is tried again, too, and
        attempts are short at first. Nobody looks on.

    Raises
    ------
    TimeoutError
        There was none in time; the message says why the last attempt failed, or, if that was cut short without an
        answer, why one before it did.
    ProtocolError, AuthenticationError, ConnectionError, ssl.SSLCertVerificationError
        Something is there that does not want us, which waiting does not mend.
    """
    started = time.monotonic()
    said, patience, pause = False, FIRST_PATIENCE if early else None, RETRY
    why: OSError | None = None
    while True:
        address = where()
        left = ATTEMPT if timeout is None else started + timeout - time.monotonic()
        try:
            return await connect(
                address, setup=setup, timeout=max(min(left, ATTEMPT), RETRY), patience=patience, **args
            )
        except OSError as error:
            hung_up = isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError)
            if isinstance(error, (ProtocolError, ssl.SSLCertVerificationError)) or (hung_up and not early):
                raise
            waited = time.monotonic() - started
            # An attempt that is as short as what is left says nothing of the scheduler: what was known before stands.
            if why is None or left > ATTEMPT or not isinstance(error, TimeoutError):
                why = error
            if timeout is not None and waited > timeout:
                raise TimeoutError(
                    f"no scheduler at {address} within {timeout:g} s ({why}): is it running, and reachable from here?"
                ) from None
            if not said and (early or waited > PROGRESS):
                logger.log(
                    logging.INFO if early else logging.WARNING, "waiting for the scheduler at %s: %s", address, error
                )
                said = True
            if hung_up:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_RETRY)
            elif not isinstance(error, TimeoutError):
                await asyncio.sleep(RETRY)
            elif patience is not None and waited > EAGER:
                patience = min(1.5 * patience, LONGEST_PATIENCE)
