"""Files and folders that users name: whatever the umask is, others may not write to them.

What nobody but this user is to see is made with 0600 where it is made.
"""

import os
from typing import AnyStr, Final

SHOWN_FILE: Final = 0o644  # what is meant to be shown follows the umask up to here
SHOWN_FOLDER: Final = 0o755
OWN_FOLDER: Final = 0o700
OWN_FILE: Final = 0o600


def make_folders(path: AnyStr, mode: int) -> None:
    """Make a folder, and those above it that are not there either; of `os.makedirs` those would follow the umask.

    OSError where it cannot be made; nothing happens where it is there.
    """
    missing = [path]
    up = True
    while missing:
        folder = missing[-1]
        try:
            os.mkdir(folder, mode)
        except OSError as error:
            above = os.path.dirname(folder.rstrip(os.fsencode("/") if isinstance(folder, bytes) else "/"))
            if up and isinstance(error, FileNotFoundError) and above not in (folder, folder[:0]):
                missing.append(above)
                continue
            if not os.path.isdir(folder):
                raise
        up = False
        missing.pop()


def write_shown(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that its user has named, over what was there. OSError where that fails."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, SHOWN_FILE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def replace_own(path: str, content: bytes) -> None:
    """Put a file for this user alone in place, whole: who reads it meanwhile has the old one. OSError if that fails."""
    draft = f"{path}.{os.getpid()}.new"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, OWN_FILE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
