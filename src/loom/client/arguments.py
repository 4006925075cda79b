"""What users pass to a client, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from loom.errors import LoomError
from loom.files import OWN_FOLDER, make_folders
from loom.limits import MAX_PATH_BYTES

if TYPE_CHECKING:
    from loom.client.future import Future


def listed(call: str, futures: Iterable[Future]) -> list[Future]:
    """The argument of a collective call."""
    if not isinstance(futures, Iterable):
        raise LoomError(
            f"{call} takes a collection of futures, not {futures!r:.200}; a single one has methods of its own"
        )
    return list(futures)


def trace_directory(path: str | os.PathLike[str]) -> bytes:
    """Make the directory; returns its absolute path."""
    try:
        if not os.fspath(path):
            raise ValueError("it has no name")
        directory = os.fsencode(os.path.abspath(path))
        make_folders(directory, OWN_FOLDER)
    except (OSError, TypeError, ValueError) as error:  # ValueError: a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise LoomError(f"the directory for traces {path!r:.200} cannot be made: {reason}") from None
    if len(directory) > MAX_PATH_BYTES:
        raise LoomError(f"the path of the directory for traces is longer than {MAX_PATH_BYTES} bytes")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise LoomError(f"the directory for traces {path!r:.200} is not writable by this user")
    return directory
