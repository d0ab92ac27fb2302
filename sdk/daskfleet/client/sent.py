"""What a scheduler would have to be told again.

A client that loses its connection does not know which of its last messages arrived, and a scheduler that was started
anew knows none of them. So the messages of a submission are kept until all its futures are done, and those of its
inputs for as long, even if nobody holds their futures any more. Looking for what can go happens only when the number of
submissions kept has doubled, which makes it a constant cost per submission.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from daskfleet.protocol.frames import Message


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
        self._look_at = 1000

    def add(self, message: Message) -> None:
        """Keep a ``tasks`` message."""
        self._graphs.setdefault(message[1], []).append(message)
        if len(self._graphs) >= self._look_at:
            self._prune()
            self._look_at = 2 * len(self._graphs) + 1000

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


def _rows(messages: list[Message]) -> Iterator[Message]:
    for message in messages:
        yield from message[6]
