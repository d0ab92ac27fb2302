"""What is particular to TCP: options of its sockets, and binding them."""

from __future__ import annotations

import errno
import socket


def tune(sock: socket.socket) -> None:
    """No waiting for more to send, and a peer that vanishes is noticed within half a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)


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
