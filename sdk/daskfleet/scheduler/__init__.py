"""The scheduler: `state` and `machine` decide (pure), one file a policy, and `server` does the I/O around them."""
