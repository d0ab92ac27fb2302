"""How fast can client, scheduler, two workers and client again be in Python, with nothing but the messages?

Four processes, msgpack batches flushed when the loop is idle, opaque pickled tasks, results inside the done message. No
dependencies, priorities, failures or memory: a lower bound of the cost, so an upper bound for the real runtime.
"""

import asyncio
import multiprocessing
import pickle
import queue
import struct
import sys
import threading
import time
from collections import deque

import msgpack


class Batches(asyncio.Protocol):
    """Length-prefixed msgpack arrays of messages; whatever is queued in one loop pass leaves as one frame."""

    def __init__(self, on_message):
        self.on_message, self.received, self.queued = on_message, bytearray(), []

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data
        start = 0
        while len(self.received) - start >= 4:
            (size,) = struct.unpack_from("<I", self.received, start)
            if len(self.received) - start - 4 < size:
                break
            with memoryview(self.received) as view:
                messages = msgpack.unpackb(view[start + 4 : start + 4 + size], use_list=False)
            for message in messages:
                self.on_message(self, message)
            start += 4 + size
        del self.received[:start]

    def send(self, message):
        if not self.queued:
            asyncio.get_running_loop().call_soon(self.flush)
        self.queued.append(message)

    def flush(self):
        frame, self.queued = msgpack.packb(self.queued), []
        self.transport.write(struct.pack("<I", len(frame)) + frame)


def scheduler(port, depth=64):
    ready, workers, owner, running_on = deque(), {}, {}, {}

    def assign():
        while ready:
            worker = min(workers, key=workers.get)
            if workers[worker] >= depth:
                return
            key, blob = ready.popleft()
            running_on[key] = worker
            workers[worker] += 1
            worker.send(("run", key, blob))

    def on_message(peer, message):
        match message[0]:
            case "task":
                owner[message[1]] = peer
                ready.append(message[1:])
            case "done":
                workers[running_on.pop(message[1])] -= 1
                owner.pop(message[1]).send(message)
            case "worker":
                workers[peer] = 0
        assign()

    async def serve():
        await asyncio.get_running_loop().create_server(lambda: Batches(on_message), "127.0.0.1", port)
        await asyncio.Event().wait()

    asyncio.run(serve())


def worker(port):
    tasks, results = queue.SimpleQueue(), deque()

    async def serve():
        loop = asyncio.get_running_loop()

        def report():
            while results:
                peer.send(results.popleft())

        def execute():
            while True:
                _, key, blob = tasks.get()
                function, args = pickle.loads(blob)
                results.append(("done", key, pickle.dumps(function(*args))))
                if len(results) == 1:
                    loop.call_soon_threadsafe(report)

        _, peer = await loop.create_connection(
            lambda: Batches(lambda _, message: tasks.put(message)), "127.0.0.1", port
        )
        peer.send(("worker",))
        threading.Thread(target=execute, daemon=True).start()
        await asyncio.Event().wait()

    asyncio.run(serve())


def identity(x):
    return x


class Client:
    def __init__(self, port):
        self.results, self.loop = {}, asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        connect = self.loop.create_connection(lambda: Batches(self.on_message), "127.0.0.1", port)

        async def connected():
            return (await connect)[1]

        self.peer = asyncio.run_coroutine_threadsafe(connected(), self.loop).result()
        self.arrived, self.wanted = threading.Event(), 0

    def on_message(self, _, message):
        self.results[message[1]] = message[2]
        if len(self.results) == self.wanted:
            self.arrived.set()

    def map(self, values):
        self.results.clear()
        self.arrived.clear()
        self.wanted = len(values)
        messages = [("task", key, pickle.dumps((identity, (value,)))) for key, value in enumerate(values)]
        self.loop.call_soon_threadsafe(lambda: [self.peer.send(message) for message in messages])
        self.arrived.wait()
        return [pickle.loads(self.results[key]) for key in range(len(values))]


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 45671
    processes = [
        multiprocessing.Process(target=target, args=(port,), daemon=True) for target in (scheduler, worker, worker)
    ]
    for process in processes:
        process.start()
        time.sleep(0.5)
    client = Client(port)
    for n in (100, 1_000, 10_000, 50_000):
        values = list(range(n))
        start = time.perf_counter()
        assert client.map(values) == values
        print(f"{n} tasks: {n / (time.perf_counter() - start):,.0f} a second")
    medians = []
    for _ in range(8):  # as the engines' (see workloads.py)
        times = []
        for i in range(200):
            start = time.perf_counter()
            client.map([i])
            times.append(time.perf_counter() - start)
        medians.append(sorted(times)[100])
        time.sleep(0.5)
    print(f"one task and its result: {min(medians) * 1e3:.2f} ms")
