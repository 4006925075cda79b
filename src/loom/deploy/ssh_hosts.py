"""Hosts as people name them to ssh, how ssh is called for them, and at which address they see this machine."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from loom.errors import DeployError, LoomError
from loom.net.interfaces import usual_address
from loom.net.sockets import is_loopback

MAX_HOSTS: Final = 10_000
_BRACKETED: Final = re.compile(r"((?:[^@\s]+@)?)\[([0-9a-fA-F:.%\w]+)\](?::(\d+))?", re.ASCII)
_ORDINARY: Final = re.compile(r"((?:[^@\s]+@)?[^@:\s]+)(?::(\d+))?")
_NOT_IN_NAMES: Final = re.compile(r"[^\w.:%-]+", re.ASCII)
_ASK_S: Final = 20.0  # `ssh -G` reads files only, on a home that may be far away

# A dead host is noticed after some 15 s without a word, on our side by this and on the other by the worker.
_OPTIONS: Final = (
    "BatchMode=yes",  # nobody is there to type a password
    "ControlMaster=no",  # a connection shared with others would end when they do
    "ControlPath=none",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ConnectTimeout=15",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "LogLevel=INFO",  # it tells the port of a tunnel
)


class Host(NamedTuple):
    """`destination` is ssh's; `port` is 0 where ssh is to know it."""

    text: str
    destination: str
    port: int = 0

    @property
    def label(self) -> str:
        """For names of workers."""
        return _NOT_IN_NAMES.sub("_", self.destination.rpartition("@")[2])

    def words(self) -> list[str]:
        """The last ones of a call of ssh, before the command."""
        port = ["-p", str(self.port)] if self.port else []
        return [*port, "--", self.destination]


def parse_host(text: str) -> Host:
    """From "host", "user@host:port", "[2001:db8::1]:port", or a name of ~/.ssh/config. Raises LoomError."""
    if not isinstance(text, str) or not text or not text.isprintable() or text.startswith("-"):
        raise LoomError(f"{text!r:.200} is no host: write such as 'user@host', 'host:2222', or a name of ~/.ssh/config")
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed is not None:
        return Host(text, bracketed[1] + bracketed[2], _port(text, bracketed[3]))
    ordinary = _ORDINARY.fullmatch(text)
    if ordinary is not None:
        return Host(text, ordinary[1], _port(text, ordinary[2]))
    if text.count(":") > 1 and not any(character.isspace() or character in "[]" for character in text):
        return Host(text, text)  # an IPv6 address without a port
    raise LoomError(f"{text!r:.200} is no host: write such as 'user@host', 'host:2222', or a name of ~/.ssh/config")


def _port(text: str, digits: str | None) -> int:
    if digits is None:
        return 0
    if not 0 < int(digits) <= 65535:
        raise LoomError(f"{text!r:.200}: a port is a number from 1 to 65535")
    return int(digits)


def parse_hosts(texts: Iterable[str]) -> list[Host]:
    """LoomError where there is none, or one is there twice."""
    if isinstance(texts, str):
        raise LoomError(f"hosts={texts!r:.200}: write a list, such as [{texts!r:.100}]")
    hosts = [parse_host(text) for text in texts]
    if not 0 < len(hosts) <= MAX_HOSTS:
        raise LoomError(f"{len(hosts)} hosts: name from 1 to {MAX_HOSTS}")
    for n, host in enumerate(hosts):
        if host in hosts[:n]:
            raise LoomError(f"the host {host.text!r} is there twice: use workers_per_host for more workers on each")
    return hosts


def ssh_words(options: Sequence[str], tunnel_port: int = 0) -> list[str]:
    """A call of ssh without the host. What the user wants comes first, as ssh takes the first of several values.

    `tunnel_port`: a port of loopback here that is to be reached from there, at a port that ssh tells.
    """
    words = ["ssh", *options, "-T", "-x", "-a", "-e", "none"]
    for option in _OPTIONS:
        words += ["-o", option]
    if tunnel_port:
        return [*words, "-o", "ExitOnForwardFailure=yes", "-R", f"127.0.0.1:0:127.0.0.1:{tunnel_port}"]
    return [*words, "-o", "ClearAllForwardings=yes"]


def address_towards(host: Host, options: Sequence[str]) -> str:
    """The address of this machine that the host sees, as far as can be known here. Raises DeployError."""
    name, is_direct = _name_of(host, options)
    if is_direct:
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                address = socket.getaddrinfo(name, 9, family=family, type=socket.SOCK_DGRAM)[0][4]
                return _own_address(family, address)
            except OSError:
                continue
    return usual_address()


def _own_address(family: int, address: object) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # type: ignore[arg-type]
        return str(probe.getsockname()[0])


def _name_of(host: Host, options: Sequence[str]) -> tuple[str, bool]:
    """What ssh connects to, and whether it does so without another host in between."""
    try:
        said = subprocess.run(
            ["ssh", *options, "-G", *host.words()], capture_output=True, timeout=_ASK_S, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise DeployError(NO_SSH) from None
    except subprocess.TimeoutExpired:
        return host.destination, True
    if said.returncode:
        raise DeployError(f"ssh refuses {host.text}: {said.stderr.decode(errors='replace').strip()}")
    values = dict(line.partition(" ")[::2] for line in said.stdout.decode(errors="replace").splitlines())
    proxied = any(values.get(key, "none") != "none" for key in ("proxyjump", "proxycommand"))
    return values.get("hostname", host.destination), not proxied


NO_SSH: Final = "there is no ssh program here: install it (on Debian, the package openssh-client)"


def listening_host(told: Sequence[str]) -> str:
    """Where the server listens, so that it is reached at all these addresses. Raises DeployError."""
    if all(address == "localhost" or is_loopback(address) for address in told):
        return "::1" if all(":" in address for address in told) else "127.0.0.1"
    kinds = {":" in address for address in told}
    if len(kinds) > 1:
        raise DeployError("some hosts see an IPv4 address of this machine, some an IPv6 one: choose with address=...")
    return "::" if kinds == {True} else "0.0.0.0"
