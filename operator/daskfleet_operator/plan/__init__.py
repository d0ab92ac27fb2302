"""What to do about one Dask cluster: pure functions of what is desired, what is observed and what time it is.

Nothing here does I/O, reads a clock or draws a random number. Each policy is a module with a test of its own;
`plan.plan` is the list of them.
"""
