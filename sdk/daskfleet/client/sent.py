"""What a scheduler would have to be told again.

A client that loses its connection does not know which of its last messages arrived, and a scheduler that was started
anew knows none of them. So the messages of a submission are kept until all its futures are done, and those of its
inputs for as long, even if nobody holds their futures any more. Looking for what can go happens only when the number of
tasks kept has doubled, which makes it a constant cost per task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from daskfleet.protocol.frames import Message

#: Tasks (some 300 bytes each, and their arguments) that are kept before it is first looked at what can go.
LOOK_AT = 5000


class Sent:
    """Submissions that were not done when it was last looked at.

    Parameters
    ----------
    pending
        Tells whether the future of a number still has to be computed.
    """

    def __init__(self, pending: Callable[[int], bool]) -> None:
        self._pending = pending
        self._graphs: dict[int, list[Message]] = {}
        self._tasks, self._look_at = 0, LOOK_AT

    def add(self, message: Message) -> None:
        """Keep a ``tasks`` message."""
        self._graphs.setdefault(message[1], []).append(message)
        self._tasks += len(message[6])
        if self._tasks >= self._look_at:
            self._prune()
            self._look_at = 2 * self._tasks + LOOK_AT

    def unfinished(self) -> tuple[list[Message], list[int]]:
        """The messages to send again, in order, and the numbers of all futures in them."""
        self._prune()
        messages = [message for messages in self._graphs.values() for message in messages]
        return messages, [row[0] for row in _rows(messages) if row[0]]

    def _prune(self) -> None:
        """Drop what is done. From the last to the first, since submissions depend on earlier ones only."""
        keep: list[int] = []
        inputs: set[int] = set()
        for number, messages in reversed(self._graphs.items()):
            complete = messages[-1][2]
            if not complete or any(row[0] and (row[0] in inputs or self._pending(row[0])) for row in _rows(messages)):
                keep.append(number)
                inputs.update(-dependency for row in _rows(messages) for dependency in row[4] or () if dependency < 0)
        self._graphs = {number: self._graphs[number] for number in reversed(keep)}
        self._tasks = sum(len(message[6]) for messages in self._graphs.values() for message in messages)


def _rows(messages: list[Message]) -> Iterator[Message]:
    for message in messages:
        yield from message[6]
