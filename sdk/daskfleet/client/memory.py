"""`Client.amm`: the scheduler's active memory manager."""

from __future__ import annotations

from typing import Any


class ActiveMemoryManagerProxy:
    """Starts and stops the active memory manager, which lets go of copies that nothing needs.

    It runs every two seconds unless ``distributed.scheduler.active-memory-manager.start`` is false. All methods return
    whether it runs by itself afterwards; with an asynchronous client, an awaitable of that.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"<active memory manager of {self._client!r}>"

    def start(self) -> Any:
        """Run now and then."""
        return self._tell("start")

    def stop(self) -> Any:
        """Run no more by itself."""
        return self._tell("stop")

    def run_once(self) -> Any:
        """Run now, also while it is stopped."""
        return self._tell("run_once")

    def running(self) -> Any:
        """Whether it runs by itself."""
        return self._tell("running")

    def _tell(self, what: str) -> Any:
        return self._client._sync(self._client._call, "amm", what)
