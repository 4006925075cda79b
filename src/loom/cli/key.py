"""`loom key`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from loom.cli.options import key_file_option
from loom.errors import LoomError
from loom.wire.keys import key_path, new_key, rotate_key


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def key() -> None:
    """The key that servers, workers and clients prove to each other.

    There is one key for each user, ~/.config/loom/key, made by whatever needs it first. Machines that share the home
    directory find it there. To any other machine copy that one file, and nothing else:

    \b
      ssh OTHER mkdir -p -m 700 .config/loom
      scp -p ~/.config/loom/key OTHER:.config/loom/key

    Whoever can read the file can run programs as you wherever a worker of yours runs, so it has to be yours alone
    (mode 0600), and nobody else may write to its directory. Another file: --key-file FILE, Client(..., key_file=FILE),
    or LOOM_KEY_FILE in the environment.
    """


@key.command()
@key_file_option
def new(key_file: str | None) -> None:
    """Make a key where there is none yet, and print where it is.

    Servers, workers and clients do so themselves; this is for a key that is to be copied before they start. A file that
    is there is left as it is.
    """
    click.echo(_done(new_key, key_file))


@key.command("show-path")
@key_file_option
def show_path(key_file: str | None) -> None:
    """Print the name of the key file that is used here. The key itself is not printed by any command."""
    path = _done(key_path, key_file)
    click.echo(path)
    if not os.path.lexists(path):
        click.echo("(it does not exist yet)", err=True)


@key.command()
@key_file_option
def rotate(key_file: str | None) -> None:
    """Put a new key in the place of the old one. The certificate that was made from that (FILE.pem) goes, too.

    At no moment is there no key, or half of one. Servers, workers and clients that run keep the old key until they are
    started again, and understand only each other until then. Copies of the file on other machines stay what they were:
    copy it there again.
    """
    path = _done(rotate_key, key_file)
    click.echo(
        f"{path} holds a new key. Servers, workers and clients that run keep the old one until they are started again. "
        "Copy the file again to machines that do not share it."
    )


def _done(call: Callable[[str | None], Path], key_file: str | None) -> Path:
    try:
        return call(key_file)
    except LoomError as error:
        raise click.ClickException(str(error)) from None
