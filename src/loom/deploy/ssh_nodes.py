"""Workers on other hosts: the provider whose nodes are ssh processes."""

from __future__ import annotations

import itertools
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Final, NamedTuple

import msgspec

from loom.deploy.nodes import Node, NodeState, Offer
from loom.deploy.processes import end_processes, goes_with_us
from loom.deploy.saying import Says
from loom.deploy.ssh_hosts import NO_SSH, Host
from loom.deploy.ssh_start import MARK, Order, Started
from loom.deploy.ssh_words import ending
from loom.errors import DeployError
from loom.net.places import address_line
from loom.wire.handshake import VERSION

# sshd refuses at random when more than 10 connections are on their way in at a time (its MaxStartups).
_LOGINS_AT_A_TIME: Final = 4
_KEPT_LINES: Final = 30
_MAX_LINE_BYTES: Final = 64 * 1024
_TUNNEL: Final = re.compile(r"Allocated port (\d+) for remote forward")


class Launch(NamedTuple):
    """How a worker is started. `ssh` is a call without the host, `command` what the shell there runs. `key` is the
    content of the key file, or empty where `key_file` names one of the hosts. `share`: see `ssh_start.Order`.
    """

    ssh: Sequence[str]
    command: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    key: str
    key_file: str
    share: int
    is_tunnel: bool

    def __repr__(self) -> str:
        return "<Launch>"  # it has the key

    def order(self, name: str, address: str, port: int) -> bytes:
        """What the other end reads, for a worker of that name and the server at that place."""
        arguments = ["--name", name, *self.arguments, address, str(port)]
        order = Order(VERSION, arguments, dict(self.environment), self.directory, self.key, self.key_file, self.share)
        return msgspec.json.encode(order) + b"\n"


class Session:
    """One ssh process, and a thread that starts it and reads what it says. `changed` is called when its state has."""

    def __init__(
        self,
        name: str,
        host: Host,
        launch: Launch,
        place: tuple[str, int],
        logins: threading.Semaphore,
        changed: Callable[[], None],
    ) -> None:
        """`place`: where the host reaches the server, unless that is through a tunnel."""
        self.name = name
        self.host = host
        self.state: NodeState = "waiting"
        self.story = ""
        self.cpus = 0  # as the host has told, where nobody has said how many
        connects = not launch.is_tunnel and place[0]
        self.aim = f"connects to the server at {address_line(*place)}" if connects else ""
        self._launch = launch
        self._place = place
        self._logins = logins
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None
        self._said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._lock = threading.Lock()
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="loom-ssh", daemon=True)
        self._thread.start()

    def begin_end(self) -> subprocess.Popen[bytes] | None:
        """From now on nothing is started, and no end is a failure. Returns the process, where there is one."""
        with self._lock:
            self._is_ending = True
            if self._process is None:
                self.state = "ended"
            return self._process

    def join(self) -> None:
        """Once the process was ended."""
        self._thread.join()

    # -- The thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        status = 0
        try:
            process = self._log_in()
            if process is not None:
                status = process.wait()
                _close(process)
        except OSError as error:
            self.story = f"could not be started: {error}"
        was_running = self.state == "running"
        if status and not self._is_ending:
            self.story = ending(self.host, status, self._said, was_running=was_running)
        self.state = "ended"
        self._changed()

    def _log_in(self) -> subprocess.Popen[bytes] | None:
        """Returns when the process says nothing any more, and is about to end."""
        with self._logins:
            with self._lock:
                if self._is_ending:
                    return None
                self._process = process = self._start()
            if not self._launch.is_tunnel:
                self._tell(*self._place)
            selector = selectors.DefaultSelector()
            assert process.stdout is not None
            assert process.stderr is not None
            lines = {process.stdout: b"", process.stderr: b""}
            for stream in lines:
                selector.register(stream, selectors.EVENT_READ)
            while self.state == "waiting" and selector.get_map():
                self._read(selector, lines)
        while selector.get_map():
            self._read(selector, lines)
        selector.close()
        return process

    def _start(self) -> subprocess.Popen[bytes]:
        words = [*self._launch.ssh, *self.host.words(), self._launch.command]
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the script, which closes what it has in its own order
            )
        except FileNotFoundError:
            raise OSError(NO_SSH) from None
        goes_with_us(process)
        return process

    def _tell(self, address: str, port: int) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        order = memoryview(self._launch.order(self.name, address, port))
        with suppress(OSError, ValueError):  # ssh has ended, and says why; or it was told to end
            while order:
                order = order[self._process.stdin.write(order) :]

    def _read(self, selector: selectors.DefaultSelector, lines: dict[IO[bytes], bytes]) -> None:
        """What is there, line by line."""
        for key, _ in selector.select():
            stream = key.fileobj
            assert not isinstance(stream, int)
            piece = os.read(stream.fileno(), 65536)
            if not piece:
                selector.unregister(stream)
            *whole, rest = (lines[stream] + piece).split(b"\n")  # type: ignore[index]
            if not piece or len(rest) > _MAX_LINE_BYTES:
                whole, rest = [*whole, rest], b""
            lines[stream] = rest  # type: ignore[index]
            assert self._process is not None
            for line in whole:
                if stream is self._process.stdout:
                    self._on_word(line)
                elif line:
                    self._on_line(line.decode(errors="replace"))

    def _on_word(self, line: bytes) -> None:
        """Of standard output: the shell's, but for one."""
        if line.startswith(MARK) and self.state == "waiting":
            with suppress(msgspec.DecodeError):
                self.cpus = msgspec.json.decode(line[len(MARK) :], type=Started).cpus
                self.state = "running"
                self._said.clear()
                self._changed()

    def _on_line(self, line: str) -> None:
        """Of standard error: what ssh, the shell and the worker have to say."""
        self._said.append(line)
        if self.state == "running":
            with suppress(OSError, ValueError):  # it is closed, and the worker is to go on
                print(f"[{self.name}] {line}", file=sys.stderr, flush=True)
        elif self._launch.is_tunnel:
            found = _TUNNEL.search(line)
            if found is not None:
                self._tell("127.0.0.1", int(found[1]))


