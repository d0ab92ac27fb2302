"""Lost connections and lost schedulers: work goes on, futures stay valid."""

import asyncio
import contextlib
import socket
import threading

import dask
import pytest
from daskfleet import (
    CancelledError,
    Client,
    Event,
    LocalCluster,
    Lock,
    MultiLock,
    Queue,
    Scheduler,
    SchedulerPlugin,
    Security,
    Variable,
    Worker,
    WorkerPlugin,
    fire_and_forget,
    get_client,
    get_worker,
)
from daskfleet.client import link
from daskfleet.exceptions import DaskfleetError
from daskfleet.scheduler import peers

from tests.eventual import until


@contextlib.asynccontextmanager
async def cluster(n_workers=2):
    scheduler = await Scheduler(host="127.0.0.1", port=0, dashboard_address=None)
    workers = [await Worker(scheduler.address, nthreads=1, name=f"w{i}") for i in range(n_workers)]
    client = await Client(scheduler.address, asynchronous=True, set_as_default=False)
    try:
        yield scheduler, workers, client
    finally:
        await client.close()
        for worker in workers:
            await worker.close()
        await scheduler.close()


async def restarted(scheduler):
    """A new scheduler in the place of one that ended without a word."""
    port = int(scheduler.address.rpartition(":")[2])
    await scheduler.close()
    return await Scheduler(host="127.0.0.1", port=port, dashboard_address=None)


def cut(client):
    """End the client's connection as a broken network would."""
    client._scheduler.abort()


def big(i):
    return bytes(100_000) + bytes([i])


async def test_a_client_whose_connection_breaks_goes_on():
    async with cluster() as (scheduler, _, client):
        done = client.submit(big, 7)
        await done
        started, go_on = asyncio.Event(), asyncio.Event()

        async def wait_here():
            started.set()
            await go_on.wait()
            return "through"

        running = client.submit(wait_here, key="running")
        await until(lambda: client.status == "running" and scheduler.state.counts["processing"])
        cut(client)
        late = client.submit(sum, [1, 2], key="late")
        await until(lambda: client.status == "running")
        assert (await done)[-1] == 7
        assert await late == 3
        await client.run(lambda: None)
        await until(lambda: scheduler.state.keys["running"].attempt == 1)
        running.release()


async def test_nothing_sent_is_lost_when_the_connection_breaks_at_once():
    async with cluster() as (_, _, client):
        for round in range(5):
            futures = client.map(lambda x, round: (x, round), range(500), round=round)
            await asyncio.sleep(0.001 * round)
            await until(lambda: client.status == "running")  # it may have had all results before the last cut
            cut(client)
            assert await client.gather(futures) == [(x, round) for x in range(500)]


async def test_a_client_waits_for_a_scheduler_that_is_started_later():
    async with cluster(0) as (scheduler, _, _):
        address = scheduler.address
    with pytest.raises(TimeoutError, match=f"no scheduler at {address} within 0.3 s .*refused.*: is it running"):
        await Client(address, asynchronous=True, set_as_default=False, timeout=0.3)
    client = Client(address, asynchronous=True, set_as_default=False, timeout=180)
    waiting = asyncio.ensure_future(client.start())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.3)
    assert client.status == "connecting"
    async with await restarted(scheduler):
        await asyncio.wait_for(waiting, 60)
        assert client.status == "running"
        await client.close()


async def test_a_client_gives_up_an_attempt_that_nobody_answers_for_a_next_one():
    """As those are to the address of a Kubernetes Service between two schedulers."""
    async with cluster() as (scheduler, _, client):
        with contextlib.closing(socket.socket()) as swallowing, contextlib.closing(socket.socket()) as first:
            swallowing.bind(("127.0.0.1", 0))
            swallowing.listen(0)  # it is full with the first one, and the kernel answers no more
            first.connect(swallowing.getsockname())
            client._target = f"tcp://127.0.0.1:{swallowing.getsockname()[1]}"
            cut(client)
            await asyncio.sleep(0.1)
            assert client.status == "reconnecting"
            client._target = scheduler.address
            await until(lambda: client.status == "running")
        assert await client.submit(sum, [1, 2]) == 3


