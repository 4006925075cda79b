"""A server and workers as actors in a Ray cluster."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Self

from loom import __version__
from loom.deploy.asking import Asker
from loom.deploy.cluster import Cluster, Connection
from loom.deploy.keeper import IDLE_S, check_wanted
from loom.deploy.nodes import Node
from loom.deploy.offers import memory_option, offered, plugin_options
from loom.deploy.ray_names import SERVER, Actor, Settings, actors_of, ask, find_server, import_ray, remove_all
from loom.deploy.ray_start import connect_ray, make_server, room, scarcity
from loom.deploy.saying import counted
from loom.deploy.sealing import Receiver
from loom.deploy.status import Status
from loom.errors import ConnectError, DeployError, LoomError
from loom.net.places import CalledPlace, address_line
from loom.net.trust import Trust

START_S: Final = 120.0  # until server and workers are there; Ray may have to start nodes
LEASE_S: Final = 60.0  # one that does not last ends when this process has not said for so long that it is there
_TOUCH_S: Final = 2.0
_LOOK_S: Final = 0.1
_RESTART_S: Final = 15.0  # how long Ray may take to restart the server's actor
_CLOSE_S: Final = 60.0
_FAILURES: Final = 3  # so many before any worker has come, and the start has failed
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SCHEME: Final = "ray://"


class RayCluster(Cluster):
    """A server and workers inside a Ray cluster, which places, supervises and restarts them: nodes are actors.

    `address` is of Ray: None is whatever `ray.init()` finds, else a Ray of its own on this machine; "auto", the Ray
    that runs on this machine; "local", one of its own; "host:port", that of its head node (GCS). Where this process is
    connected to a Ray already, it is that one. Loom has to be installed on its nodes, by `runtime_env` perhaps.

    `n_workers` None: one worker on each node that has room, also on those that join later. A number: so many, one on a
    node as long as there are nodes without one; what finds no room waits in Ray, whose autoscaler sees it. Ray reserves
    for each worker `cpus` (None: those that are free at its node), `gpus`, and `resources`, amounts by Ray's names,
    which tasks ask for by the same ones. `mem`, `memory`, `load` and `load_native` as `LocalCluster` has them; paths
    are those of the nodes.

    With `journal`, a file that all nodes reach, nothing is lost where Ray restarts the server, on whichever node;
    beside it is the key, unless `key_file` names another file that they all reach. Without, the key is made there and
    then.

    With `lasting` it stays when this process ends or leaves the `with` block: `RayCluster.connect(name)` uses it
    elsewhere, and its `close()` ends it. One that is not ends also where this process is killed, after a minute.

    `start` fails where nothing has come within `start_timeout_s`, and says what Ray has no room for.
    """

    title = "Loom on Ray"

    def __init__(
        self,
        address: str | None = None,
        n_workers: int | None = None,
        cpus: int | None = None,
        *,
        name: str | None = None,
        lasting: bool = False,
        gpus: int | None = None,
        mem: int | str | None = None,
        resources: Mapping[str, int] | None = None,
        memory: int | str | None = None,
        load: Sequence[str] | None = None,
        load_native: Sequence[str | os.PathLike[str]] | None = None,
        journal: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        server_options: Sequence[str] = (),
        worker_options: Sequence[str] = (),
        runtime_env: Mapping[str, Any] | None = None,
        start_timeout_s: float = START_S,
        progress: bool | None = None,
    ) -> None:
        super().__init__(progress)
        if n_workers is not None:
            check_wanted(n_workers, n_workers)
        if name is None:
            if lasting:
                raise LoomError("a cluster that lasts needs a name, by which it is found: RayCluster(name=...)")
            name = secrets.token_hex(4)
        extras, options = offered(1 if cpus is None else cpus, gpus or 0, mem, resources)
        options = options[2:]  # without the cpus, which may differ from node to node
        options += [*memory_option(memory), *plugin_options(load or (), load_native or ()), *worker_options]
        reserved: dict[str, float] = {**(resources or {}), **({"GPU": gpus} if gpus else {})}
        self._settings = Settings(
            name=_checked_name(name),
            version=__version__,
            n_workers=n_workers,
            cpus=cpus,
            resources=reserved,
            extras=extras,
            worker_options=tuple(options),
            server_options=tuple(server_options),
            journal=None if journal is None else os.path.abspath(journal),
            key_file=None if key_file is None else os.path.abspath(key_file),
            runtime_env=runtime_env,
            lease_s=None if lasting else LEASE_S,
        )
        self._ray_address = address
        self._start_timeout_s = start_timeout_s
        self._joins = False
        self._is_ours = True  # to be ended
        self._owns_ray = False
        self._server: Actor = None
        self._trust: Trust | None = None
        self._mark = ""
        self._address = ""
        self._known: tuple[int, list[Node]] = n_workers or 0, []
        self._heard = 0
        self._hearing = threading.Lock()
        self._left = threading.Event()

    @classmethod
    def connect(cls, name: str, address: str | None = None, *, progress: bool | None = None) -> Self:
        """The one of that name, which somebody has started with `lasting`. DeployError where there is none."""
        cluster = cls(address or "auto", name=name, lasting=True, progress=progress)  # it is in no Ray of our own
        cluster._joins = True
        cluster._is_ours = False  # where this fails
        cluster.start()
        cluster._is_ours = True
        return cluster

    @classmethod
    def from_url(cls, url: str, key_file: str | os.PathLike[str] | None = None) -> Self:
        """Of "ray://ADDRESS", with ADDRESS as above or empty; of "ray://ADDRESS/NAME", the lasting one of that name,
        which `close` only leaves.

        Ray's own "ray://host:10001" is another thing (Ray Client), which this does not speak.
        """
        address, _, name = url.removeprefix(_SCHEME).partition("/")
        if not url.startswith(_SCHEME) or "/" in name:
            raise LoomError(
                f"{url!r:.200} is no address of a Ray: write ray://auto, ray://HOST:PORT or ray://HOST:PORT/NAME"
            )
        if not name:
            return cls(address or None, key_file=key_file)
        if key_file is not None:
            raise LoomError("key_file= is for a cluster that is started; one that is there has its key")
        cluster = cls.connect(name, address or None)
        cluster._is_ours = False
        return cluster

    @property
    def name(self) -> str:
        return self._settings.name

    @property
    def address(self) -> str:
        return self._address

    def connection(self) -> Connection:
        if self._trust is None:
            self.start()
        else:
            self._follow_key()
        assert self._trust is not None
        place = CalledPlace(partial(self._locate, self._mark), f"the actor {SERVER!r} of {self.name!r} in Ray")
        return Connection(place, self._trust)

    def adapt(self, minimum: int, maximum: int, idle_s: float = IDLE_S) -> None:
        wanted = check_wanted(minimum, maximum, idle_s)
        self._check_started()
        ask(self._server, "adapt", *wanted)

    def status(self) -> Status:
        self._hear()
        return super().status()

    def leave(self) -> None:
        """Let go of a cluster that lasts: it goes on without this process."""
        if self._settings.lease_s is not None:
            raise LoomError("this cluster ends with the process that made it: RayCluster(..., lasting=True) does not")
        with self._state_lock:
            if self._is_started and not self._is_closed:
                self._is_closed = True
                if self._asker is not None:
                    self._asker.close()
                self._let_go()

    def __exit__(self, *exc_info: Any) -> None:
        if self._settings.lease_s is None:
            self.leave()
        else:
            self.close()

    # -- Starting -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._owns_ray = connect_ray(self._ray_address, self._says)
        try:
            existing = find_server(self.name)
        except ValueError:
            existing = None
        if self._joins:
            if existing is None:
                raise DeployError(
                    f"there is no cluster {self.name!r} in this Ray: RayCluster(name=..., lasting=True) makes one"
                )
            self._server = existing
            self._settings = ask(existing, "settings")
        elif existing is not None:
            self._is_ours = False
            raise DeployError(
                f"there is a cluster {self.name!r} in this Ray already: RayCluster.connect({self.name!r}) uses it, and "
                f"RayCluster.connect({self.name!r}).close() ends it"
            )
        else:
            self._server = make_server(self._settings)
        deadline = time.monotonic() + self._start_timeout_s
        self._find_server(deadline)
        threading.Thread(target=self._touch, name="loom-touch", daemon=True).start()
        if not self._joins:
            self._await_workers(deadline)

    def _find_server(self, deadline: float) -> None:
        """Until it says where it is, and has given the key."""
        self._says.say("starting the server's actor")
        try:
            host, port = self._take_key(deadline)
        except ConnectError as error:
            raise DeployError(f"the server's actor has not started; {error}; {room(['CPU'])}") from error
        self._address = address_line(host, port)
        self._says.say(f"the server is at {self._address}")

    def _take_key(self, deadline: float) -> tuple[str, int]:
        """Sealed, from the server's actor, where it is not the one that is known. Where the server is.

        ConnectError where that does not say so until then.
        """
        while True:
            try:
                host, port, mark = ask(self._server, "where")
                if mark != self._mark:
                    receiver = Receiver()
                    self._trust = Trust(receiver.open(ask(self._server, "sealed_key", receiver.public)))
                    self._mark = mark
                return host, port
            except ConnectError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_LOOK_S)

    def _await_workers(self, deadline: float) -> None:
        """All that are wanted; where the time is over, some."""
        said = -1
        while True:
            self._hear()
            n_wanted, nodes = self._nodes()
            n_there = len(self._ask().load().workers)
            if n_there != said:
                self._says.say(f"{n_there} of {counted(n_wanted, 'worker')} there")
                said = n_there
            if n_there >= n_wanted and (n_there or self._settings.n_workers == 0):
                return
            has_failed = n_there == 0 and len(self._says.problems) >= _FAILURES
            if has_failed or time.monotonic() > deadline:
                break
            self._check_alive()
            time.sleep(_LOOK_S)
        n_waiting = sum(node.state == "waiting" for node in nodes)
        limit = "" if has_failed else f" within {self._start_timeout_s:g} s"
        story = f"{n_there} of {counted(max(1, n_wanted), 'worker')} came{limit}: {scarcity(self._settings, n_waiting)}"
        if n_there == 0:
            raise DeployError("; ".join([story, *self._says.problems]))
        self._says.complain(story)

    # -- Going on -----------------------------------------------------------------------------------------------------

    def _locate(self, mark: str) -> tuple[str, int]:
        """For clients, at each connect and reconnect. `mark`: of the key that they have."""
        host, port, found = ask(self._server, "where")
        if found != mark:
            raise ConnectError(
                "the server was lost and started again without a journal (RayCluster(journal=...) keeps one): what it "
                "had is gone, and there is a new key"
            )
        self._address = address_line(host, port)
        return host, port

    def _follow_key(self) -> None:
        """A server that is started again without a journal makes a new one."""
        before = self._mark
        self._take_key(time.monotonic() + _RESTART_S)
        if self._mark != before and self._asker is not None:
            self._asker.close()
            self._asker = None

    def _ask(self) -> Asker:
        if self._asker is not None:
            self._follow_key()
        return super()._ask()

    def _touch(self) -> None:
        while not self._left.wait(_TOUCH_S):
            self._hear()

    def _hear(self) -> None:
        """Say that this process is here, and pass on what there is to say."""
        if self._server is None:
            return
        with self._hearing:
            try:
                news = ask(self._server, "touch", self._heard)
            except LoomError:  # it is being restarted, or gone: who asks something else hears why
                return
            for number, is_problem, text in news:
                self._heard = number
                (self._says.complain if is_problem else self._says.say)(text)

    def _nodes(self) -> tuple[int, list[Node]]:
        if self._server is None or self._is_closed:
            return self._known
        try:
            self._known = ask(self._server, "nodes")
        except ConnectError as error:
            self._says.complain(f"the server's actor: {error}")
        return self._known

    def _check_alive(self) -> None:
        try:
            ended = ask(self._server, "ended")
        except ConnectError:  # it is being restarted
            return
        if ended:
            raise DeployError(f"the server has ended: {ended}")

    # -- Ending -------------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        self._left.set()
        try:
            if self._is_ours and self._server is not None and import_ray().is_initialized():
                self._remove()
        finally:
            self._let_go()

    def _remove(self) -> None:
        self._says.say("ending actors and server")
        try:
            if actors_of(self.name):  # else a client has ended it
                self._end_in_order()
            remove_all(self.name)
        except (import_ray().exceptions.RayError, RuntimeError) as error:
            raise DeployError(f"Ray does not answer, and may still have actors of this cluster: {error}") from error

    def _end_in_order(self) -> None:
        try:
            ask(self._server, "close", timeout_s=_CLOSE_S)
        except LoomError as error:
            self._says.complain(f"the server's actor does not end in good order: {error}")

    def _let_go(self) -> None:
        self._left.set()
        if self._owns_ray:
            import_ray().shutdown()


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise LoomError(f"{name!r:.100} is no name: use letters, digits, '-', '_' and '.', at most 64")
    return name
