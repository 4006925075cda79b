"""Which addresses this machine has, by network interface. Linux only; nothing but files and calls of the kernel."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from loom.errors import LoomError

_GET_ADDRESS: Final = 0x8915  # SIOCGIFADDR
_REQUEST: Final = struct.Struct("16s16s8x")  # ifreq: the interface's name, a socket address
_IPV6_FILE: Final = Path("/proc/net/if_inet6")
_ROUTES_FILE: Final = Path("/proc/net/route")
_DEFAULT: Final = "00000000"  # destination, and mask, of the route to everywhere else


def interfaces() -> dict[str, list[str]]:
    """The addresses of every interface that has any, the one to be preferred first: IPv4, IPv6, link-local IPv6."""
    names = [name for _, name in socket.if_nameindex()]
    six = _ipv6_addresses()
    found = {name: [*_ipv4_address(name), *sorted(six.get(name, []), key=_is_link_local)] for name in names}
    return {name: addresses for name, addresses in found.items() if addresses}


def interface_address(name: str) -> str:
    """Raises LoomError, which lists the interfaces there are, where that one has no address."""
    there = interfaces()
    if name not in there:
        names = [known for _, known in socket.if_nameindex()]
        trouble = f"the interface {name} has no address" if name in names else f"there is no interface {name}"
        listed = "; ".join(f"{known} ({', '.join(addresses)})" for known, addresses in there.items())
        raise LoomError(f"{trouble}; this machine has {listed or 'none with an address'}")
    return there[name][0]


def usual_address() -> str:
    """The address that others most likely know this machine by: of the interface with the default route, else of the
    first one beyond loopback, else loopback.
    """
    there = interfaces()
    first = [name for name in [*_default_interfaces(), *there] if name in there and name != "lo"]
    return there[first[0]][0] if first else "127.0.0.1"


def is_here(address: str) -> bool:
    """Whether this machine has that literal address, so that one can listen there."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            address, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        with socket.socket(family, kind) as probe:
            probe.bind(place)
    except (OSError, UnicodeError):
        return False
    return True


def _ipv4_address(name: str) -> list[str]:
    request = _REQUEST.pack(name.encode(), b"")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):  # it has none
        _, address = _REQUEST.unpack(fcntl.ioctl(sock, _GET_ADDRESS, request))
        return [socket.inet_ntoa(address[4:8])]
    return []


def _ipv6_addresses() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with suppress(OSError):  # there is no IPv6
        for line in _IPV6_FILE.read_text().splitlines():
            digits, *_, name = line.split()
            address = ipaddress.IPv6Address(bytes.fromhex(digits))
            found.setdefault(name, []).append(f"{address}%{name}" if address.is_link_local else str(address))
    return found


def _is_link_local(address: str) -> bool:
    return "%" in address


def _default_interfaces() -> list[str]:
    """Those with a default route, the best one first."""
    found: list[tuple[int, str]] = []
    with suppress(OSError):
        for line in _ROUTES_FILE.read_text().splitlines()[1:]:
            name, destination, _, _, _, _, metric, mask, *_ = line.split()
            if destination == mask == _DEFAULT:
                found.append((int(metric), name))
    return [name for _, name in sorted(found)]
