"""The worker: `machine` decides (pure), `executor` runs tasks, `server` does the I/O, `nanny` keeps it alive."""
