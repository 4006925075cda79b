"""`loom-server`."""

from __future__ import annotations

import logging
import socket

import click

from loom import __version__
from loom.cli.daemon import LOG_LEVELS, run_daemon, set_up_log, stop_on_signals
from loom.cli.options import listening_options, trust_options
from loom.cli.values import checked_size
from loom.deploy.batch.late import LateQueues
from loom.limits import CRASH_LIMIT, LINEAGE_BYTES, LINK_SILENCE_S, REATTACH_S
from loom.net.interfaces import usual_address
from loom.net.places import remove_address, write_address
from loom.net.sockets import address_text, is_loopback
from loom.net.trust import find_trust
from loom.server.shell import ServerShell
from loom.wire.keys import key_path

_log = logging.getLogger("loom.server")


def _checked_crash_limit(context: click.Context, parameter: click.Parameter, value: int) -> int:
    if value == 1:  # all that waits at a worker would be to blame for its first loss
        raise click.BadParameter("1 loss does not say which of a worker's tasks it was: 2 at least, or 0 for no limit")
    return value


def _advertised(host: str, port: int, told: tuple[str, int] | None) -> tuple[str, int]:
    """Where others reach the server that listens there."""
    if told is not None:
        return told[0], told[1] or port
    return usual_address() if host in ("", "0.0.0.0", "::") else host, port


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-p", "--port", default=9010, show_default=True, type=click.IntRange(0, 65535), help="TCP port; 0: any free one."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on, of this machine; 0.0.0.0: all of them. Links to other machines are encrypted.",
)
@click.option(
    "--worker-timeout",
    metavar="SECONDS",
    default=LINK_SILENCE_S,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="A worker that has been silent for so long is lost: what it ran and held is made again elsewhere. A worker "
    "says something every quarter of it; one whose process dies is known at once. Raise it for networks that go away "
    "for longer.",
)
@click.option(
    "--crash-limit",
    metavar="N",
    default=CRASH_LIMIT,
    show_default=True,
    type=click.IntRange(0),
    callback=_checked_crash_limit,
    help="A task that N workers had when they died fails with that story instead of taking another one with it. "
    "Workers that were told to stop do not count. At least 2; 0: no limit.",
)
@click.option(
    "--lineage-limit",
    metavar="SIZE",
    default=f"{LINEAGE_BYTES >> 30}GiB",
    show_default=True,
    callback=checked_size,
    help="Memory for what tasks are, from which lost objects are made again. Above it what the oldest finished ones "
    "were is forgotten: what is lost of theirs later cannot be made again.",
)
@click.option(
    "--journal",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=str),
    help="Write everything down that the server has to know when it starts again, after a crash, a kill -9 or a "
    "reboot: the same command goes on from it. Nothing is lost that a client was told; workers come back with what "
    "they have and clients to their sessions, by themselves. On a disk of this machine; `loom journal` reads it.",
)
@click.option(
    "--reattach-timeout",
    metavar="SECONDS",
    default=REATTACH_S,
    show_default=True,
    type=click.FloatRange(min=0),
    help="With --journal: how long a server that has started again waits for the workers that it had. Until they are "
    "back it gives nothing out; what those ran and held who are not back by then is made again.",
)
@click.option(
    "--address-file",
    metavar="FILE",
    help="Write where the server is to FILE, and remove it at the end: workers find it with their --address-file, also "
    "when it has moved. In a folder that they share.",
)
@listening_options
@trust_options
@click.option("--debug", is_flag=True, help="Log everything (the same as --log-level debug).")
@click.option("--log-level", default="info", show_default=True, type=click.Choice(LOG_LEVELS))
@click.option("--listening-fd", type=int, hidden=True)
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.version_option(__version__, prog_name="loom-server")
def main(
    port: int,
    host: str,
    worker_timeout: float,
    crash_limit: int,
    lineage_limit: int,
    journal: str | None,
    reattach_timeout: float,
    address_file: str | None,
    told: tuple[str, int] | None,
    key_file: str | None,
    tls: bool,
    insecure: bool,
    debug: bool,
    log_level: str,
    listening_fd: int | None,
    until_stdin_closes: bool,
) -> None:
    """Run a Loom server: it takes plans from clients and schedules them on workers.

    With --journal it may die and start again, and nothing is lost.

    Start workers with `loom-worker HOST PORT`, connect with `Client(HOST, PORT)`. Whoever connects must have the same
    key: one for each user, ~/.config/loom/key, made on first use. Machines that share the home directory find it there;
    to others copy that one file (scp -p; `loom key --help`). The server logs to stderr and runs until SIGTERM, SIGINT
    or a client's terminate().
    """
    set_up_log("debug" if debug else log_level)
    if journal == "":
        raise click.UsageError("--journal needs the name of a file; it is empty.")

    async def serve() -> None:
        trust = find_trust(key_file, tls=tls, insecure=insecure)
        queues = LateQueues(key_path(key_file), stay=journal is not None)
        limits = worker_timeout, crash_limit, lineage_limit
        shell = ServerShell(trust, *limits, journal, reattach_timeout, allocations=queues)
        sock = socket.socket(fileno=listening_fd) if listening_fd is not None else None
        await shell.start(host, port, sock)
        stop_on_signals(shell.stop, until_stdin_closes)
        advertised = _advertised(host, shell.port, told)
        known = f", known to others as {address_text(advertised)}" if told is not None else ""
        _log.info("listening on %s%s", address_text((host, shell.port)), known)
        if address_file is not None:
            write_address(address_file, *advertised)
        queues.listens_at(*advertised)
        if journal is not None and port == 0 and sock is None and address_file is None:
            _log.warning("with -p 0 a server that starts again listens elsewhere, and nobody finds it: choose a port")
        _log.info("the key: %s", trust.key_text)
        if is_loopback(host) and sock is None:
            _log.info("only this machine reaches it; --host ADDRESS opens it to others")
        if insecure and not is_loopback(host):
            _log.warning("INSECURE: links on %s are not encrypted where the other end does not ask for it either", host)
        try:
            await shell.run()
        finally:
            if address_file is not None:
                remove_address(address_file, *advertised)

    run_daemon(serve)


if __name__ == "__main__":
    main()
