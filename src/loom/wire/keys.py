"""The user's key: a file that only its owner can read, made on first use.

Whoever knows the key may use the user's servers and workers, so it travels neither as an argument nor in the
environment; only the file's path does.
"""

import contextlib
import os
import pwd
import secrets
import stat
from pathlib import Path
from typing import Final

from loom.errors import LoomError

KEY_BYTES: Final = 32
_HEX_DIGITS: Final = 2 * KEY_BYTES
_OPEN_TO_OTHERS: Final = 0o077
_WRITABLE_BY_OTHERS: Final = 0o022


class Key(bytes):
    """The KEY_BYTES. Logs, messages and tracebacks that show local variables get a word in their place."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<key>"

    __str__ = __repr__


def key_path(named: str | os.PathLike[str] | None = None) -> Path:
    """`named`, else `$LOOM_KEY_FILE`, else `loom/key` in `$XDG_CONFIG_HOME` or `~/.config`."""
    if named is not None:
        try:
            path = os.fspath(named)
            if not isinstance(path, str) or not path or "\0" in path:
                raise TypeError
        except TypeError:
            raise LoomError(f"the key file {named!r:.200} is no file name") from None
        return Path(path).expanduser()
    in_environment = os.environ.get("LOOM_KEY_FILE")
    if in_environment:
        return Path(in_environment).expanduser()  # what a shell would have done, and systemd or Docker do not
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(configured):  # the XDG specification has relative ones ignored
        return Path(configured, "loom", "key")
    try:
        return Path.home() / ".config" / "loom" / "key"
    except RuntimeError as error:
        raise LoomError("there is no home directory to keep the key in: set LOOM_KEY_FILE") from error


def load_key(named: str | os.PathLike[str] | None = None) -> Key:
    """The key in the file `key_path` gives; makes the file where there is none yet, but not one that was named.

    Processes that start at the same moment, on hosts that share the file system too, get the same key. Raises
    LoomError where others can read or replace the file, or it holds no key, or cannot be read or made.
    """
    path = key_path(named)
    try:
        return _read(path)
    except FileNotFoundError:
        if named is not None:
            raise LoomError(
                f"there is no key file {path}: copy it from where the other processes are, or make one with `loom key "
                f"new --key-file {path}`"
            ) from None
    except OSError as error:
        raise LoomError(f"the key file {path} cannot be read: {error.strerror}") from error
    try:
        _make(path)
        return _read(path)
    except OSError as error:
        raise _not_made(path, error) from error


def new_key(named: str | os.PathLike[str] | None = None) -> Path:
    """Make the key file where there is none yet. LoomError where there is one, or it cannot be made."""
    path = key_path(named)
    try:
        is_made = _make(path)
    except OSError as error:
        raise _not_made(path, error) from error
    if path.is_dir():
        raise LoomError(f"{path} is a directory: name a file in it")
    if not is_made:
        raise LoomError(f"there is a key file already, {path}; `loom key rotate` puts a new key there")
    return path


def rotate_key(named: str | os.PathLike[str] | None = None) -> Path:
    """Put a new key in the place of the old one, at once: who reads the file gets the one or the other.

    The certificate made from the old key is removed. LoomError where there is no key file yet, what is there is no key
    or another user's, or it cannot be replaced.
    """
    from loom.wire.certificates import forget_certificate  # which takes a while to import

    path = key_path(named)
    real = Path(os.path.realpath(path))
    try:
        status = real.stat()
        _check_regular(path, status)
        if status.st_uid != os.geteuid():
            raise LoomError(f"the key file {path} belongs to {_user(status.st_uid)}, who has to do this")
        _check_directories(path)
        _check_content(path)
        draft = _draft(real)
        try:
            os.replace(draft, real)
        except BaseException:
            os.unlink(draft)
            raise
        forget_certificate(path)
    except FileNotFoundError:
        raise LoomError(f"there is no key file {path} yet: `loom key new` makes one") from None
    except OSError as error:
        raise LoomError(f"the key file {path} cannot be replaced: {error.strerror}") from error
    return path


def _read(path: Path) -> Key:
    """Symbolic links are followed; what is checked is the file that was opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a fifo there must not block
    try:
        status = os.fstat(descriptor)
        _check_regular(path, status)
        key = _key_in(descriptor)
        if key is not None:
            _check_rights(path, status)
            _check_directories(path)
    finally:
        os.close(descriptor)
    if key is None:
        raise _no_key(path)
    return key