async def test_a_client_that_does_not_come_back_is_forgotten(monkeypatch):
    monkeypatch.setattr("daskfleet.scheduler.peers.CLIENT_GRACE", 0.05)
    monkeypatch.setattr(link, "RECONNECT", 0.0)
    async with cluster() as (scheduler, _, client):
        future = client.submit(sum, [1, 2])
        await future
        client._target = "tcp://127.0.0.1:1"
        cut(client)
        await until(lambda: not scheduler.state.tasks)
        assert not scheduler.state.clients
        await until(lambda: client.status == "closed")


async def test_a_restarted_scheduler_gets_back_workers_data_and_clients():
    async with cluster() as (scheduler, workers, client):
        finished = client.map(big, range(10))
        await client.gather(finished)
        inputs = client.map(big, range(10, 20))
        new = await restarted(scheduler)
        try:
            dependent = client.map(len, finished + inputs)
            assert await client.gather(dependent) == [100_001] * 20
            assert [value[-1] for value in await client.gather(finished)] == list(range(10))
            assert {ts.attempt for ts in new.state.tasks.values() if ts.key in {f.key for f in finished}} == {0}
            assert set(new.state.workers) == {worker.address for worker in workers}
        finally:
            await new.close()


async def test_published_data_outlives_the_scheduler_and_who_published_it(monkeypatch):
    monkeypatch.setattr("daskfleet.scheduler.peers.TAKE_OVER", 0.5)
    async with cluster() as (scheduler, _, client):
        kept = client.map(big, range(4))
        await client.gather(kept)
        await client.publish_dataset(kept=kept, gone=kept[:1], small=client.submit(sum, [1, 2]))
        await client.unpublish_dataset("gone")
        async with Worker(scheduler.address, nthreads=1, name="late") as late:
            await client.close()
            new = await restarted(scheduler)
            try:
                await until(lambda: len(new.state.workers) == 3 and not new.state.adopting)
                async with Client(new.address, asynchronous=True, set_as_default=False) as other:
                    assert set(await other.list_datasets()) == {"kept", "small"}
                    found = await other.get_dataset("kept")
                    assert [value[-1] for value in await other.gather(found)] == [0, 1, 2, 3]
                    assert await (await other.get_dataset("small")) == 3
                    assert {name for _, name in late._remembered} == {"kept", "small"}
            finally:
                await new.close()


async def test_a_dataset_is_waited_for_while_its_workers_come_over():
    async with cluster(n_workers=1) as (scheduler, _, client):
        future = client.submit(big, 7)
        await client.publish_dataset(kept=future)
        await future
        del future
        new = await restarted(scheduler)
        try:
            assert (await client.gather(await client.get_dataset("kept")))[-1] == 7
        finally:
            await new.close()


async def test_what_was_left_by_name_outlives_the_scheduler():
    async with cluster(4) as (scheduler, workers, client):
        future = client.submit(big, 7, key="kept")
        await future
        names = {"client": client}
        await Variable("data", **names).set({"a": 1})
        await Variable("future", **names).set(future)
        await Variable("gone", **names).set(1)
        await Variable("gone", **names).delete()
        for n in range(4):
            await Queue("q", maxsize=4, **names).put(n)
        assert await Queue("q", **names).get() == 0
        await Event("set", **names).set()
        await Event("cleared", **names).set()
        await Event("cleared", **names).clear()
        await client.set_metadata(["a", "b"], 1)
        await client.set_metadata("a", {"c": 2})
        await client.set_metadata(["a", "d"], 3)
        await workers[0].close()  # another has all that this one knew
        del future
        heard = asyncio.Queue()

        async def hear(event):
            await heard.put(event[1])

        client.subscribe_topic("told", hear)
        waiting = asyncio.create_task(Queue("later", **names)._get(None, False))
        flag = asyncio.create_task(Event("later", **names).wait())
        unset = asyncio.create_task(Variable("later", **names).get())
        await asyncio.sleep(0.05)
        new = await restarted(scheduler)
        try:
            async with asyncio.timeout(60):
                assert await Variable("data", **names).get() == {"a": 1}
                assert (await (await Variable("future", **names).get()))[-1] == 7
                with pytest.raises(TimeoutError):
                    await Variable("gone", **names).get(timeout=0)
                queue = Queue("q", **names)
                assert await queue.qsize() == 3
                await queue.put(4)
                with pytest.raises(TimeoutError, match="full"):
                    await queue.put(5, timeout=0)
                assert await queue.get(batch=True) == [1, 2, 3, 4]
                assert await Event("set", **names).is_set() and not await Event("cleared", **names).is_set()
                assert await client.get_metadata("a") == {"c": 2, "d": 3}
                await Queue("later", **names).put("came")
                await Event("later", **names).set()
                await Variable("later", **names).set("known")
                assert await asyncio.gather(waiting, flag, unset) == ["came", True, "known"]
                await client.log_event("told", "heard")
                assert await heard.get() == "heard"
        finally:
            await new.close()


