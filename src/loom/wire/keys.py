"""The user's key: a file that only its owner can read, made on first use.

Whoever knows the key may use the user's servers and workers, so it travels neither as an argument nor in the
environment; only the file's path does.
"""

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from loom.errors import LoomError

KEY_BYTES: Final = 32
_HEX_DIGITS: Final = 2 * KEY_BYTES


def key_path() -> Path:
    """`$LOOM_KEY_FILE`, else `loom/key` in `$XDG_CONFIG_HOME` or `~/.config`."""
    named = os.environ.get("LOOM_KEY_FILE")
    if named:
        return Path(named)
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(configured):  # the XDG specification has relative ones ignored
        return Path(configured, "loom", "key")
    try:
        return Path.home() / ".config" / "loom" / "key"
    except RuntimeError as error:
        raise LoomError("there is no home directory to keep the key in: set LOOM_KEY_FILE") from error


def load_key() -> bytes:
    """The KEY_BYTES of the key; makes the file where there is none yet.

    Processes that start at the same moment, on hosts that share the file system too, get the same key. Raises
    LoomError where others can read the file, or it holds no key, or cannot be read or made.
    """
    path = key_path()
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise LoomError(f"the key file {path} cannot be read: {error.strerror}") from error
    try:
        _make(path)
        return _read(path)
    except OSError as error:
        raise LoomError(f"the key file {path} cannot be made: {error.strerror}") from error


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a fifo there must not block
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise LoomError(f"the key file {path} is not a regular file")
        if status.st_mode & 0o077:
            raise LoomError(
                f"the key file {path} is open to others (mode {status.st_mode & 0o777:04o}); "
                f"if nobody can have read it: chmod 600 {path}, else delete it and restart every Loom process"
            )
        text = os.read(descriptor, _HEX_DIGITS + 2)
    finally:
        os.close(descriptor)
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise LoomError(f"the key file {path} does not hold a key ({_HEX_DIGITS} hexadecimal digits)")
    return key


def _make(path: Path) -> None:
    """Write the file beside its place and link it there: it appears whole, and only one of several makers wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was faster: its key is the key
    finally:
        os.unlink(draft)
