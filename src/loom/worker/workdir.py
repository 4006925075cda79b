"""The directories of one worker: its store and the run directories of its programs, on one file system, and a place
on disk where that is in memory.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from typing import Final

from loom.errors import LoomError
from loom.executors.removal import open_folder, remove_folder
from loom.executors.trees import end_below
from loom.files import OWN_FOLDER, make_folders
from loom.limits import MIB
from loom.worker.disk import is_in_memory

_PREFIX: Final = "loom-worker-"
_DRAFT_PREFIX: Final = ".loom-worker-"
_DRAFT_S: Final = 3600.0  # one that is older was left by a worker that was killed in that moment
_NAME: Final = re.compile(r"loom-worker-\d+-\w+|\.loom-worker-\w+")
_LOCK: Final = ".lock"
_LOCK_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GIVE_UP_S: Final = 5.0  # processes that have not ended by then are stuck in the kernel, or not ours
_SHM: Final = "/dev/shm"
_DISK: Final = "/var/tmp"  # for temporary files that survive a restart, so it is never in memory as /tmp may be
_LEAST_FREE_BYTES: Final = 256 * MIB  # of tmpfs, to use it unasked

_log = logging.getLogger(__name__)


class WorkDirectory:
    """Fresh directories that go with the worker; those of workers that were killed are removed when one starts.

    A worker holds a lock in its directory as long as it lives, so that a directory whose lock is free is nobody's.
    `spill` and `spill_runs` are the same on disk where `store` and `runs` are in memory; else, and where there is no
    disk, they are empty. `on_disk` is where objects go that are to leave memory, empty where that cannot be.
    """

    def __init__(self, base: str | None, spill_base: str | None = None) -> None:
        self._own = _OwnDirectory(os.path.abspath(base) if base else _default_base(), "--wdir")
        self.path = self._own.path
        self.store = self._own.make("store")
        self.runs = self._own.make("run")
        self.spill = self.spill_runs = ""
        self._spill: _OwnDirectory | None = None
        try:
            self._find_spill(spill_base)
        except LoomError:
            self._own.remove()
            raise

    def _find_spill(self, base: str | None) -> None:
        self.on_disk = ""
        if not is_in_memory(self.store):
            self.on_disk = self.store
            return
        if base:
            self._spill = _OwnDirectory(os.path.abspath(base), "--spill-dir")
        else:
            on_disk = [place for place in (tempfile.gettempdir(), _DISK) if _is_on_disk(place)]
            if not on_disk:
                _log.warning("no directory on disk was found; name one with --spill-dir, for objects above --memory")
                return
            self._spill = _OwnDirectory(on_disk[0], "--spill-dir")
        self.spill = self.on_disk = self._spill.make("store")
        self.spill_runs = self._spill.make("run")

    def remove(self) -> None:
        self._own.remove()
        if self._spill is not None:
            self._spill.remove()


class _OwnDirectory:
    """A directory below `parent` with a lock in it."""

    def __init__(self, parent: str, option: str) -> None:
        try:
            make_folders(parent, OWN_FOLDER)
            _check_parent(parent, option)
            sweep(parent)
            # Under its own name it is locked from the first moment, so that no worker that starts now sweeps it.
            draft = tempfile.mkdtemp(prefix=_DRAFT_PREFIX, dir=parent)
            self._lock = os.open(f"{draft}/{_LOCK}", _LOCK_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.path = f"{parent}/{_PREFIX}{os.getpid()}-{draft.rpartition('-')[2]}"
            os.rename(draft, self.path)
        except OSError as error:
            raise LoomError(
                f"the worker directory {parent} cannot be used: {error.strerror}; name another one with {option}"
            ) from error

    def make(self, name: str) -> str:
        path = f"{self.path}/{name}"
        os.mkdir(path, 0o700)
        return path

    def remove(self) -> None:
        try:
            with suppress(OSError):
                folder = open_folder(self.path)
                try:
                    _remove(folder, self.path)
                finally:
                    os.close(folder)
        finally:
            os.close(self._lock)


def _check_parent(parent: str, option: str) -> None:
    """LoomError where others could put something of theirs in the place of our directory."""
    status = os.stat(parent)
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise LoomError(
            f"everybody may rename what is in {parent} (mode {status.st_mode & 0o7777:04o}), also what a worker keeps "
            f"there: chmod +t {parent}, or name a directory of your own with {option}"
        )


def _is_on_disk(path: str) -> bool:
    try:
        return os.access(path, os.W_OK | os.X_OK) and not is_in_memory(path)
    except OSError:
        return False


def _default_base() -> str:
    """Memory where there is enough of it, else the directory for temporary files."""
    try:
        status = os.statvfs(_SHM)
        if os.access(_SHM, os.W_OK | os.X_OK) and status.f_bavail * status.f_frsize >= _LEAST_FREE_BYTES:
            return _SHM
    except OSError:
        pass
    return tempfile.gettempdir()


def sweep(parent: str) -> None:
    """Remove directories of dead workers of this user below `parent`, and kill the programs that still run in them:
    of a worker that was killed together with its supervisor.

    Anybody may make directories with such names in a place for temporary files. So nothing is opened by its whole path
    after it was looked at, and no link is followed.
    """
    try:
        names = [name for name in os.listdir(parent) if _NAME.fullmatch(name)]
        at = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if names else -1
    except OSError:
        return
    for name in names:
        with suppress(OSError):  # not ours, or gone already
            _sweep_one(name, at)
    if names:
        os.close(at)


def _sweep_one(name: str, at: int) -> None:
    status = os.stat(name, dir_fd=at, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    if name.startswith(_DRAFT_PREFIX) and time.time() - status.st_mtime < _DRAFT_S:
        return
    folder = open_folder(name, at)
    try:
        if not os.path.samestat(os.fstat(folder), status):
            return
        path = os.readlink(f"/proc/self/fd/{folder}")
        try:
            lock = os.open(_LOCK, _LOCK_FLAGS, dir_fd=folder)
        except FileNotFoundError:  # gone already, but for the last step of `_remove`
            os.rmdir(name, dir_fd=at)
            return
        try:
            if not stat.S_ISREG(os.fstat(lock).st_mode):
                return
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: its worker lives
            left = end_below(path, _GIVE_UP_S)
            if left:
                _log.warning("processes that a dead worker has left in %s cannot be ended: %s", path, left)
            _remove(folder, path)
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def _remove(folder: int, path: str) -> None:
    """The lock goes last: as long as anything else is there, the next worker that starts tries again."""
    for name in os.listdir(folder):
        if name == _LOCK:
            continue
        with suppress(OSError):
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                remove_folder(name, folder)
            else:
                os.unlink(name, dir_fd=folder)
    if os.listdir(folder) == [_LOCK]:
        os.unlink(_LOCK, dir_fd=folder)
        os.rmdir(path)


def sweep_all(base: str | None, spill_base: str | None) -> None:
    """Sweep wherever a worker with these options may have had a directory."""
    places = [base] if base else [_SHM, tempfile.gettempdir()]
    places += [spill_base] if spill_base else [tempfile.gettempdir(), _DISK]
    for place in dict.fromkeys(map(os.path.abspath, places)):
        sweep(place)
