"""What is particular to TCP: options of its sockets, and binding them."""

from __future__ import annotations

import errno
import socket

from daskfleet import config


def tune(sock: socket.socket) -> None:
    """No waiting for more to send, and a peer that vanishes is noticed (``distributed.comm.timeouts.tcp``)."""
    limit = config.seconds("distributed.comm.timeouts.tcp") or 30.0
    idle, interval = max(1, int(limit / 3)), max(1, int(limit / 6))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", idle), ("TCP_KEEPINTVL", interval), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; for every interface it is one socket for IPv4 and IPv6, so that both have the same port."""
    if host in ("", "::") and socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        except OSError as error:
            if error.errno == errno.EADDRINUSE or host:
                raise
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=4096)
