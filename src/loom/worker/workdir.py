"""The directory of one worker: its store and the run directories of its programs, on one file system."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Final

from loom.errors import LoomError
from loom.limits import MIB

_PREFIX: Final = "loom-worker-"
_DRAFT_PREFIX: Final = ".loom-worker-"
_DRAFT_S: Final = 3600.0  # one that is older was left by a worker that was killed in that moment
_LOCK: Final = ".lock"
_SHM: Final = "/dev/shm"
_LEAST_FREE_BYTES: Final = 256 * MIB  # of tmpfs, to use it unasked


class WorkDirectory:
    """A fresh directory that goes with the worker; those of workers that were killed are removed when one starts.

    A worker holds a lock in its directory as long as it lives, so that a directory whose lock is free is nobody's.
    """

    def __init__(self, base: str | None) -> None:
        parent = os.path.abspath(base) if base else _default_base()
        try:
            if base:
                os.makedirs(parent, exist_ok=True)
            _sweep(parent)
            # Under its own name it is locked from the first moment, so that no worker that starts now sweeps it.
            draft = tempfile.mkdtemp(prefix=_DRAFT_PREFIX, dir=parent)
            self._lock = os.open(f"{draft}/{_LOCK}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.path = f"{parent}/{_PREFIX}{os.getpid()}-{draft.rpartition('-')[2]}"
            os.rename(draft, self.path)
            self.store = self._make("store")
            self.runs = self._make("run")
        except OSError as error:
            raise LoomError(
                f"the worker directory {parent} cannot be used: {error.strerror}; name another one with --wdir"
            ) from error

    def _make(self, name: str) -> str:
        path = f"{self.path}/{name}"
        os.mkdir(path, 0o700)
        return path

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _default_base() -> str:
    """Memory where there is enough of it, else the directory for temporary files."""
    try:
        status = os.statvfs(_SHM)
        if os.access(_SHM, os.W_OK | os.X_OK) and status.f_bavail * status.f_frsize >= _LEAST_FREE_BYTES:
            return _SHM
    except OSError:
        pass
    return tempfile.gettempdir()


def _sweep(parent: str) -> None:
    """Remove directories of dead workers of this user."""
    for directory in (*Path(parent).glob(f"{_PREFIX}*"), *Path(parent).glob(f"{_DRAFT_PREFIX}*")):
        try:
            status = directory.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            if directory.name.startswith(_DRAFT_PREFIX) and time.time() - status.st_mtime < _DRAFT_S:
                continue
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # not ours, just being made, or gone already
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            pass  # its worker lives
        finally:
            os.close(lock)
