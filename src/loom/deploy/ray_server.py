"""The actor around the server. Ray restarts it wherever it can; it keeps as many worker actors as are wanted.

What was wanted last is noted with Ray, so that one that is restarted goes on with that.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from typing import Final

import msgspec

from loom import __version__
from loom.deploy.asking import Asker
from loom.deploy.cluster import KeeperThread
from loom.deploy.hosted import HostedServer
from loom.deploy.keeper import Keeper, Wanted
from loom.deploy.nodes import Node
from loom.deploy.ray_names import Settings, first_line, import_ray, note, noted, remove_all
from loom.deploy.ray_nodes import RayNodes
from loom.deploy.saying import Says
from loom.errors import DeployError, LoomError, LoomException
from loom.messages import Load
from loom.net.places import CalledPlace

_log = logging.getLogger(__name__)

_TURN_S: Final = 1.0
_PAUSE_S: Final = 1.0  # a journal may still be in use by the server that died with the actor before
_MOST_PAUSE_S: Final = 30.0
_LOOK_S: Final = 0.5
_MOST_NEWS: Final = 200

News = tuple[int, bool, str]
"""Number, whether it is a problem, text."""


class _Noted(msgspec.Struct):
    wanted: Wanted | None  # None: one on each node


class _Keeper(Keeper):
    """`follows`: there is to be one worker on each node with room for it."""

    follows = False
    nodes_of_ray: RayNodes

    def turn(self, load: Load | None, now: float) -> None:
        try:
            if self.follows:
                n_places = self.nodes_of_ray.n_places()
                self.wanted = Wanted(n_places, n_places)
            super().turn(load, now)
        except (import_ray().exceptions.RayError, RuntimeError) as error:
            self._says.complain(f"Ray does not answer: {first_line(error)}")


class _Says(Says):
    """Keeps what it says for who asks for it."""

    def __init__(self, title: str) -> None:
        super().__init__(title, show=False)
        self.news: list[News] = []
        self._n_said = 0

    def say(self, text: str) -> None:
        super().say(text)
        self._keep(False, text)

    def complain(self, text: str) -> None:
        is_new = not self.problems or self.problems[-1] != text
        super().complain(text)
        if is_new:
            self._keep(True, text)

    def _keep(self, is_problem: bool, text: str) -> None:
        self._n_said += 1
        self.news = [*self.news[-_MOST_NEWS:], (self._n_said, is_problem, text)]


class ServerActor:
    """Its methods are called by drivers and by the workers' actors, several at a time."""

    def __init__(self, settings: Settings) -> None:
        if settings.version != __version__:
            raise DeployError(f"there is hyperloom {__version__} on the nodes, and {settings.version} here")
        self._settings = settings
        self._says = _Says(f"Loom on Ray, {settings.name}")
        self._touched = time.monotonic()
        self._closing = threading.Event()
        self._server = self._start_server()
        self._asker = Asker(CalledPlace(lambda: self._server.address, "the server's actor"), self._server.trust)
        provider = RayNodes(settings)
        n = settings.n_workers or 0
        self._keeper = _Keeper(provider, self._says, self._asker.retire, Wanted(n, n))
        self._keeper.nodes_of_ray = provider
        self._keeper.follows = settings.n_workers is None
        self._go_on()
        self._turns = KeeperThread(self._keeper, self._asker.load, self._says, _TURN_S)
        self._turns.start()
        threading.Thread(target=self._watch, name="loom-watch", daemon=True).start()

    def _start_server(self) -> HostedServer:
        """Where this fails in an actor that ran before, it has to be tried again: nobody makes another one."""
        ray = import_ray()
        pause_s = _PAUSE_S
        while True:
            try:
                settings = self._settings
                host = ray.util.get_node_ip_address()
                return HostedServer(host, settings.journal, settings.key_file, settings.server_options)
            except LoomException as error:
                if not ray.get_runtime_context().was_current_actor_reconstructed:
                    raise
                self._says.complain(f"the server does not start again: {error}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)

    def _go_on(self) -> None:
        """With what was wanted before the actor was restarted."""
        text = noted(self._settings.name)
        if text is not None:
            wanted = msgspec.json.decode(text, type=_Noted).wanted
            self._keeper.follows = wanted is None
            if wanted is not None:
                self._keeper.wanted = wanted

    # -- For the workers' actors, and drivers -------------------------------------------------------------------------

    def where(self) -> tuple[str, int, str]:
        """Host and port of the server, and the mark of its key. ConnectError while it is being started again."""
        return (*self._server.address, self._server.key_mark)

    def sealed_key(self, public: bytes) -> bytes:
        return self._server.sealed_key(public)

    # -- For drivers --------------------------------------------------------------------------------------------------

    def settings(self) -> Settings:
        return self._settings

    def adapt(self, minimum: int, maximum: int, idle_s: float) -> None:
        self._keeper.follows = False
        self._keeper.wanted = Wanted(minimum, maximum, idle_s)
        note(self._settings.name, msgspec.json.encode(_Noted(self._keeper.wanted)))
        self._turns.wake()

    def nodes(self) -> tuple[int, list[Node]]:
        """How many actors there are to be, and those that there are."""
        return self._keeper.n_wanted, self._keeper.nodes

    def touch(self, heard: int) -> list[News]:
        """The driver is still there. What there is to say since the news of that number."""
        self._touched = time.monotonic()
        return [one for one in self._says.news if one[0] > heard]

    def ended(self) -> str:
        """Why the server has ended for good; empty while it has not."""
        return "" if self._server.alive else self._server.story or "the server was told to end"

    def close(self) -> None:
        """End the workers' actors and the server; what is left then is to end this actor."""
        self._closing.set()
        self._turns.close()
        self._keeper.nodes_of_ray.close()
        self._asker.close()
        self._server.close()

    # -- By itself ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closing.wait(_LOOK_S):
            lease_s = self._settings.lease_s
            if lease_s is not None and time.monotonic() - self._touched > lease_s:
                _log.warning("nobody has used %s for %g s: it ends", self._settings.name, lease_s)
                break
            if not self._server.alive:
                if not self._server.story:  # a client has told all to end
                    break
                _log.warning("%s: this actor is restarted", self._server.story)
                os._exit(1)  # by Ray: on another node perhaps, where it can run
        if not self._closing.is_set():
            self.close()
            with suppress(LoomError):  # it waits for the end of this process, too
                remove_all(self._settings.name, by_server=True)
