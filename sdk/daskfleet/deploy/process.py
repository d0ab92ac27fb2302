"""What a `SpecCluster` is made of: `ProcessInterface`, and how classes are named and asked what they take."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Generator
from typing import Any, Self

from daskfleet.deploy.status import Status


class ProcessInterface:
    """A scheduler or worker process somewhere, as `SpecCluster` handles it; awaitable.

    Parameters
    ----------
    scheduler
        The scheduler's address, for workers.
    name
        What the process is called.

    Attributes
    ----------
    address
        Where it listens, once it runs and if that is known.
    external_address
        Where clients reach it, if that differs.
    failure
        Why it ended, ``""`` while it runs or when it ended on purpose.
    renew
        Whether it is to be followed by another although it ended on purpose (its time was up, say).
    """

    def __init__(self, scheduler: str | None = None, name: Any = None) -> None:
        self.scheduler = scheduler
        self.name = name
        self.address: str | None = None
        self.external_address: str | None = None
        self.status = Status.created
        self.failure = ""
        self.renew = False
        self._lock = asyncio.Lock()
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Start it; subclasses do that and then call this."""
        self.status = Status.running

    async def close(self) -> None:
        """End it; subclasses do that and then call this."""
        self.status = Status.closed
        self._ended.set()

    async def finished(self) -> None:
        """Wait until it has ended, whoever ended it."""
        await self._ended.wait()

    def logs(self) -> str:
        """What it has written, as far as that is known here."""
        return ""

    def waiting_for(self) -> str:
        """Why its workers are not there yet, if that is known; ``""`` otherwise."""
        return ""

    def __await__(self) -> Generator[Any, None, Self]:
        async def once() -> Self:
            async with self._lock:
                if self.status is Status.created:
                    await self.start()
            return self

        return once().__await__()

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self.status}>"


def load_class(cls: Any) -> Any:
    """The class itself, or the one that a text such as ``"daskfleet.Nanny"`` names.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if not isinstance(cls, str):
        return cls
    module, _, name = cls.rpartition(".")
    module = {"distributed": "daskfleet", "dask.distributed": "daskfleet"}.get(module, module)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"class {cls!r} cannot be found: {error}") from None


def takes(cls: Any, parameter: str) -> bool:
    """Whether `cls` can be called with this keyword argument."""
    parameters = inspect.signature(cls).parameters
    return parameter in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def failure_of(worker: Any) -> str:
    """Why a process ended, ``""`` if that was on purpose; our `Nanny` tells by its exit status."""
    failure = getattr(worker, "failure", None)
    if failure is not None:
        return str(failure)
    status = getattr(worker, "exit_status", None)
    return f"exit status {status}" if status else ""