class SSHWorkers:
    """`n_each` workers on each host at most, each a `Session`. New ones go where there are fewest, and rather not to a
    host where the last one has failed. `places`: where each host reaches the server. `changed` is called when
    something has begun to run or has ended.
    """

    what = "worker"

    def __init__(
        self,
        hosts: Sequence[Host],
        n_each: int,
        launch: Launch,
        places: Mapping[Host, tuple[str, int]],
        offer: Offer,
        says: Says,
        changed: Callable[[], None],
    ) -> None:
        self._hosts = hosts
        self._n_each = n_each
        self._launch = launch
        self._places = places
        self._offer = offer
        self._says = says
        self._tell = changed
        self._numbers = itertools.count(1)
        self._logins = {host: threading.Semaphore(_LOGINS_AT_A_TIME) for host in hosts}
        self._failed: set[Host] = set()
        self._sessions: dict[str, Session] = {}
        self._change = threading.Condition()
        self._begun: set[str] = set()  # sessions of which was said that they run

    @property
    def offer(self) -> Offer:
        """Where the hosts say how many cores they have: those of the largest."""
        told = max((session.cpus for session in list(self._sessions.values())), default=0)
        return self._offer._replace(cpus=max(self._offer.cpus, told))

    def launch(self, count: int) -> None:
        for _ in range(count):
            held = [session.host for session in self._sessions.values()]
            free = [host for host in self._hosts if held.count(host) < self._n_each]
            if not free:
                raise DeployError(f"each of the {len(self._hosts)} hosts has {self._n_each} workers already")
            host = min(free, key=lambda one: (one in self._failed, held.count(one)))
            name = f"ssh-{host.label}-{next(self._numbers)}"
            self._sessions[name] = Session(
                name, host, self._launch, self._places[host], self._logins[host], self._on_change
            )

    def _on_change(self) -> None:
        with self._change:
            self._change.notify_all()
        self._tell()

    def settle(self, timeout_s: float) -> None:
        """Until each of those launched runs or has failed."""
        deadline = time.monotonic() + timeout_s
        with self._change:
            self._change.wait_for(
                lambda: all(session.state != "waiting" for session in self._sessions.values()),
                deadline - time.monotonic(),
            )

    def failures(self) -> list[str]:
        """Why those that have ended and are still in `nodes()` did; empty where any other is there."""
        sessions = list(self._sessions.values())
        if any(session.state != "ended" for session in sessions):
            return []
        return list(dict.fromkeys(session.story for session in sessions if session.story))

    def nodes(self) -> list[Node]:
        found = []
        for name, session in list(self._sessions.items()):
            state = session.state
            found.append(Node(name, state, (name,), session.story if state == "ended" else session.aim))
            if state == "ended":
                del self._sessions[name]
                self._begun.discard(name)
                if session.story:
                    self._failed.add(session.host)
            elif state == "running" and name not in self._begun:
                self._begun.add(name)
                self._failed.discard(session.host)
                self._says.say(f"{name} runs on {session.host.text}")
        return found

    def end(self, nodes: Sequence[Node]) -> None:
        self._end([self._sessions[node.id] for node in nodes if node.id in self._sessions])

    def close(self) -> None:
        self._end(list(self._sessions.values()))
        self._sessions.clear()

    def _end(self, sessions: Sequence[Session]) -> None:
        """The other end has some 30 s; ssh is gone when that is."""
        begun = [(session, process) for session in sessions if (process := session.begin_end()) is not None]
        for session, process in begun:
            if session.state == "waiting":  # while it connects it does not look at its input
                process.terminate()
        end_processes([process for _, process in begun])
        for session, _ in begun:
            session.join()


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.close()
