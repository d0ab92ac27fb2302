"""Addresses as users write them: ``tcp://10.0.0.1:8786``, ``tls://[::1]:8786``, ``node7:8786``."""

from __future__ import annotations

import socket
from dataclasses import dataclass

SCHEMES = ("tcp", "tls", "unix", "inproc")
#: What stands for every interface when it is listened on.
ANY = ("", "0.0.0.0", "::")
DEFAULT_SCHEDULER_PORT = 8786


@dataclass(frozen=True, slots=True)
class Address:
    """A place to connect to or to listen on."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_address(text: str, *, default_port: int | None = DEFAULT_SCHEDULER_PORT, scheme: str = "tcp") -> Address:
    """Read an address.

    Raises
    ------
    ValueError
        With a sentence that says what was expected instead.
    """
    given, sep, rest = text.strip().partition("://")
    if not sep:
        given, rest = scheme, given
    if given not in SCHEMES:
        raise ValueError(f"address {text!r}: unknown scheme {given!r}, expected {' or '.join(SCHEMES[:2])}")
    rest = rest.rstrip("/")
    if rest.startswith("["):
        host, _, port = rest[1:].partition("]")
        port = port.removeprefix(":")
    elif rest.count(":") > 1:
        host, port = rest, ""
    else:
        host, _, port = rest.partition(":")
    if not port and default_port is not None:
        port = str(default_port)
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"address {text!r}: expected something like tcp://10.0.0.1:8786")
    return Address(given, host, int(port))


def place(host: str) -> str:
    """One spelling of a host that is listened on or looked for: ``"*"`` for every interface."""
    return "*" if host in ANY else "127.0.0.1" if host == "localhost" else host


def own_ip(towards: str = "8.8.8.8") -> str:
    """The address by which other machines can reach this one. Nothing is sent to find out."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 80))
            ip: str = probe.getsockname()[0]
            return ip
        except OSError:
            return "127.0.0.1"


def interface_ip(name: str) -> str:
    """The IPv4 address of a network interface, else its IPv6 one.

    Raises
    ------
    ValueError
        If there is no such interface or it has no address; the message lists the interfaces that exist.
    """
    import psutil

    interfaces = psutil.net_if_addrs()
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry in interfaces.get(name, ()):
            if entry.family == family:
                return str(entry.address).partition("%")[0]
    raise ValueError(f"interface {name!r} has no IP address; this machine has {', '.join(sorted(interfaces))}")
