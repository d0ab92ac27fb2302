"""A worker's folder for temporary files, and those that dead workers have left behind: `Folder`.

A worker that is killed cannot clean up. So each folder has a lock that the system lets go of with its process, and each
worker that starts removes, of its user and on its host, the folders beside its own whose lock nobody holds. It can be
shared: the worker's nanny holds it, too, as soon as it knows of the folder, so that nobody removes a dead worker's
before the next has taken it over.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import tempfile
import weakref
from pathlib import Path

logger = logging.getLogger(__name__)

PREFIX = "daskfleet-worker-"
#: File in each folder that its worker has locked; it holds the name of the host, as not every lock is seen by others.
LOCK = ".lock"

_cleaned: set[Path] = set()


class Folder:
    """A folder that nobody else can look into: a new one below `parent` (the system's for temporary files by default).

    Parameters
    ----------
    inherit
        That of a worker that has died: it is taken over if it is still there, with the files in it whose names end in
        one of `keep`.
    """

    def __init__(self, parent: str | None = None, inherit: str | None = None, keep: tuple[str, ...] = ()) -> None:
        if inherit is None or not self._take_over(Path(inherit), keep):
            self._make(parent)
        self.remove = weakref.finalize(self, _remove, self.path, self._lock, os.getpid())

    def _take_over(self, path: Path, keep: tuple[str, ...]) -> bool:
        lock = share(path)
        if lock is None:
            return False
        self._lock, self.path = lock, path
        for left in path.iterdir():
            if left.name != LOCK and not left.name.endswith(keep):
                shutil.rmtree(left, ignore_errors=True)
                with contextlib.suppress(OSError):
                    left.unlink()
        return True

    def _make(self, parent: str | None) -> None:
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        # It gets its name when it is locked: a folder with that name and without an owner is a dead one's.
        unnamed = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent)).absolute()
        self._lock = os.open(unnamed / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        os.write(self._lock, socket.gethostname().encode())
        with contextlib.suppress(OSError):  # a file system without locks: nobody will remove it for us
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self.path = unnamed.with_name(unnamed.name[1:])
        unnamed.rename(self.path)

    def clean_up_after_others(self) -> None:
        """Remove the folders beside this one whose workers have died; once in the life of a process."""
        if self.path.parent in _cleaned:
            return
        _cleaned.add(self.path.parent)
        for path in self.path.parent.glob(f"{PREFIX}*"):
            if path != self.path and remove_if_dead(path):
                logger.info("removed %s, which a worker that was killed has left behind", path)


def _remove(path: Path, lock: int, pid: int) -> None:
    if os.getpid() == pid:  # and not a process that a task has forked off
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def share(path: Path) -> int | None:
    """A descriptor that keeps others from removing a folder until it is closed; None if there is no such folder, or
    somebody is removing it."""
    return _lock(path, fcntl.LOCK_SH)


def remove_if_dead(path: Path) -> bool:
    """Remove a folder that neither a worker nor its nanny has."""
    if (lock := _lock(path, fcntl.LOCK_EX)) is None:
        return False
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)  # not before: nobody is to take over what is being removed
    return True


def _lock(path: Path, kind: int) -> int | None:
    try:
        lock = os.open(path / LOCK, os.O_RDWR)
    except OSError:
        return None  # another user's, or gone by now
    try:
        if os.read(lock, 256) == socket.gethostname().encode():
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(path / LOCK)):  # it may have been removed meanwhile
                return lock
    except OSError:
        pass
    os.close(lock)
    return None
