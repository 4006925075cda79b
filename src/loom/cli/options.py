"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

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
