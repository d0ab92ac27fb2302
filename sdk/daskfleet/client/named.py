"""What locks, events, variables and queues have in common: a name on the scheduler, and a client found late."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Self

from daskfleet.client.inside import get_client

if TYPE_CHECKING:
    from daskfleet.client.client import Client


class Named:
    """Something of the scheduler's. It pickles by its name: in a task it belongs to the task's client.

    Parameters
    ----------
    name
        All of one kind and name are the same, in every client and task; a random one by default.
    client
        By default the current one, when the object is first used.
    """

    def __init__(self, name: str | None = None, client: Client | None = None) -> None:
        self.name = name if name is not None else f"{type(self).__name__.lower()}-{uuid.uuid4().hex}"
        self._client = client

    @property
    def client(self) -> Client:
        """The client through which it works.

        Raises
        ------
        ValueError
            There is none.
        """
        if self._client is None or self._client.status == "closed":
            self._client = get_client()
        return self._client

    def _sync(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return self.client._sync(function, *args)

    def _ask(self, method: str, *args: Any) -> Any:
        client = self.client
        return client._sync(client._call, method, self.name, *args)

    async def _itself(self) -> Self:
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._itself().__await__()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"
