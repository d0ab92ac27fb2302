"""The file through which a scheduler, its workers and its clients find each other on a shared folder.

It holds the scheduler's identity as JSON, as distributed writes it, and the token. So it is written with permissions
0600, and atomically: a reader sees the old content or the new, never half of one.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskfleet.security import Security, new_token

#: Seconds that `read` waits for the file.
TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class SchedulerFile:
    """What a scheduler file says."""

    address: str
    security: Security | None

    def secured(self, given: Security | None) -> Security | None:
        """What was given besides (certificates, say), with the file's token unless it has one of its own."""
        if given is None or given.token or self.security is None:
            return given or self.security
        both = copy.copy(given)
        both.token = self.security.token
        return both


def renew(file: str, guard: Security, port: int) -> int:
    """Take over from the scheduler that has written `file` before us: its token, and the port if that is free here.

    Workers and clients of that one find us, and their token still holds. The token stays in the file otherwise, too: it
    travels nowhere else, and only the file's owner can read it. Returns the port to listen on.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = json.loads(Path(file).read_text())
        guard.token = guard.token or before["token"]
        port = port or _if_free(int(str(before["address"]).rpartition(":")[2]))
    guard.token = guard.token or new_token()
    return port


def _if_free(port: int) -> int:
    """The port, or 0 when somebody listens on it on this host: ours may have been on another."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return 0
    return port


def write(path: str, identity: dict[str, Any], security: Security) -> None:
    """Write the file, whole and readable by its owner alone.

    Raises
    ------
    OSError
    """
    import tempfile

    target = Path(path).absolute()
    content = dict(identity)
    if security.token:
        content["token"] = security.token
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # mkstemp gives 0600
    try:
        with os.fdopen(descriptor, "w") as stream:
            json.dump(content, stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: str, *, wait: bool = False, timeout: float = TIMEOUT) -> SchedulerFile:
    """Read the file.

    Parameters
    ----------
    wait
        Wait up to `timeout` seconds for it to appear: the scheduler may be started after its workers.

    Raises
    ------
    FileNotFoundError
        With what to do about it.
    ValueError
        It is not a scheduler file.
    """
    deadline = time.monotonic() + timeout
    while wait and not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        content = json.loads(Path(path).read_text())
        address, token = content["address"], content.get("token")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no scheduler file {path}: start the scheduler with --scheduler-file {path}, on a folder that is shared"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a scheduler file: it has no address") from None
    return SchedulerFile(str(address), Security(token=token) if token else None)


def moved(path: str | None, address: str) -> str:
    """Where the scheduler is by now that was at `address`: one that is started anew elsewhere says so in its file."""
    if path:
        with contextlib.suppress(OSError, ValueError):
            return read(path).address
    return address
