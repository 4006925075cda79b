"""Removing what tasks have left: folders of any depth, closed ones too, and no link is followed out of them.

Of a deep tree one folder is open at a time, and nothing recurses: programs may nest folders deeper than Python calls or
than a path is long.
"""

import errno
import os
from typing import Final, NamedTuple

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CLOSED_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNER_MAY: Final = 0o700


class _Level(NamedTuple):
    """A folder above the one that is open: which one it is, and what else is to be removed there."""

    status: os.stat_result
    below: str
    folders: list[str]


def open_folder(name: str | bytes, at: int | None = None) -> int:
    """Open a folder, which must be no link, and see to it that this user, if it is his, may list and change it.

    OSError where it is none, or is not his.
    """
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=at)
    except PermissionError:
        descriptor = _open_closed(name, at)
    try:
        if os.fstat(descriptor).st_mode & _OWNER_MAY != _OWNER_MAY:
            os.fchmod(descriptor, _OWNER_MAY)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open_closed(name: str | bytes, at: int | None) -> int:
    """By way of /proc, where a descriptor stands for the very folder: there is no chmod that follows no link."""
    place = os.open(name, _CLOSED_FOLDER, dir_fd=at)
    try:
        same = f"/proc/self/fd/{place}"
        os.chmod(same, _OWNER_MAY)
        return os.open(same, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(place)


def empty_folder(folder: int) -> None:
    """Remove everything that is in an open folder. Where something stays, all else goes, and then comes the OSError.

    What is mounted in there stays: it was not put there by writing files.
    """
    errors: list[OSError] = []  # the first is enough
    at = os.dup(folder)
    above: list[_Level] = []
    try:
        folders = _remove_files(at, errors)
        while folders or above:
            if folders:
                name = folders.pop()
                try:
                    below = _step_down(name, at)
                except OSError as error:
                    _note(errors, error)
                    continue
                above.append(_Level(os.fstat(at), name, folders))
                os.close(at)
                at = below
                folders = _remove_files(at, errors)
            else:
                status, name, folders = above.pop()
                up = os.open("..", _FOLDER, dir_fd=at)
                os.close(at)
                at = up
                if not os.path.samestat(os.fstat(at), status):
                    raise OSError(errno.EBUSY, "it was moved while it was removed", name)
                try:
                    os.rmdir(name, dir_fd=at)
                except OSError as error:
                    _note(errors, error)
    finally:
        os.close(at)
    if errors:
        raise errors[0]


def remove_folder(name: str | bytes, at: int | None = None) -> None:
    """Remove a folder and everything in it; OSError where something stays, and where it is a link."""
    folder = open_folder(name, at)
    try:
        empty_folder(folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=at)


def _step_down(name: str, at: int) -> int:
    below = open_folder(name, at)
    if os.fstat(below).st_dev != os.fstat(at).st_dev:
        os.close(below)
        raise OSError(errno.EXDEV, "another file system is mounted there", name)
    return below


def _remove_files(at: int, errors: list[OSError]) -> list[str]:
    """Remove what is no folder; returns the names of the folders."""
    folders: list[str] = []
    try:
        with os.scandir(at) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                    continue
                try:
                    os.unlink(entry.name, dir_fd=at)
                except OSError as error:
                    _note(errors, error)
    except OSError as error:
        _note(errors, error)
    return folders


def _note(errors: list[OSError], error: OSError) -> None:
    if not errors:
        errors.append(error)
