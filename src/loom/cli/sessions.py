"""`loom sessions`."""

from __future__ import annotations

from typing import Final

import click

from loom.cli.options import trust_options
from loom.client.client import Client
from loom.client.sessions import NamedSession
from loom.errors import LoomException

_COLUMNS: Final = ("name", "used by", "tasks", "unfinished", "results")
_MOST_NAMES: Final = 5  # of results in one line


@click.command()
@click.argument("host", default="localhost")
@click.argument("port", default=9010, type=click.IntRange(1, 65535))
@click.option("--end", metavar="NAME", help="End the session of this name with everything in it, used or not.")
@trust_options
def sessions(host: str, port: int, end: str | None, key_file: str | None, tls: bool, insecure: bool) -> None:
    """List the named sessions of the server at HOST PORT: who uses each, its tasks, the names of its results."""
    try:
        with Client(host, port, key_file=key_file, tls=tls, insecure=insecure) as client:
            if end is not None:
                client.end_session(end)
            found = client.sessions()
    except LoomException as error:
        raise click.ClickException(str(error)) from None
    if not found:
        click.echo("There are no named sessions.")
        return
    table = [_COLUMNS, *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(session: NamedSession) -> tuple[str, ...]:
    names = ", ".join(map(_printable, session.results[:_MOST_NAMES]))
    if len(session.results) > _MOST_NAMES:
        names += f" and {len(session.results) - _MOST_NAMES} more"
    used_by = _printable(session.used_by) if session.used_by else "-"
    return _printable(session.name), used_by, f"{session.n_tasks:,}", f"{session.n_unfinished:,}", names or "-"


def _printable(text: str) -> str:
    """Names may have any characters, those that steer a terminal too."""
    return text if text.isprintable() else repr(text)
