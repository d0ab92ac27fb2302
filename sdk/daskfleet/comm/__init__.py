"""Connections: `connect`, `listen`, and the `Connection` that both give."""

from daskfleet.comm.addresses import Address, parse_address
from daskfleet.comm.connection import CommClosedError, Connection, RemoteError
from daskfleet.comm.opening import Listener, connect, listen
from daskfleet.comm.pool import Pool
from daskfleet.comm.reaching import reach

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
    "reach",
]