async def test_who_holds_a_lock_holds_it_after_the_scheduler_too(monkeypatch):
    monkeypatch.setattr(peers, "CLIENT_GRACE", 0.5)
    async with cluster(1) as (scheduler, _, client), Client(scheduler.address, asynchronous=True) as other:
        mine, both = Lock("one", client=client), MultiLock(["a", "b"], client=client)
        theirs, second = Lock("gone", client=other), Lock("one", client=other)
        await mine.acquire()
        await both.acquire()
        await theirs.acquire()
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(0.05)
        other._target = "tcp://127.0.0.1:1"  # it never comes back
        new = await restarted(scheduler)
        third = Lock("one", client=client)
        try:
            async with asyncio.timeout(60):
                assert not await third.acquire(timeout=0.01)
                assert not await MultiLock(["b", "c"], client=client).acquire(timeout=0.01)
                async with Lock("gone", client=client):  # who held it is given up after a while
                    pass
                await mine.release()
                await both.release()
                async with third, MultiLock(["b", "c"], client=client):
                    pass
                other._target = new.address
                assert await waiting and await Lock("one", client=client).locked()
                await second.release()
                assert not new.extensions["semaphores"]._all and not new.extensions["multilocks"]._held
                assert not new.extensions["backup"]._rows
        finally:
            await new.close()


class Marks(WorkerPlugin):
    pass


class Told(SchedulerPlugin):
    pass


async def test_plugins_outlive_the_scheduler():
    async with cluster(1) as (scheduler, (worker,), client):
        await client.register_plugin(Marks(), name="marks")
        await client.register_plugin(Told(), name="told")
        await client.register_plugin(Told(), name="gone")
        await client.unregister_scheduler_plugin("gone")
        before = worker.plugins.own["marks"]
        new = await restarted(scheduler)
        try:
            async with Worker(new.address, nthreads=1, name="late") as late:
                await until(lambda: len(new.state.workers) == 2 and "marks" in late.plugins.own)
                await until(lambda: set(new.plugins.own) == {"told"})
                assert await client.submit(sum, [1, 2]) == 3
                assert worker.plugins.own["marks"] is before
        finally:
            await new.close()


async def test_what_the_first_task_of_a_worker_logs_is_not_lost():
    async with cluster(n_workers=0) as (scheduler, _, client):

        def log(n):
            get_worker().log_event("ran", n)
            return n

        for n in range(10):
            future = client.submit(log, n, pure=False)
            async with Worker(scheduler.address, nthreads=1, name=f"w{n}"):
                assert await future == n
        assert [n for _, n in await client.get_events("ran")] == list(range(10))


async def test_work_that_was_running_is_done_after_the_restart():
    async with cluster() as (scheduler, _, client):
        total = client.submit(sum, client.map(lambda x: x + 1, range(200)))
        new = await restarted(scheduler)
        try:
            assert await total == sum(range(1, 201))
        finally:
            await new.close()


DONE, GO_ON = [], threading.Event()


def waits(n):
    GO_ON.wait(20)
    DONE.append(n)


