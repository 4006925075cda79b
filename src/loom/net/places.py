"""Where a server is. It may have moved: who connects, and connects again, asks each time."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from loom.errors import ConnectError, LoomError
from loom.files import replace_own
from loom.limits import LAST_PORT

_MOST_BYTES = 1024  # of an address file


class Place(Protocol):
    @property
    def may_move(self) -> bool:
        """Whether the next answer may be another one."""

    async def find(self) -> tuple[str, int]:
        """Host and port. ConnectError where nobody knows now; others that say what is wrong."""


class FixedPlace:
    may_move = False

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port

    def __str__(self) -> str:
        return address_line(*self._address)

    async def find(self) -> tuple[str, int]:
        return self._address


class FilePlace:
    """What an address file says at the time."""

    may_move = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)

    def __str__(self) -> str:
        return self._path

    async def find(self) -> tuple[str, int]:
        return read_address(self._path)


class CalledPlace:
    """What a function says, which may take its time: it is called in a thread. `name` is for people."""

    may_move = True

    def __init__(self, find: Callable[[], tuple[str, int]], name: str) -> None:
        self._find = find
        self._name = name

    def __str__(self) -> str:
        return self._name

    async def find(self) -> tuple[str, int]:
        try:
            return await asyncio.to_thread(self._find)
        except LoomError:
            raise
        except Exception as error:  # of whatever engine is asked
            raise ConnectError(f"{self._name} does not say where the server is: {error}") from error


def address_line(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def write_address(path: str, host: str, port: int) -> None:
    """Say in a file where the server is, so that whoever reads it finds the whole. LoomError where that fails."""
    try:
        replace_own(path, f"{host} {port}\n".encode())
    except OSError as error:
        raise LoomError(f"the address file {path} cannot be written: {error.strerror}") from error


def remove_address(path: str, host: str, port: int) -> None:
    """The server ends. A file that another one has written meanwhile stays."""
    with suppress(ConnectError, OSError):
        if read_address(path) == (host, port):
            os.unlink(path)


def _open_at_once(path: str, flags: int) -> int:
    """A fifo would be waited for, and the loop with it."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_address(path: str) -> tuple[str, int]:
    """ConnectError where there is no such file, or it is none of a server."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            text = file.read(_MOST_BYTES) or b""  # nothing yet of what is no file
    except OSError as error:
        raise ConnectError(f"no server has written its address to {path} ({error.strerror})") from error
    words = text.decode(errors="replace").split()
    if len(words) != 2 or not words[1].isascii() or not words[1].isdecimal() or not 0 < int(words[1]) <= LAST_PORT:
        raise ConnectError(f"{path} is no address file: it has {text[:100]!r}, not a host and a port")
    return words[0], int(words[1])