def _check_content(path: Path) -> None:
    """Nothing else is to be overwritten with a key."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if _key_in(descriptor) is None:
            raise _no_key(path)
    finally:
        os.close(descriptor)


def _no_key(path: Path) -> LoomError:
    return LoomError(
        f"the key file {path} does not hold a key ({_HEX_DIGITS} hexadecimal digits): copy it again from where it came "
        "from (scp -p), or name another one (--key-file, LOOM_KEY_FILE)"
    )


def _not_made(path: Path, error: OSError) -> LoomError:
    return LoomError(
        f"the key file {path} cannot be made: {error.strerror}; name another place with --key-file or LOOM_KEY_FILE"
    )


def _key_in(descriptor: int) -> Key | None:
    """Raises nothing for what it reads, so that no traceback has its local variables."""
    text = os.read(descriptor, _HEX_DIGITS + 2)
    try:
        key = Key.fromhex(text.decode("ascii"))
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None


def _check_rights(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise LoomError(
            f"the key file {path} belongs to {_user(status.st_uid)}, who can read and change it: use one of your own "
            "(--key-file, LOOM_KEY_FILE)"
        )
    if status.st_mode & _OPEN_TO_OTHERS:
        raise LoomError(
            f"the key file {path} is open to others (mode {status.st_mode & 0o777:04o}); "
            f"if nobody can have read it: chmod 600 {path}, else make a new key (loom key rotate), copy it to all "
            "machines and start every Loom process again"
        )


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise LoomError(f"the key file {path} is not a regular file")


def _check_directories(path: Path) -> None:
    """LoomError where another user may put another file in the place of this one, or of what it is a link to."""
    for directory in dict.fromkeys((path.parent, Path(os.path.realpath(path)).parent)):
        status = directory.stat()
        if status.st_uid not in (os.geteuid(), 0):
            raise LoomError(
                f"the directory of the key file, {directory}, belongs to {_user(status.st_uid)}, who can replace the "
                "key: keep it in a directory of your own (--key-file, LOOM_KEY_FILE)"
            )
        if status.st_mode & _WRITABLE_BY_OTHERS and not status.st_mode & stat.S_ISVTX:
            raise LoomError(
                f"others can write to the directory of the key file, {directory} (mode {status.st_mode & 0o777:04o}), "
                f"and so replace the key: chmod go-w {directory}, or keep the key elsewhere (--key-file, LOOM_KEY_FILE)"
            )


def _user(number: int) -> str:
    try:
        return f"the user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"the user {number}"


def _make(path: Path) -> bool:
    """Write the file beside its place and link it there: it appears whole, and only one of several makers wins.

    Returns whether it was this one.
    """
    _make_directory(path.parent)
    if path.is_symlink() and not path.exists():
        raise LoomError(f"the key file {path} is a symbolic link to {os.readlink(path)}, which does not exist")
    _check_directories(path)
    draft = _draft(path)
    try:
        os.link(draft, path)
    except FileExistsError:  # another process was faster: its key is the key
        return False
    finally:
        os.unlink(draft)
    return True


def _make_directory(directory: Path) -> None:
    """With those above it that are missing; each that is made is for its owner alone, whatever the umask."""
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    with contextlib.suppress(FileExistsError):  # made by another process just now, or a file: what comes next says so
        directory.mkdir(mode=0o700)
        directory.chmod(0o700)


def _draft(path: Path) -> Path:
    """A file beside `path` that holds a new key."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            os.fchmod(descriptor, 0o600)
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        os.unlink(draft)
        raise
    return draft
