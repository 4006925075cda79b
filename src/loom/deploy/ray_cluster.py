"""A server and workers as actors in a Ray cluster."""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from loom import __version__
from loom.deploy.cluster import Cluster, Connection, close_all_first
from loom.deploy.keeper import IDLE_S, check_wanted
from loom.deploy.nodes import Node
from loom.deploy.offers import memory_option, offered, plugin_options
from loom.deploy.ray_names import (
    SERVER,
    Actor,
    Settings,
    ask,
    find_server,
    first_line,
    head_node,
    import_ray,
    living_nodes,
    namespace_of,
    on_node,
    remove_all,
)
from loom.deploy.ray_server import ServerActor
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
_CLOSE_S: Final = 60.0
_FAILURES: Final = 3  # so many before any worker has come, and the start has failed
_CONCURRENT: Final = 32  # calls at a time; they are short, and a worker's actor makes one every two seconds
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
        cluster = cls(address, name=name, lasting=True, progress=progress)
        cluster._joins = True
        return cluster.start()

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
            assert self._trust is not None
        return Connection(CalledPlace(self._locate, f"the actor {SERVER!r} of {self.name!r} in Ray"), self._trust)

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
        self._connect_ray()
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
            self._server = self._make_server()
        deadline = time.monotonic() + self._start_timeout_s
        self._find_server(deadline)
        threading.Thread(target=self._touch, name="loom-touch", daemon=True).start()
        if not self._joins:
            self._await_workers(deadline)

    def _connect_ray(self) -> None:
        ray = import_ray()
        close_all_first()  # before Ray does so
        if self._ray_address is not None and self._ray_address.startswith(_SCHEME):
            raise DeployError(
                f"{self._ray_address}: Ray Client is not supported; run this on a node of the Ray cluster, with 'auto' "
                "or HOST:PORT of its head"
            )
        if not ray.is_initialized():
            self._says.say(f"connecting to Ray at {self._ray_address or 'whatever is here'}")
            try:
                ray.init(address=self._ray_address, log_to_driver=False, logging_level=logging.WARNING)
            except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise DeployError(f"no Ray at {self._ray_address or 'this machine'}: {first_line(error)}") from error
            self._owns_ray = True
        self._says.say(f"{counted(len(living_nodes()), 'node')} in Ray; {self._room()}")

    def _make_server(self) -> Actor:
        ray = import_ray()
        options: dict[str, Any] = {}
        head = head_node()
        if head is not None:  # which stays longest
            options |= {"label_selector": on_node(head), "fallback_strategy": [{"label_selector": {}}]}
        if self._settings.runtime_env is not None:
            options["runtime_env"] = dict(self._settings.runtime_env)
        make = ray.remote(ServerActor).options(
            name=SERVER,
            namespace=namespace_of(self.name),
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=_CONCURRENT,
            num_cpus=0,
            **options,
        )
        return make.remote(self._settings)

    def _find_server(self, deadline: float) -> None:
        """Until it says where it is, and has given the key."""
        self._says.say("starting the server's actor")
        receiver = Receiver()
        while True:
            try:
                host, port, self._mark = ask(self._server, "where")
                self._trust = Trust(receiver.open(ask(self._server, "sealed_key", receiver.public)))
                break
            except ConnectError as error:
                if time.monotonic() > deadline:
                    raise DeployError(f"the server's actor has not started; {error}; {self._room()}") from error
                time.sleep(_LOOK_S)
        self._address = address_line(host, port)
        self._says.say(f"the server is at {self._address}")

    def _await_workers(self, deadline: float) -> None:
        """All that are wanted; where the time is over, some."""
        said = -1
        while True:
            self._hear()
            n_wanted, _ = self._nodes()
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
        limit = "" if has_failed else f" within {self._start_timeout_s:g} s"
        story = f"{n_there} of {counted(max(1, n_wanted), 'worker')} came{limit}: {self._scarcity()}"
        if n_there == 0:
            raise DeployError("; ".join([story, *self._says.problems]))
        self._says.complain(story)

    def _scarcity(self) -> str:
        settings = self._settings
        waiting = sum(node.state == "waiting" for node in self._nodes()[1])
        each = {"CPU": settings.cpus or "all", **settings.resources}
        needs = ", ".join(
            f"{amount:g} {name}" if amount != "all" else f"1 {name} or more" for name, amount in each.items()
        )
        return f"{counted(waiting, 'actor')} wait in Ray; a worker takes {needs} of one node; {self._room()}"

    def _room(self) -> str:
        """What Ray has, in words."""
        ray = import_ray()
        free = ray.available_resources()
        names = ["CPU", *(["GPU"] if self._settings.resources.get("GPU") else [])]
        names += [name for name in self._settings.resources if name != "GPU"]
        all_of = ray.cluster_resources()
        return "Ray has " + ", ".join(f"{all_of.get(n, 0):g} {n} ({free.get(n, 0):g} free)" for n in names)

    # -- Going on -----------------------------------------------------------------------------------------------------

    def _locate(self) -> tuple[str, int]:
        """For clients, at each connect and reconnect."""
        host, port, mark = ask(self._server, "where")
        if mark != self._mark:
            raise LoomError(
                "the server was lost and started again without a journal (RayCluster(journal=...) keeps one): what it "
                "had is gone; connect anew"
            )
        self._address = address_line(host, port)
        return host, port

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
            ask(self._server, "close", timeout_s=_CLOSE_S)
        except LoomError as error:
            self._says.complain(f"the server's actor does not end in good order: {error}")
        remove_all(self.name)

    def _let_go(self) -> None:
        self._left.set()
        if self._owns_ray:
            import_ray().shutdown()


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise LoomError(f"{name!r:.100} is no name: use letters, digits, '-', '_' and '.', at most 64")
    return name
