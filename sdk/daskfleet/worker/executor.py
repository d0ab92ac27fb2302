"""Threads that run tasks.

A pool of our own, since `concurrent.futures` spends some 30 µs a task on futures and locks that nobody here looks at. A
thread takes a task from a C queue, runs it, serialises the result if that is small, and appends the outcome to a deque;
only the first outcome of a burst wakes the event loop, which then takes all that have gathered. So the cost of crossing
between threads is paid once a burst, not once a task. A lone outcome costs no crossing: when nothing is queued and the
loop waits, the thread enters it (`daskfleet.entering`) and reports by itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import pickle
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from daskfleet.entering import EnterableLoop
from daskfleet.exceptions import Reschedule, TaskStopped
from daskfleet.importing import Lazy
from daskfleet.protocol.messages import INLINE
from daskfleet.protocol.serialize import Serialized, dumps, dumps_by_value, loads, nbytes
from daskfleet.protocol.spec import evaluate
from daskfleet.worker.context import context
from daskfleet.worker.machine import Inline, Task
from daskfleet.worker.pieces import PiecesLost
from daskfleet.worker.spill import OnDisk

if TYPE_CHECKING:
    from dask import sizeof as sizes

    from daskfleet.worker.server import Worker
else:
    sizes = Lazy("dask.sizeof")

#: Innermost frames of a traceback that are reported.
FRAMES = 100
#: Results of these types are pickled at once: `sizeof` would take as long.
_PRIMITIVES = (int, float, bool, type(None), complex)


@dataclass(slots=True)
class Success:
    """A task has returned."""

    task: Task
    value: Any
    nbytes: int
    seconds: float
    kind: str
    inline: Serialized | None


@dataclass(slots=True)
class Failed:
    """A task has raised."""

    task: Task
    exception: Serialized
    traceback: Serialized
    text: str
    seconds: float


@dataclass(slots=True)
class Again:
    """A task asks to be run again."""

    task: Task


@dataclass(slots=True)
class Suspended:
    """A task is a coroutine: the event loop has to run it."""

    task: Task
    coroutine: Any
    started: float


@dataclass(slots=True)
class Deprived:
    """A task cannot have what others have left on their workers: ``(their task's id, their worker's address)``."""

    task: Task
    copies: list[tuple[int, str]]


Outcome = Success | Failed | Again | Suspended | Deprived


class Executor:
    """Runs tasks in `nthreads` threads and hands their outcomes to `report` on `loop`.

    Parameters
    ----------
    report
        Called on the loop with a list of outcomes.
    """

    def __init__(
        self,
        nthreads: int,
        loop: asyncio.AbstractEventLoop,
        report: Callable[[list[Outcome]], None],
        worker: Worker | None = None,
    ) -> None:
        self._queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._outcomes: deque[Outcome] = deque()
        self._loop, self._report, self._worker = loop, report, worker
        self._enter = loop.enter if isinstance(loop, EnterableLoop) else None
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._waking = False
        self.running: dict[int, tuple[Task, float]] = {}  # by thread id: what it runs and since when
        self.resting, self.busy = False, threading.Event()  # whether a sampler waits for a task, and what wakes it
        self._threads: list[threading.Thread] = []
        self._growing = threading.Lock()
        self._interrupting = threading.Lock()
        self._interrupted: set[int] = set()
        self._calling: dict[Task, float] = {}
        for _ in range(nthreads):
            self._add_thread()

    def _add_thread(self) -> None:
        with self._growing:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=self._work, name=f"daskfleet-task-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def submit(self, task: Task) -> None:
        """Run `task` after those submitted before it."""
        self._queue.put(task)

    def close(self) -> None:
        """Let the threads end after what was submitted; does not wait."""
        for _ in self._threads:
            self._queue.put(None)

    def grow(self) -> None:
        """One of the threads has left for a task of its own: another takes its place."""
        self._add_thread()

    def shrink(self) -> None:
        """That thread is back: after what is queued, one of them ends."""
        self._queue.put(None)

    def started(self, task: Task) -> float | None:
        """When a thread called the function of `task`, which has a timeout; None if none has yet."""
        return self._calling.get(task)

    def ended(self, task: Task) -> None:
        """A task with a timeout has ended."""
        self._calling.pop(task, None)

    def interrupt(self, task: Task, error: type[BaseException]) -> None:
        """Raise `error` in the thread that runs `task`, if one does."""
        with self._interrupting:
            for thread, (running, _) in list(self.running.items()):
                if running is task:
                    self._interrupted.add(thread)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))

    def _calm(self, thread: int) -> None:
        """What was raised in this thread was for the task that has just ended: not for the next."""
        with self._interrupting:
            self._interrupted.discard(thread)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)

    def forget(self, functions: list[bytes]) -> None:
        """Functions that no task is expected to ask for again."""
        for function in functions:
            self._functions.pop(function, None)

    def _work(self) -> None:
        context.worker = self._worker
        thread = threading.get_ident()
        while not context.away and (task := self._queue.get()) is not None:
            started = time.perf_counter()
            self.running[thread] = (task, time.monotonic())
            if self.resting:
                self.busy.set()
            context.task = task
            outcome: Outcome | None = None
            while True:
                try:
                    if outcome is None:
                        outcome = self._run(task, started)
                    with self._interrupting:  # from here on nobody interrupts this thread
                        self.running.pop(thread, None)
                    context.task = None
                    if self._interrupted and thread in self._interrupted:
                        self._calm(thread)
                    break
                except TaskStopped as error:  # it came when the task had just ended
                    outcome = outcome or failure(task, error, time.perf_counter() - started)
            self._outcomes.append(outcome)
            del task, outcome
            if self._enter is not None and self._queue.empty() and self._enter(self._take):
                continue
            if not self._waking:
                self._waking = True
                try:
                    self._loop.call_soon_threadsafe(self._take)
                except RuntimeError:  # the loop is closed, and with it the worker
                    return

    def _take(self) -> None:
        self._waking = False  # before the first is taken: an outcome that comes later wakes the loop again
        outcomes, taken = self._outcomes, []
        while outcomes:
            taken.append(outcomes.popleft())
        if taken:  # else a thread has reported them since
            self._report(taken)

    def _run(self, task: Task, started: float) -> Outcome:
        try:
            function = self._functions.get(task.function)
            if function is None:
                if b"dask" in task.function:
                    import dask  # noqa: F401  the package before its parts (`Lazy`)
                function = self._functions[task.function] = loads(task.function)
            args, kwargs = loads(task.payload)
            values = [_input(value) for value in task.inputs]
            if task.timeout is not None:  # is about the call, not about importing what it needs
                self._calling[task] = time.monotonic()
            value = evaluate(function, args, kwargs, values)
            del args, kwargs, values
            if inspect.iscoroutine(value):
                return Suspended(task, value, started)
            return success(task, value, time.perf_counter() - started)
        except BaseException as error:
            return failure(task, error, time.perf_counter() - started)


def _input(value: Any) -> Any:
    if type(value) is Inline:
        return loads(value.value)
    return value.load() if type(value) is OnDisk else value


def success(task: Task, value: Any, seconds: float) -> Success:
    """What to report of a task that returned `value`."""
    if type(value) in _PRIMITIVES:
        inline = pickle.dumps(value, 5)
        return Success(task, value, 28, seconds, type(value).__name__, inline)
    size = size_of(value)
    small: Serialized | None = None
    if size <= INLINE and not hasattr(value, "__daskfleet_stays__"):
        try:
            small = dumps(value)
        except TypeError:
            small = None  # it can still be used on this worker; whoever wants it elsewhere gets the error
        if small is not None and nbytes(small) > INLINE:
            small = None
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return Success(task, value, size, seconds, name, small)


def failure(task: Task, error: BaseException, seconds: float) -> Failed | Again | Deprived:
    """What to report of a task that raised `error`: the error, its traceback without our own frames, and a text."""
    if isinstance(error, Reschedule):
        return Again(task)
    if isinstance(error, PiecesLost):
        return Deprived(task, error.copies)
    from tblib import Traceback

    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith("daskfleet."):
        traceback = traceback.tb_next
    error = _ordinary(error).with_traceback(None)  # it travels apart; dask has tblib pickle both together
    text = _text(error)
    try:
        blob = dumps_by_value(error)
        loads(blob)  # an exception whose constructor takes other arguments than it stored pickles, and fails only then
    except BaseException:  # constructors of the user's run here
        blob = dumps_by_value(RuntimeError(f"{text} (the exception itself cannot be pickled)"))
    frames = b""
    if traceback is not None:
        depth = sum(1 for _ in walk_tb(traceback))
        for _ in range(depth - FRAMES):
            traceback = traceback.tb_next if traceback is not None else None
        frames = dumps_by_value(Traceback(traceback).to_dict())
    return Failed(task, blob, frames, text, seconds)


def _ordinary(error: BaseException) -> BaseException:
    """What ends a program (`sys.exit` in a task, say) as an ordinary exception: it ends neither the worker nor, when it
    is raised again there, the client."""
    if isinstance(error, (Exception, asyncio.CancelledError)):
        return error
    return RuntimeError(f"the task has called for an end of its process: {type(error).__name__}({_text(error)})")


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:10_000]
    except Exception:
        return f"{type(error).__name__} (which cannot be shown)"


def size_of(value: Any) -> int:
    """Bytes that `value` takes in memory, by dask's estimate."""
    try:
        return int(sizes.sizeof(value))
    except Exception:
        return sys.getsizeof(value)
