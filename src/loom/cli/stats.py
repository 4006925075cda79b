"""`loom stats`."""

from __future__ import annotations

import click

from loom.client.client import Client
from loom.errors import LoomException


@click.command()
@click.argument("host", default="localhost")
@click.argument("port", default=9010, type=click.IntRange(1, 65535))
def stats(host: str, port: int) -> None:
    """Print figures of the server at HOST PORT: workers, cores, sessions, tasks, objects."""
    try:
        with Client(host, port) as client:
            values = client.get_stats()
    except LoomException as error:
        raise click.ClickException(str(error)) from None
    width = max(map(len, values))
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {value:,}")
