"""Refuses every connection to another machine, and remembers that it was tried."""

import ipaddress
import socket

attempts: list[str] = []  # a library may swallow the refusal; the test that caused it fails all the same


class NetworkForbidden(RuntimeError):
    """A test, or something it started, reached for another machine."""


def leaves_this_machine(address: object) -> bool:
    """Whether a socket address (host, port, ...) is another machine's; a Unix socket's path never is."""
    if not isinstance(address, tuple):
        return False
    host = address[0].decode() if isinstance(address[0], bytes) else address[0]
    if host in (None, "", "localhost", socket.gethostname()):
        return False
    try:
        number = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return not (number.is_loopback or number.is_unspecified)


def forbid_network() -> None:
    """Guard connecting, sending and name look-up, for the rest of this process."""
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, _guarded(getattr(socket.socket, name), lambda arguments: arguments[-1]))
    socket.getaddrinfo = _guarded(socket.getaddrinfo, lambda arguments: arguments)


def _guarded(function, address_of):
    def guarded(*arguments, **options):
        address = address_of(arguments)
        if leaves_this_machine(address):
            attempts.append(f"{function.__name__}{address}")
            raise NetworkForbidden(f"tests are offline, and this one called {attempts[-1]}")
        return function(*arguments, **options)

    return guarded
