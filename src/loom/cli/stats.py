"""`loom stats`."""

from __future__ import annotations

import click

from loom.cli.options import trust_options
from loom.client.client import Client
from loom.errors import LoomException


@click.command()
@click.argument("host", default="localhost")
@click.argument("port", default=9010, type=click.IntRange(1, 65535))
@trust_options
def stats(host: str, port: int, key_file: str | None, tls: bool, insecure: bool) -> None:
    """Print figures of the server at HOST PORT: workers, cores, sessions, tasks, objects."""
    try:
        with Client(host, port, key_file=key_file, tls=tls, insecure=insecure) as client:
            values = client.get_stats()
    except LoomException as error:
        raise click.ClickException(str(error)) from None
    width = max(map(len, values))
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {value:,}")
