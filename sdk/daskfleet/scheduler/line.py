"""Tasks in line, the most urgent first.

Most come in just the order in which they shall go, since priorities grow with ids unless somebody asks for something
else: these stand in a plain queue. Only the others take a heap, where each would cost a tuple and, with 100,000 in it,
some three microseconds more.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daskfleet.scheduler.state import TaskState


class Line:
    """A priority queue of tasks; no two of them have the same priority."""

    __slots__ = ("_heap", "_queue")

    def __init__(self) -> None:
        self._queue: deque[TaskState] = deque()
        self._heap: list[tuple[int, TaskState]] = []

    def push(self, ts: TaskState) -> None:
        queue = self._queue
        if not queue or ts.priority > queue[-1].priority:
            queue.append(ts)
        else:
            heapq.heappush(self._heap, (ts.priority, ts))

    def first(self) -> TaskState | None:
        """The most urgent task, which `pop` takes out."""
        queue, heap = self._queue, self._heap
        if heap and (not queue or heap[0][0] < queue[0].priority):
            return heap[0][1]
        return queue[0] if queue else None

    def pop(self) -> TaskState:
        queue, heap = self._queue, self._heap
        if heap and (not queue or heap[0][0] < queue[0].priority):
            return heapq.heappop(heap)[1]
        return queue.popleft()

    def clear(self) -> None:
        self._queue.clear()
        self._heap.clear()

    def __iter__(self) -> Iterator[TaskState]:
        """All, in no particular order."""
        yield from self._queue
        for _, ts in self._heap:
            yield ts