async def test_what_is_fired_and_forgotten_is_done_after_the_restart():
    async with cluster(1) as (scheduler, _, client):
        futures = client.map(waits, range(2), pure=False)
        fire_and_forget(futures)
        fire_and_forget(futures)
        del futures
        await until(lambda: scheduler.state.counts["processing"] == 1)
        cut(client)
        await until(lambda: client.status == "running")
        new = await restarted(scheduler)
        try:
            await until(lambda: new.state.counts["processing"] == 1)
            GO_ON.set()
            await until(lambda: {0, 1} <= set(DONE) and not new.state.tasks)
        finally:
            await new.close()


async def test_what_nobody_wants_after_a_restart_goes(monkeypatch):
    monkeypatch.setattr("daskfleet.scheduler.peers.TAKE_OVER", 0.3)
    async with cluster() as (scheduler, workers, client):
        future = client.submit(big, 1)
        await future
        await client.close()
        new = await restarted(scheduler)
        try:
            await until(lambda: len(new.state.workers) == 2)
            await until(lambda: not new.state.tasks and not any(worker.machine.data for worker in workers))
        finally:
            await new.close()


async def test_data_that_did_not_come_back_is_computed_again_or_lost(monkeypatch):
    monkeypatch.setattr("daskfleet.scheduler.peers.TAKE_OVER", 0.3)
    async with cluster(n_workers=1) as (scheduler, workers, client):
        scattered = await client.scatter(bytes(100_000))
        small = client.submit(sum, [1, 2])
        await small
        await workers[0].close()
        new = await restarted(scheduler)
        worker = await Worker(new.address, nthreads=1)
        try:
            assert await small == 3
            with pytest.raises(Exception, match="gone"):
                await client.submit(len, scattered)
        finally:
            await worker.close()
            await new.close()


async def test_a_cluster_that_ends_on_purpose_is_not_looked_for():
    async with cluster() as (scheduler, _, client):
        never = client.submit(lambda x: x, client.submit(asyncio.sleep, 1000), key="never")
        await scheduler.close("the end", close_workers=True)
        with pytest.raises(CancelledError, match="the end"):
            await never
        assert client.status == "closed"


async def test_a_worker_that_joins_a_cluster_as_that_ends_has_ended_too():
    async with cluster(0) as (scheduler, _, _):
        scheduler.on_joined.append(lambda worker: scheduler._connections[worker].send(("close", "the end")))
        worker = await Worker(scheduler.address, nthreads=1)
        await asyncio.wait_for(worker.finished(), 60)
        assert worker.status == "closed"


async def test_a_client_that_is_back_before_its_old_connection_was_seen_to_end_keeps_its_futures(monkeypatch):
    """A proxy, or the API server that forwards a port, may keep the far side of a connection open for a while."""
    monkeypatch.setattr(peers, "CLIENT_GRACE", 0.2)
    async with LocalCluster(n_workers=1, processes=False, dashboard_address=None, asynchronous=True) as cluster:
        host, _, port = cluster.scheduler_address.removeprefix("tcp://").partition(":")
        near, far = [], []

        async def pump(source, sink):
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)

        async def serve(reader, writer):
            there, away = await asyncio.open_connection(host, int(port))
            near.append(writer)
            far.append(away)
            await asyncio.gather(pump(reader, away), pump(there, writer))

        proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = f"tcp://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        async with Client(address, security=cluster.security, asynchronous=True) as client:
            kept = await client.scatter({"a": 1}, direct=False)
            first = far[0]
            near[0].transport.abort()
            while len(near) < 2:
                await asyncio.sleep(0.01)
            assert await asyncio.wait_for(client.submit(sum, [1, 2]), 60) == 3
            first.close()
            await asyncio.sleep(0.5)  # longer than a lost client's futures are kept
            assert await asyncio.wait_for(client.submit(sum, [3, 4]), 60) == 7
            assert await asyncio.wait_for(kept["a"], 60) == 1
        proxy.close()


