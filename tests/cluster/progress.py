"""One line when a long step starts, one every ten seconds while it runs, one with the time it took."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

HEARTBEAT = 10.0
"""Seconds between the lines of a step that is still running."""


class ClusterError(Exception):
    """Something a cluster needs could not be had; the message says what to do about it."""


def say(line: str) -> None:
    """Print one line, at once and to stderr, so that stdout stays for answers."""
    print(f"[daskfleet] {line}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Tell about a step that may take longer than two seconds."""
    started = time.monotonic()
    finished = threading.Event()

    def heartbeat() -> None:
        while not finished.wait(HEARTBEAT):
            say(f"{what} … {time.monotonic() - started:.0f} s")

    say(f"{what} …")
    beat = threading.Thread(target=heartbeat, daemon=True)
    beat.start()
    try:
        yield
    except BaseException:
        say(f"{what}: failed after {time.monotonic() - started:.1f} s")
        raise
    finally:
        finished.set()
        beat.join()
    say(f"{what}: done in {time.monotonic() - started:.1f} s")


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    timeout: float | None = None,
    hint: str = "",
) -> str:
    """Run a command to its end and return its stdout.

    Raises
    ------
    ClusterError
        With the command, its exit status, the end of what it said and ``hint``.
    """
    shown = " ".join(str(word) for word in command[:8]) + (" …" if len(command) > 8 else "")
    try:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]} is not installed. {hint}".strip()) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{shown}` did not end within {timeout:.0f} s. {hint}".strip()) from error
    if done.returncode:
        said = "\n".join(f"    {line}" for line in (done.stderr or done.stdout).strip().splitlines()[-20:])
        raise ClusterError(f"`{shown}` ended with status {done.returncode}. {hint}".strip() + f"\n{said}")
    return done.stdout
