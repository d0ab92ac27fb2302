"""`EnterableLoop`: what another thread may do in an event loop that waits."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from daskfleet import entering
from daskfleet.entering import EnterableLoop


@pytest.fixture
def loop() -> Iterator[EnterableLoop]:
    """One that a thread runs; nothing is due on it."""
    loop = EnterableLoop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    assert not thread.is_alive()
    loop.close()


def enter(loop: EnterableLoop, callback: Callable[[], Any]) -> None:
    """Enter `loop` as soon as it waits."""
    while not loop.enter(callback):
        time.sleep(0)  # lets its thread have the interpreter


def test_a_visitor_is_on_the_loop_in_its_own_thread(loop: EnterableLoop) -> None:
    seen: list[Any] = []
    enter(loop, lambda: seen.extend((asyncio.get_running_loop(), threading.get_ident())))
    assert seen == [loop, threading.get_ident()]
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_nobody_enters_a_loop_that_is_busy(loop: EnterableLoop) -> None:
    busy, free, called = threading.Event(), threading.Event(), []

    def work() -> None:
        busy.set()
        free.wait(30)

    loop.call_soon_threadsafe(work)
    assert busy.wait(30)
    assert not loop.enter(lambda: called.append(1))
    free.set()
    enter(loop, lambda: called.append(2))
    assert called == [2]


def test_nobody_enters_a_loop_that_does_not_run() -> None:
    loop = EnterableLoop()
    assert not loop.enter(lambda: None)
    loop.run_until_complete(asyncio.sleep(0.01))
    assert not loop.enter(lambda: None)
    loop.close()
    assert not loop.enter(lambda: None)


@pytest.mark.parametrize("how", ["call_soon", "call_later", "task", "future", "reader"])
def test_what_a_visitor_leaves_wakes_the_loop(loop: EnterableLoop, how: str) -> None:
    done = threading.Event()

    async def wait(future: asyncio.Future[None]) -> None:
        await future
        done.set()

    def visit() -> None:
        if how == "call_soon":
            loop.call_soon(done.set)
        elif how == "call_later":
            loop.call_later(0.01, done.set)
        elif how == "task":
            tasks.append(loop.create_task(asyncio.to_thread(done.set)))
        elif how == "future":
            future.set_result(None)
        else:
            ours, theirs = sockets
            loop.add_reader(ours, lambda: (ours.recv(1), done.set()))
            theirs.send(b"x")

    tasks: list[Any] = []
    sockets = socket.socketpair()
    future: asyncio.Future[None] = loop.create_future()
    tasks.append(asyncio.run_coroutine_threadsafe(wait(future), loop))
    enter(loop, visit)
    assert done.wait(30)
    enter(loop, lambda: loop.remove_reader(sockets[0]))
    for side in sockets:
        side.close()
    enter(loop, lambda: None if future.done() else future.set_result(None))
    tasks[0].result(30)


def test_a_visitor_does_not_overtake_what_it_has_handed_over(loop: EnterableLoop) -> None:
    order: list[int] = []
    for n in range(0, 400, 2):
        loop.call_soon_threadsafe(order.append, n)
        enter(loop, lambda n=n: order.append(n + 1))
    assert order == list(range(400))


def test_two_are_never_in_it(loop: EnterableLoop) -> None:
    inside, clashes, counts = [0], [], [0, 0]

    def step(who: int) -> None:
        inside[0] += 1
        if inside[0] != 1:
            clashes.append(who)
        counts[who] += 1
        for _ in range(20):  # time for another
            pass
        inside[0] -= 1

    def visit() -> None:
        for _ in range(1000):
            loop.enter(lambda: step(0))
            loop.call_soon_threadsafe(step, 1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        visitors = [threading.Thread(target=visit) for _ in range(3)]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join(60)
    finally:
        sys.setswitchinterval(interval)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(30)
    assert not clashes and counts[1] == 3000 and counts[0]


def test_what_a_visitor_raises_is_the_loops_to_report(loop: EnterableLoop) -> None:
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    enter(loop, lambda: 1 / 0)
    assert isinstance(reported[0]["exception"], ZeroDivisionError)
    enter(loop, lambda: reported.clear())
    assert not reported


def test_run_runs_and_debug_mode_keeps_out() -> None:
    async def main() -> bool:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, EnterableLoop)
        loop.set_debug(True)
        return await asyncio.to_thread(loop.enter, lambda: None)

    assert entering.run(main()) is False
