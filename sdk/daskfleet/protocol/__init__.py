"""What goes over a connection, as pure functions on bytes: no sockets, no event loop, no clock.

`frames` cuts a byte stream into batches of messages, `handshake` proves a token, `serialize` turns Python objects into
bytes and back, `spec` is the small language in which a task names its arguments.
"""
