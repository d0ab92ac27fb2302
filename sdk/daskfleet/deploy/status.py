"""`Status`, by itself: what runs at the far end of a session needs no more of a cluster than that."""

from enum import StrEnum


class Status(StrEnum):
    """Where a cluster is in its life."""

    created = "created"
    starting = "starting"
    running = "running"
    closing = "closing"
    closed = "closed"
    failed = "failed"
