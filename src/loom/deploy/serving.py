"""Clusters whose server is a process of this machine that ends with this one."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from loom.deploy.cluster import Cluster, Connection, KeeperThread
from loom.deploy.keeper import PAUSE_S, Keeper, Wanted, check_wanted
from loom.deploy.nodes import Node, Provider
from loom.deploy.processes import end_processes, start_process
from loom.errors import DeployError, LoomError, LoomException
from loom.executors.deaths import end_text
from loom.net.places import FixedPlace, address_line
from loom.net.trust import find_trust
from loom.wire.keys import key_path

_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what listens there is reached here
_BACKLOG: Final = 64
_LOOK_S: Final = 1.0


def server_socket(host: str, port: int = 0) -> socket.socket:
    """A socket that a server child can be given: its port is known before it runs. DeployError where there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise DeployError(f"cannot listen on {address_line(host, port)}: {error.strerror}") from error


class ServingCluster(Cluster):
    """`_start_server` starts it; that it ends unasked breaks the cluster."""

    def __init__(self, key_file: str | os.PathLike[str] | None, progress: bool | None, *, tls: bool = False) -> None:
        super().__init__(progress)
        self._trust = find_trust(key_file, tls=tls)
        self._key_file = key_path(key_file).absolute()
        self._place: tuple[str, int] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._broken_by: LoomException | None = None
        self._on_broken: Callable[[LoomException], None] = lambda error: None

    def on_broken(self, call: Callable[[LoomException], None]) -> None:
        self._on_broken = call
        if self._broken_by is not None:
            call(self._broken_by)

    def expect_end(self) -> None:
        self._ending = True

    @property
    def address(self) -> str:
        return address_line(*self._place) if self._place is not None else ""

    def connection(self) -> Connection:
        self.start()
        assert self._place is not None
        return Connection(FixedPlace(*self._place), self._trust)

    def _start_server(self, host: str, port: int, options: Sequence[str]) -> int:
        """Its port, any free one for 0. Where it listens everywhere, this machine reaches it on loopback. Raises
        DeployError.
        """
        with server_socket(host, port) as listening:
            port = listening.getsockname()[1]
            descriptor = listening.fileno()
            self._server = start_process(
                "server",
                ["--listening-fd", str(descriptor), *options],
                environment={"LOOM_KEY_FILE": str(self._key_file)},
                pass_fds=(descriptor,),
            )
        self._place = _EVERYWHERE.get(host, host), port
        self._says.say(f"the server listens on {address_line(host, port)}")
        threading.Thread(target=self._watch_server, args=(self._server,), name="loom-watch", daemon=True).start()
        return port

    def _watch_server(self, server: subprocess.Popen[bytes]) -> None:
        status = server.wait()
        if not self._ending:
            self._break(f"the server ended unexpectedly ({end_text(status)})")

    def _break(self, reason: str) -> None:
        self._says.complain(reason)
        self._broken_by = LoomError(f"the {self.title} is broken: {reason}")
        self._on_broken(self._broken_by)

    def _check_alive(self) -> None:
        if self._broken_by is not None:
            raise self._broken_by

    def _close(self) -> None:
        self.expect_end()
        if self._server is not None:
            end_processes([self._server])


class KeptCluster(ServingCluster):
    """One whose nodes a `Keeper` of this process starts and ends; `wanted` is how many there are to be at first."""

    def __init__(
        self, wanted: Wanted, key_file: str | os.PathLike[str] | None, progress: bool | None, *, tls: bool = False
    ) -> None:
        super().__init__(key_file, progress, tls=tls)
        self._wanted = wanted
        self._provider: Provider | None = None
        self._keeper: Keeper | None = None
        self._turns: KeeperThread | None = None

    def adapt(self, minimum: int, maximum: int, idle_s: float = 30.0) -> None:
        self._check_open()
        self._wanted = check_wanted(minimum, maximum, idle_s)
        if self._keeper is not None:
            self._keeper.wanted = self._wanted
        self._wake()

    def expect_end(self) -> None:
        super().expect_end()
        if self._turns is not None:
            self._turns.close()

    def _keep(self, provider: Provider, first_pause_s: float = PAUSE_S) -> None:
        """Launch the first nodes, here and now. `first_pause_s`: before others are, where they end at once."""
        self._provider = provider
        self._keeper = Keeper(provider, self._says, self._retire, self._wanted, first_pause_s)
        self._keeper.turn(None, time.monotonic())

    def _retire(self, names: list[str]) -> None:
        self._ask().retire(names)

    def _go_on_keeping(self) -> None:
        assert self._keeper is not None
        self._turns = KeeperThread(self._keeper, lambda: self._ask().load(), self._says, _LOOK_S)
        self._turns.start()

    def _wake(self) -> None:
        if self._turns is not None:
            self._turns.wake()

    def _nodes(self) -> tuple[int, list[Node]]:
        keeper = self._keeper
        return (keeper.n_wanted, keeper.nodes) if keeper is not None else (self._wanted.minimum, [])

    def _close(self) -> None:
        self.expect_end()
        if self._provider is not None:
            self._provider.close()
        super()._close()
