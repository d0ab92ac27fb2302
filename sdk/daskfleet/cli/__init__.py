"""The commands. Each module is one command; what they share is in `common`."""
