"""Connections: `connect`, `listen`, and the `Connection` that both give."""

from daskfleet.comm.addresses import Address, parse_address
from daskfleet.comm.connection import CommClosedError, Connection, RemoteError
from daskfleet.comm.pool import Pool
from daskfleet.comm.tcp import Listener, connect, listen

__all__ = [
    "Address",
    "CommClosedError",
    "Connection",
    "Listener",
    "Pool",
    "RemoteError",
    "connect",
    "listen",
    "parse_address",
]
