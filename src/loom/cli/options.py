"""Options that several commands have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from loom.errors import LoomError
from loom.limits import LAST_PORT, MAX_PEER_CHARS
from loom.net.interfaces import interface_address
from loom.net.serving import Serving

_MAX_HOST_ID_CHARS = MAX_PEER_CHARS // 2  # it travels with the name of a socket

key_file_option = click.option(
    "--key-file",
    metavar="FILE",
    help="The key is in FILE.  [default: the file LOOM_KEY_FILE names, or ~/.config/loom/key]",
)


def trust_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--key-file, --tls and --insecure: `key_file`, `tls`, `insecure`."""
    tls = click.option("--tls", is_flag=True, help="Encrypt links within this machine, too.")
    insecure = click.option(
        "--insecure",
        is_flag=True,
        help="Do not ask for encryption, not even to other machines: where the other end does not ask for it either, "
        "the network sees plans, data and results (never the key). Without this, such links are encrypted.",
    )
    return key_file_option(tls(insecure(command)))


def _checked_interface(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The name, of one that has an address."""
    if value is not None:
        try:
            interface_address(value)
        except LoomError as error:
            raise click.BadParameter(str(error)) from None
    return value


def _checked_address(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """HOST, HOST:PORT, or [HOST]:PORT for an IPv6 address; the port is 0 where none is said."""
    if value is None:
        return None
    if value.startswith("["):
        host, closed, rest = value[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        is_whole = bool(closed) and colon in ("", ":")
    else:
        host, colon, port = value.rpartition(":") if value.count(":") == 1 else (value, "", "")
        is_whole = True
    port_number = int(port) if port.isascii() and port.isdecimal() else 0
    is_port = not colon or 0 < port_number <= LAST_PORT
    if not (is_whole and is_port and 0 < len(host) <= MAX_PEER_CHARS and host.isprintable() and " " not in host):
        raise click.BadParameter(f"{value!r} is no address: give HOST, HOST:PORT or [IPV6]:PORT")
    return host, port_number


def _checked_host_id(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not (value.isprintable() and 0 < len(value) <= _MAX_HOST_ID_CHARS):
        raise click.BadParameter(f"give printable text of 1 to {_MAX_HOST_ID_CHARS} characters")
    return value


def listening_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--interface and --advertise of a server: `host`, that of --host or of the interface, and `told`, the host and
    port for others (port 0: where it listens), None where nothing is said of them.
    """
    interface = click.option(
        "--interface",
        metavar="IFACE",
        callback=_checked_interface,
        help="Listen at the address of this network interface (such as eth0), in place of --host.",
    )
    advertise = click.option(
        "--advertise",
        metavar="ADDRESS",
        callback=_checked_address,
        help="What others are told, where they reach the server at another address or name than it has itself: "
        "HOST, HOST:PORT or [IPV6]:PORT.",
    )

    @functools.wraps(command)
    def choose_host(*arguments: Any, interface: str | None, advertise: tuple[str, int] | None, **others: Any) -> Any:
        if interface is not None:
            if click.get_current_context().get_parameter_source("host") is not ParameterSource.DEFAULT:
                raise click.UsageError("--host and --interface both say where to listen: give one of them.")
            others["host"] = interface_address(interface)
        return command(*arguments, told=advertise, **others)

    return interface(advertise(choose_host))


def serving_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--interface, --advertise, --object-port and --host-id of a worker, together one Serving: `serving`."""

    interface = click.option(
        "--interface",
        metavar="IFACE",
        callback=_checked_interface,
        help="Serve objects to others at the address of this network interface (such as ib0).  [default: the address "
        "from which this machine reaches the server]",
    )
    advertise = click.option(
        "--advertise",
        metavar="ADDRESS",
        callback=_checked_address,
        help="What others are told of where the objects are, where they reach this machine at another address or name "
        "than it has itself: HOST, HOST:PORT or [IPV6]:PORT.",
    )
    object_port = click.option(
        "--object-port",
        metavar="PORT",
        default=0,
        type=click.IntRange(0, LAST_PORT),
        help="Serve objects at this TCP port, for firewalls; each worker of a machine needs one of its own.  "
        "[default: any free one]",
    )
    host_id = click.option(
        "--host-id",
        metavar="TEXT",
        callback=_checked_host_id,
        help="Which host this is: workers with other ids do not hand files over to each other, as those of one host "
        "do, even where they could.",
    )

    @functools.wraps(command)
    def put_together(
        *arguments: Any,
        interface: str | None,
        advertise: tuple[str, int] | None,
        object_port: int,
        host_id: str | None,
        **others: Any,
    ) -> Any:
        host, port = advertise or ("", 0)
        return command(*arguments, serving=Serving(interface or "", host, port, object_port, host_id or ""), **others)

    return interface(advertise(object_port(host_id(put_together))))
