"""Events: what happened, by topic, for whoever asks or has subscribed."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from daskfleet import config
from daskfleet.protocol.frames import Buffer
from daskfleet.scheduler.state import ClientState, WorkerState

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

#: What tasks print and warn goes to every client.
BROADCAST = frozenset({"print", "warn"})

Event = tuple[float, Any]


class Events:
    """Logged events and subscriptions. A message is a pickle of a user's, or plain data of the scheduler's own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._length = config.get("distributed.admin.log-length")  # events that are remembered, of each topic
        self._topics: dict[str, deque[Event]] = {}
        self._subscribers: dict[str, dict[ClientState, None]] = {}
        scheduler.hear("client", "log_event", self._log_by_peer)
        scheduler.hear("worker", "log_event", self._log_by_peer)
        scheduler.hear("client", "subscribe", self._subscribe)
        scheduler.hear("client", "unsubscribe", self._unsubscribe)
        scheduler.handle("client", "get_events", self.get)
        scheduler.on_client_gone.append(self._gone)

    def log(self, topics: str | list[str] | tuple[str, ...], message: Any) -> None:
        """Remember an event and tell the subscribers.

        Parameters
        ----------
        message
            A pickle, or plain data (numbers, texts, and lists and dicts of them).
        """
        now = time.time()
        for topic in [topics] if isinstance(topics, str) else topics:
            if topic not in BROADCAST:
                self._topics.setdefault(topic, deque(maxlen=self._length)).append((now, message))
            clients = list(self._scheduler.state.clients.values()) if topic in BROADCAST else []
            for client in [*self._subscribers.get(topic, ()), *clients]:
                connection = self._scheduler._connections.get(client)
                if connection is not None:
                    connection.send(("event", [(topic, now, message)]))
            self._scheduler.notify("log_event", topic, message)

    def _log_by_peer(self, peer: ClientState | WorkerState, event: tuple[Any, Buffer]) -> None:
        self.log(event[0], event[1])

    def _subscribe(self, client: ClientState, topic: str) -> None:
        self._subscribers.setdefault(topic, {})[client] = None

    def _unsubscribe(self, client: ClientState, topic: str) -> None:
        self._subscribers.get(topic, {}).pop(client, None)

    async def get(self, client: ClientState, topic: str | None) -> Any:
        """The events of a topic, or all by topic."""
        if topic is not None:
            return list(self._topics.get(topic, ()))
        return [(name, list(events)) for name, events in self._topics.items()]

    def _gone(self, client: ClientState) -> None:
        for subscribers in self._subscribers.values():
            subscribers.pop(client, None)
