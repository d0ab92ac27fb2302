"""The messages between client, scheduler and worker, all in one place.

Every message is an array whose first item names it. What happens often comes in batches of rows, one message a batch.
``id`` is the scheduler's integer for a task, unique for its life, never used twice; ``cid`` is the integer by which one
client knows one future. Values and pickles are `Serialized`.

client → scheduler
    ("tasks", graph, last, priority, functions, prefixes, rows)
                            rows: (cid or 0, key, function, payload, dependencies, prefix, options or None), in
                            topological order, the most urgent first; function and prefix index the two lists; a
                            dependency is a position in the graph (>= 0) or, for a future, -cid; `graph` groups
                            messages, `last` closes it
    ("want", rows)          rows: (cid, key)
    ("release", cids)
    ("know", rows)          after a reconnection; rows: (cid, key, nbytes, type name, value)
    ("goodbye",)            before it closes the connection on purpose
    ("fire_and_forget", cids)
scheduler → client
    ("finished", rows)      rows: (cid, nbytes, type name, value or None)
    ("erred", rows)         rows: (cid, exception, traceback, key that failed)
    ("lost", rows)          rows: (cid, reason): cancelled, or data that cannot be computed again
    ("pending", cids)       a finished result was lost and is being computed again
    ("close", reason)       the cluster ends
scheduler → worker
    ("joined", scheduler, ids)  first of all: the ids of the data that the worker said it holds, -1 for what to drop
    ("run", rows)           rows: (id, attempt, key, function, payload, dependencies, priority, options or None)
                            a dependency: id (you hold it) | (id, value) | (id, nbytes, addresses)
    ("function", id, blob)  before the first task that uses it
    ("forget", function ids)
    ("free", ids)           drop the data, or do not run, or throw the result away
    ("fetch", rows)         rows: (id, key, nbytes, addresses): hold a copy of this
    ("stop", ids)           end these though they run
    ("yield", ids)          give these back unless they have started
    ("remember_all", rows or None)  what to keep for the next scheduler, in place of what was kept; None for not to
    ("remember", rows)      rows: (key, value or None): changes of that
    ("pace", factor)        by how much the time between heartbeats is longer than usual
worker → scheduler
    ("done", rows)          rows: (id, attempt, nbytes, seconds, type name, value or None)
    ("erred", rows)         rows: (id, attempt, exception, traceback, text, seconds)
    ("missing", rows)       rows: (id, attempt, ((id, address), …)): copies of inputs that could not be had
    ("holds", ids)          a copy has arrived
    ("dropped", ids)        a copy is gone or could not be had
    ("yielded", rows)       rows: (id, attempt)
    ("seceded", rows)       rows: (id, attempt): it waits for other tasks and takes no thread
    ("rejoined", rows)      rows: (id, attempt): it takes one again
    ("rescheduled", rows)   rows: (id, attempt): it asks to be run again
    ("heartbeat", metrics)
    ("status", name)
"""

from __future__ import annotations

#: A task's name, as dask has it: a string, or a tuple that starts with one.
Key = str | int | float | tuple["Key", ...]

#: Seconds between heartbeats of a worker that works, and of one that rests, in a small cluster.
HEARTBEAT, RESTING = 0.5, 2.0
#: Bytes up to which a result travels inside the message that reports it, and stays on the scheduler as well.
INLINE = 8 * 1024
