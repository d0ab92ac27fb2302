"""The worker: `machine` decides (pure), `executor` runs tasks in threads, `server` does the I/O, `nanny` keeps it alive."""
