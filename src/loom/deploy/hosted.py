"""A server and workers inside processes of another engine, which places them, supervises them, and ends them.

Each has a private directory with its files, the key among them, which is there as long as it is. Who needs the key asks
the process that has the server, and gets it sealed (loom.deploy.sealing).
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from loom.deploy.kept import KeptProcess
from loom.deploy.private import PrivateDirectory
from loom.deploy.sealing import seal
from loom.errors import ConnectError, DeployError, LoomException
from loom.files import replace_own
from loom.net.places import read_address, write_address
from loom.net.trust import Trust
from loom.wire.keys import Key, load_key, new_key

_log = logging.getLogger(__name__)

LOOK_S: Final = 2.0  # how often a worker's host asks where the server is
_LOOK_SOON_S: Final = 0.25  # and how often while nobody knows
_LEAVE_S: Final = 10.0  # how long a process may take to end when told to: a checkpoint may be on its way
_START_S: Final = 60.0
_WAIT_S: Final = 0.02


def key_mark(key: bytes) -> str:
    """Says whether two processes have the same key, and nothing else about it."""
    return hashlib.sha256(b"loom key mark" + key).hexdigest()[:16]


class HostedServer:
    """A server at `host`, an address of this machine that the others reach, at any free port.

    With a journal (a path) it goes on from there, wherever it is started again, and its key is kept beside the journal,
    in `<journal>.key`, unless `key_file` names a file. Without either the key is new. `options` are more of those of
    `loom-server`. Raises DeployError where it does not start, with what it said.
    """

    def __init__(
        self, host: str, journal: str | None = None, key_file: str | None = None, options: Sequence[str] = ()
    ) -> None:
        self._host = host
        self._options = [*options, *([] if journal is None else ["--journal", journal])]
        self._directory = PrivateDirectory("loom-server-")
        self._address_file = self._directory.file("address")
        try:
            self._key_file, self._key = _key_of_server(self._directory.file("key"), journal, key_file)
            self.key_mark = key_mark(self._key)
            self._process = KeptProcess("server", self._arguments)
        except BaseException:
            self._directory.remove()
            raise
        try:
            self._await_address()
        except BaseException:
            self.close()
            raise

    def _arguments(self) -> list[str]:
        """At the same port again, for who has not heard that it died; at any where it did not come up there."""
        port = 0
        with suppress(ConnectError):  # who is killed leaves the file
            port = self.address[1]
            os.unlink(self._address_file)
        where = ["--host", self._host, "-p", str(port), "--address-file", self._address_file]
        return [*where, "--key-file", self._key_file, *self._options]

    def _await_address(self) -> None:
        deadline = time.monotonic() + _START_S
        while not self._process.over.wait(_WAIT_S):
            with suppress(ConnectError):
                self.address  # noqa: B018  it raises while there is none
                return
            if time.monotonic() > deadline:
                raise DeployError(f"the server has not said where it listens within {_START_S:g} s")
        raise DeployError(self._process.story or "the server ended as soon as it had started")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. ConnectError while it is being started again."""
        return read_address(self._address_file)

    @property
    def alive(self) -> bool:
        """False: it has ended, and is not started again. `story` says why, where it was not told to."""
        return not self._process.over.is_set()

    @property
    def story(self) -> str:
        return self._process.story

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def trust(self) -> Trust:
        """For who is in this process."""
        return Trust(self._key)

    def sealed_key(self, public: bytes) -> bytes:
        """For the Receiver with that public half. LoomError where that is none."""
        return seal(public, self._key)

    def close(self) -> None:
        self._process.close(_LEAVE_S)
        self._directory.remove()


class HostedWorker:
    """A worker of that name with so many cpus. `locate` asks the engine where the server is, every LOOK_S seconds, in a
    thread; what it raises means that nobody knows at the time. `options` are more of those of `loom-worker`.
    """

    def __init__(
        self, name: str, cpus: int, locate: Callable[[], tuple[str, int]], key: bytes, options: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.key_mark = key_mark(key)
        self._locate = locate
        self._directory = PrivateDirectory("loom-worker-")
        self._address_file = self._directory.file("address")
        key_file = self._directory.file("key")
        files = ["--address-file", self._address_file, "--key-file", key_file]
        arguments = [*files, "--name", name, "--cpus", str(cpus), *options]
        self._closing = threading.Event()
        try:
            replace_own(key_file, key.hex().encode() + b"\n")
            self._process = KeptProcess("worker", lambda: arguments)
        except BaseException:
            self._directory.remove()
            raise
        self._looking = threading.Thread(target=self._look, name="loom-where", daemon=True)
        self._looking.start()

    def _look(self) -> None:
        known: tuple[str, int] | None = None
        while not self._closing.is_set() and self.alive:
            wait_s = _LOOK_SOON_S
            try:
                found = self._locate()
                if found != known:
                    write_address(self._address_file, *found)
                    known = found
                wait_s = LOOK_S
            except LoomException as error:
                _log.debug("where the server is: %s", error)
            except Exception as error:  # the engine's own kinds
                _log.debug("where the server is: %s: %s", type(error).__name__, error)
            self._closing.wait(wait_s)

    @property
    def alive(self) -> bool:
        """False: it has ended, and is not started again."""
        return not self._process.over.is_set()

    @property
    def story(self) -> str:
        """Why it has ended; empty where it did in good order: it was told to leave, or its time was over."""
        return self._process.story

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it has ended for good; False: not within that time."""
        return self._process.over.wait(timeout_s)

    def close(self) -> None:
        """End it at once: what it runs is run again elsewhere."""
        self._closing.set()
        self._process.close(_LEAVE_S)
        self._looking.join(LOOK_S)
        self._directory.remove()


def _key_of_server(private: str, journal: str | None, key_file: str | None) -> tuple[str, Key]:
    """Its file and itself; made where there is none yet, but not one that was named."""
    if key_file is not None:
        return key_file, load_key(key_file)
    path = private if journal is None else f"{journal}.key"
    if not os.path.exists(path):
        new_key(path)
    return path, load_key(path)
