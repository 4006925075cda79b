"""The other end of an ssh connection: `python -m loom.deploy.ssh_start` runs one worker that ends with the connection.

Its standard input brings one line, an `Order` as JSON, with the key of the cluster: it is nowhere else but in a file of
a private directory, which goes with the worker however it ends. Then nothing comes any more, and when the input closes
the worker has to go.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType
from typing import Final

import msgspec

from loom.deploy.private import PrivateDirectory
from loom.wire.handshake import VERSION

MARK: Final = b"loom-ssh "  # what comes before it on standard output is the shell's
FAILED_STATUS: Final = 75
_MAX_LINE_BYTES: Final = 1 << 20
_LEAVE_S: Final = 20.0  # less than the other end waits before it cuts the connection
_KILL_S: Final = 5.0


class Order(msgspec.Struct, frozen=True):
    """The worker's arguments and environment. Either `key` (its file's content) or `key_file` (a file of this host) is
    given. `share`: so many workers of this host divide its cores, 0 where the arguments say how many to take.
    """

    version: str
    arguments: list[str]
    environment: dict[str, str]
    directory: str
    key: str
    key_file: str
    share: int

    def __repr__(self) -> str:
        return "<Order>"  # it has the key


class Started(msgspec.Struct, frozen=True):
    """What is said on standard output, after MARK, when the worker has been started. `cpus`: those it offers, or 0."""

    cpus: int


class _Refused(Exception):
    pass


def main() -> None:
    try:
        order = _read_order()
        status = _run(order)
    except _Refused as refused:
        print(f"loom-ssh: {refused}", file=sys.stderr, flush=True)
        status = FAILED_STATUS
    sys.exit(status)


def _read_order() -> Order:
    """Nothing comes after it, so it may be read in pieces."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece or len(line) > _MAX_LINE_BYTES:
            raise _Refused("the connection ended before it was said what to do")
        line += piece
    try:
        order = msgspec.json.decode(line, type=Order)
    except msgspec.DecodeError:
        version = "another version"
    else:
        if order.version == VERSION:
            return order
        version = order.version
    raise _Refused(
        f"this host has Loom {VERSION} for {sys.executable}, and the cluster {version}: install the same on both, or "
        "name another Python with python=..."
    )


def _run(order: Order) -> int:
    if order.directory:
        try:
            os.chdir(os.path.expanduser(order.directory))
        except OSError as error:
            raise _Refused(f"directory {order.directory}: {error.strerror}") from None
    try:
        private = PrivateDirectory("loom-ssh-")
    except OSError as error:
        raise _Refused(f"no private directory for the key can be made: {error}") from None
    try:
        return _supervise(order, private)
    finally:
        private.remove()


def _supervise(order: Order, private: PrivateDirectory) -> int:
    key_file = os.path.expanduser(order.key_file)
    if order.key:
        key_file = private.file("key")
        with open(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(order.key)
    elif not os.path.exists(key_file):
        raise _Refused(f"there is no key file {order.key_file} here: leave out remote_key_file, and the key is copied")
    arguments, cpus = list(order.arguments), 0
    if order.share:
        cpus = max(1, len(os.sched_getaffinity(0)) // order.share)
        arguments = ["--cpus", str(cpus), *arguments]
    worker = subprocess.Popen(
        [sys.executable, "-m", "loom.cli.worker", "--until-stdin-closes", *arguments],
        stdin=subprocess.PIPE,
        stdout=2,  # the other end reads what we say there; what tasks print goes the way of the log
        env={**os.environ, **order.environment, "LOOM_KEY_FILE": key_file},
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        worker.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    with suppress(OSError):  # the connection is gone, which standard input says, too
        os.write(1, b"\n" + MARK + msgspec.json.encode(Started(cpus)) + b"\n")
    return _await(worker)


def _await(worker: subprocess.Popen[bytes]) -> int:
    """The worker's status, as a shell says it."""
    ended = os.pidfd_open(worker.pid)
    try:
        while True:
            readable = select.select([ended, 0], (), ())[0]
            if ended in readable:
                return _status(worker.wait())
            if not _input_goes_on():
                break
        assert worker.stdin is not None
        worker.stdin.close()
        if not select.select([ended], (), (), _LEAVE_S)[0]:
            worker.send_signal(signal.SIGQUIT)  # its supervisor kills it, and removes what it leaves
            if not select.select([ended], (), (), _KILL_S)[0]:
                worker.kill()
        return _status(worker.wait())
    finally:
        os.close(ended)


def _input_goes_on() -> bool:
    """Standard input is readable: there is something, or it has ended."""
    try:
        return bool(os.read(0, 4096))
    except OSError:
        return False


def _status(code: int) -> int:
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    main()
