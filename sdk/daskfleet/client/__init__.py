"""The client: `encode` turns calls and graphs into messages, `future` is what users hold, `client` talks.

Nothing is imported here: what waits for this package may hold a lock that its modules need (`daskfleet.importing`).
"""
