"""TCP sockets as every link wants them: names resolved, options set, failures told so that a user can act."""

import asyncio
import errno
import ipaddress
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from loom.errors import ConnectError, LoomError

_NOBODY: Final = asyncio.BufferedProtocol()
BACKLOG: Final = 4096  # the queue of the kernel: who floods the port must not fill it for those who come to work
# A host that vanished without a word is noticed after some 25 s of silence on a link.
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))

_CREDENTIALS: Final = struct.Struct("3i")  # of a peer: process, user, group

Address = tuple[int, Any]
"""A socket family and an address of it."""


async def resolve(host: str, port: int) -> list[Address]:
    """Every address of the name, IPv4 first. Literal addresses cost no look-up. Raises ConnectError."""
    kind = socket.SOCK_STREAM
    try:
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError, OverflowError):
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=kind)
        except (OSError, UnicodeError, OverflowError) as error:
            hint = "; the port is an argument of its own, not part of the name" if host.count(":") == 1 else ""
            raise ConnectError(f"{host}:{port}: the name cannot be resolved ({error}){hint}") from error
    addresses = [(family, address) for family, _, _, _, address in found]
    return sorted(addresses, key=lambda one: one[0] != socket.AF_INET)


def tcp_socket(family: int) -> socket.socket:
    """Non-blocking, without Nagle's delay, with keep-alive; what a listening one accepts inherits these."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


async def listening_socket(host: str, port: int, port_option: str) -> socket.socket:
    """Bound to the first address of `host` ("" is every interface) and listening. Raises LoomError."""
    family, address = (await resolve(host or "0.0.0.0", port))[0]
    sock = tcp_socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restarted server gets its port back
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise LoomError(_listen_story(host, port, port_option, error)) from error
    return sock


def _listen_story(host: str, port: int, option: str, error: OSError) -> str:
    where = address_text((host, port))
    choose = f"choose another one with {option} (0: any free)"
    match error.errno:
        case errno.EADDRINUSE:
            return f"cannot listen on {where}: another program uses the port; {choose}"
        case errno.EACCES:
            return f"cannot listen on {where}: ports this low are for root; {choose}"
        case errno.EADDRNOTAVAIL:
            return f"cannot listen on {where}: {host} is no address of this machine"
        case _:
            return f"cannot listen on {where}: {error.strerror}"


def is_loopback(host: str) -> bool:
    """Whether a literal address (or "localhost") is of this machine alone."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def this_machine() -> str:
    """Of all machines and network namespaces, the one that this thread is in: between processes that say the same there
    is one kernel, which has no two connections with the same addresses.
    """
    found = []
    with suppress(OSError):  # no /proc: then addresses alone have to do
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/thread-self/ns/net"))
    return " ".join(found)


def is_own_user(sock: socket.socket) -> bool:
    """Whether the other end of a unix socket is a process of this user."""
    _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.geteuid())


def forget_protocol(transport: asyncio.BaseTransport) -> None:
    """Of a connection that is lost. TLS keeps methods of its protocol, which has the transport: a circle, and a server
    collects none.
    """
    with suppress(AttributeError):  # asyncio's own, when it was closed from both sides
        if transport.get_extra_info("sslcontext") is not None:
            transport.set_protocol(_NOBODY)


def address_host(address: Any) -> str:
    """The host of a socket address; what is none, of a peer that has left, gives no address of this machine.

    A link-local IPv6 address comes with its interface (fe80::1%2): it is of that one only.
    """
    if not isinstance(address, tuple):
        return "0.0.0.0"
    host = str(address[0]).removeprefix("::ffff:")  # of an IPv4 address, as a socket for both kinds says it
    scope = address[3] if len(address) == 4 else 0
    return f"{host}%{scope}" if scope and "%" not in host else host


def address_text(address: Any) -> str:
    """`host:port` of a socket address, for logs."""
    if not isinstance(address, tuple):
        return "somebody who has left already"
    host, port = address_host(address), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