@contextlib.asynccontextmanager
async def gate(address):
    """An address that leads to `address`, and a list of events: each holds up a connection until it is set."""
    scheme, _, place = address.partition("://")
    host, _, port = place.partition(":")
    swallowed_until, tasks = [], set()

    async def pump(source, sink):
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
            sink.close()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        if swallowed_until:
            await swallowed_until.pop().wait()
        there, away = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, away), pump(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", swallowed_until
    finally:
        server.close()
        for task in tasks:
            task.cancel()


async def test_tasks_get_a_client_when_what_lies_between_swallows_a_connection():
    """A Service's rules may change after the worker has come through."""
    security = Security.temporary()
    async with (
        Scheduler(host="127.0.0.1", port=0, dashboard_address=None, security=security) as scheduler,
        gate(scheduler.address) as (address, swallowed_until),
        Worker(address, nthreads=1, security=security),
        Client(scheduler.address, security=security, asynchronous=True, set_as_default=False) as client,
    ):
        swallowed_until.append(asyncio.Event())  # the first connection of the tasks' client, for ever
        with dask.config.set({"distributed.comm.timeouts.connect": "5s"}):
            future = client.submit(lambda: get_client().submit(sum, [1, 2]).result())
            assert await asyncio.wait_for(future, 90) == 3


async def test_tasks_get_another_client_when_theirs_never_reached_the_scheduler():
    async with (
        cluster(n_workers=0) as (scheduler, _, client),
        gate(scheduler.address) as (address, swallowed_until),
        Worker(address, nthreads=1) as worker,
    ):
        with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
            swallowed_until.extend([asyncio.Event()] * 100)
            failing = client.submit(lambda: get_client().submit(sum, [1, 2]).result())
            with pytest.raises(Exception, match="did not answer"):
                await asyncio.wait_for(failing, 90)
            swallowed_until.clear()
            future = client.submit(lambda: get_client().submit(sum, [1, 2]).result(), pure=False)
            assert await asyncio.wait_for(future, 90) == 3
        assert worker.status == "running"


async def test_a_client_that_is_closed_before_it_has_come_through_is_not_with_the_scheduler_later(monkeypatch):
    monkeypatch.setattr(peers, "CLIENT_GRACE", 0.1)
    async with cluster(n_workers=0) as (scheduler, _, client), gate(scheduler.address) as (address, swallowed_until):
        late, opened = Client(address, asynchronous=True, set_as_default=False), asyncio.Event()
        swallowed_until.append(opened)
        starting = asyncio.create_task(late.start())
        await until(lambda: not swallowed_until)
        await late.close()
        opened.set()
        with pytest.raises(DaskfleetError, match="the client is closed"):
            await asyncio.wait_for(starting, 60)
        await until(lambda: late.id not in scheduler.state.clients)
        assert client.id in scheduler.state.clients and late.status == "closed"


async def test_data_that_a_client_was_about_to_bring_is_not_waited_for_when_it_is_gone():
    async with cluster() as (scheduler, _, client):
        await client._call("scatter_begin", [(1, "mine")], None, False)
        assert "mine" in scheduler.state.keys and scheduler.state.expected
        await client.close()
        await until(lambda: not scheduler.state.keys and not scheduler.state.expected)


async def test_a_worker_that_retires_waits_for_the_data_that_a_client_is_sending_it():
    async with cluster() as (scheduler, workers, client):
        send, go = client._ask_worker, asyncio.Event()

        async def send_late(address, *args):
            await go.wait()
            return await send(address, *args)

        client._ask_worker = send_late
        scattering = asyncio.create_task(client._scatter([[n] for n in range(4)], None, False, True, 20))
        await until(lambda: all(worker.expecting for worker in scheduler.state.workers.values()))
        victim = workers[0].address
        retiring = asyncio.create_task(scheduler.retire_workers([scheduler.state.workers[victim]], close_workers=True))
        await asyncio.sleep(0)
        await client.run(lambda: None, workers=[workers[1].address])
        assert not retiring.done()
        go.set()
        futures = await scattering
        assert set(await retiring) == {victim}
        await until(lambda: victim not in scheduler.state.workers)
        assert await client.gather(futures) == [[n] for n in range(4)]
