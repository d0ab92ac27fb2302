"""Shuffles of dataframes and arrays between workers, "p2p" to dask: through files, and as fast as the disk cache.

Each input partition becomes a task that sorts its rows by where they belong and leaves them on its worker as a file of
pieces (`daskfleet.worker.pieces`); one task, the barrier, gathers where these files are; and each output partition is a
task that reads its piece of every file. distributed pushes rows to the workers that will need them while inputs are
still being read. Here they are pulled, by the tasks that need them, and that is what makes the rest simple:

* Memory holds what the running tasks work on and nothing else: there are no buffers between the workers that a slow
  disk or peer could fill, so none that has to push back.
* An output partition belongs to no worker. It runs where there is room, also on workers that came late.
* There is no state of a shuffle besides tasks and results. The scheduler knows two things more about those, for any
  task: a result can be *pinned*, that is, lost with its worker; and it can *borrow* from its inputs, that is, keep them
  and be lost with any of them. So a worker's death takes its files and the barrier with them. The files are made anew,
  or found by the worker that a nanny starts in its place; then the barrier; then what has not been read yet is read by
  the new barrier's list. Nobody can read a file that is not on it, since names are never used twice. Cancelled shuffles
  leave no files, for a result that nobody needs is freed, and any number of shuffles may run at a time.
* On one host the files of other workers are read directly: what is "sent" then is a page of the system's cache.

The price is that nothing travels before the last input has been read, and that a file is read in as many places as it
has pieces; in return every byte is written once and read once. Small data goes the same way: N partitions into M take
N + M + 1 tasks where dask's ``"tasks"`` take N x M more, and what is written gets no further than the system's cache.
What runs again is taken to give the same again, as everywhere in dask.
"""
