"""Full file systems: how an error shows one, and what is said of it."""

import errno
import os
import sys
from typing import Final

from loom.limits import MIB
from loom.resources import size_text

SPACE_TEXT: Final = "no space left: "  # how `space_text` begins

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_ROOM_BYTES: Final = 16 * MIB
_ROOM_PART: Final = 50  # or 2 % where that is more,
_MOST_ROOM_BYTES: Final = 1024 * MIB
_TINY_ROOM_PART: Final = 10  # and of tiny file systems no more than 10 %


def is_full(error: BaseException | None) -> bool:
    """Whether this is what a system call says that found no room."""
    return isinstance(error, OSError) and error.errno in _FULL


def free_bytes(path: str) -> int:
    """What this user may still write to the file system of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize if status.f_blocks else sys.maxsize  # a tmpfs without a limit


def has_room(path: str) -> bool:
    """Whether the file system of `path` has so much free that it is worth while to go on."""
    status = os.statvfs(path)
    size_bytes, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    room_bytes = max(_ROOM_BYTES, min(size_bytes // _ROOM_PART, _MOST_ROOM_BYTES))
    return free >= min(room_bytes, size_bytes // _TINY_ROOM_PART)


def space_text(*paths: str) -> str:
    """`no space left: /path has 12 KiB free of 2 MiB; ...`, each place with what its file system has."""
    places = "; ".join(map(room_text, dict.fromkeys(paths)))
    return f"{SPACE_TEXT}{places}; make room there, or name another place (loom-worker --wdir, --spill-dir)"


def room_text(path: str) -> str:
    """`/path has 12 KiB free of 2 MiB`; the path need not be there (any more), only its directory."""
    try:
        status = os.statvfs(path if os.path.exists(path) else os.path.dirname(path))
    except OSError as error:
        return f"{path} cannot be looked at ({error.strerror})"
    free, size = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    return f"{path} has {size_text(free)} free of {size_text(size)}"


def full_error(error: BaseException | None) -> OSError | None:
    """The error, or one that it came of, that says there is no room."""
    seen = 0
    while error is not None and seen < 100:  # chains may be circles
        if is_full(error):
            assert isinstance(error, OSError)
            return error
        error = error.__cause__ or error.__context__
        seen += 1
    return None
