"""A cluster inside a Dask cluster: the server beside its scheduler, a worker in each of its workers."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loom.deploy.cluster import Cluster, Connection, KeeperThread, close_all_first
from loom.deploy.keeper import Keeper, Wanted, check_wanted
from loom.deploy.nodes import Node
from loom.deploy.offers import memory_option, offered, plugin_options
from loom.deploy.private import PrivateDirectory
from loom.deploy.sealing import Receiver
from loom.errors import ConnectError, DeployError, LoomError, LoomException
from loom.files import replace_own
from loom.net.places import CalledPlace, address_line
from loom.net.trust import Trust, find_trust

if TYPE_CHECKING:
    from loom.deploy.dask_nodes import DaskNodes, Scaling

_URL: Final = "dask://"
START_S: Final = 20.0
_LOOK_S: Final = 0.5  # how often is looked which workers Dask has
_CLOSE_S: Final = 10.0


class _Target(NamedTuple):
    """A Dask scheduler, how its links are encrypted, and the object that scales its cluster, where there is one."""

    address: str
    security: Any
    cluster: Any


class DaskCluster(Cluster):
    """A server and workers on an existing cluster of Dask (distributed), which they follow as it grows and shrinks.

    `dask` is a Dask client, a Dask cluster object (`LocalCluster`, `SLURMCluster` of dask-jobqueue, ...), or the
    address of a scheduler, such as "tcp://host:8786". From the first two, `scale` and `adapt` have Dask start and end
    workers; with an address they say how many of the workers that are there have a Loom worker. `security` is Dask's,
    for an address.

    Each Loom worker takes `threads` of its Dask worker, all of them unless said otherwise, and Dask runs nothing else
    on those meanwhile. What the workers offer besides and which plugins they load is said as for LocalCluster; what
    Dask lets a worker have of memory is theirs unless `mem` and `memory` say otherwise.

    The server listens at the scheduler's address, or at that of `host`. It is restarted when it dies; with `journal`, a
    file over there, it goes on where it was. Its key is made there, unless `key_file` names a file over there. What
    server and workers say goes to the logs of Dask, from `log_level` on. All ends with this object and with this
    process, however that ends; Dask stays. Nodes are Dask workers. `start` fails where the scheduler is not reached
    within `start_timeout_s`.
    """

    title = "Loom on Dask"

    def __init__(
        self,
        dask: Any,
        *,
        threads: int | None = None,
        gpus: int | None = None,
        mem: int | str | None = None,
        resources: Mapping[str, int] | None = None,
        memory: int | str | None = None,
        load: Sequence[str] | None = None,
        load_native: Sequence[str | os.PathLike[str]] | None = None,
        host: str = "",
        journal: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        security: Any = None,
        log_level: str = "warning",
        start_timeout_s: float = START_S,
        progress: bool | None = None,
    ) -> None:
        super().__init__(progress)
        self._target = _find(dask, security)
        close_all_first()
        self._threads = threads
        self._start_timeout_s = start_timeout_s
        self._extras, options = offered(1 if threads is None else threads, gpus, mem, resources)
        options = options[2:]  # without --cpus, which each worker has its own of
        self._log = ["--log-level", log_level]
        self._options = [*self._log, *options, *memory_option(memory), *plugin_options(load or (), load_native or ())]
        self._host = host
        self._journal = None if journal is None else os.fspath(journal)
        self._key_file = None if key_file is None else os.fspath(key_file)
        self._dask: Any = None
        self._provider: DaskNodes | None = None
        self._keeper: Keeper | None = None
        self._turns: KeeperThread | None = None
        self._directory: PrivateDirectory | None = None
        self._trust: Trust | None = None
        self._last_address = ""
        self._ending = False
        self._broken_by: LoomException | None = None
        self._on_broken: Callable[[LoomException], None] = lambda error: None

    @classmethod
    def from_url(cls, url: str, **arguments: Any) -> DaskCluster:
        """Of "dask://host:port", or "dask://tls://host:port" and so on. `arguments` are those of the class."""
        address = url.removeprefix(_URL)
        if not address:
            raise LoomError(f'{url!r}: write the address of a Dask scheduler, such as "dask://host:8786"')
        return cls(address, **arguments)

    def adapt(self, minimum: int, maximum: int, idle_s: float = 30.0) -> None:
        wanted = check_wanted(minimum, maximum, idle_s)
        self._check_started()
        assert self._provider is not None
        assert self._keeper is not None
        assert self._turns is not None
        self._provider.check_scale(minimum)
        self._provider.follows = False
        self._keeper.wanted = wanted
        self._turns.wake()

    @property
    def address(self) -> str:
        return self._last_address

    def connection(self) -> Connection:
        self.start()
        assert self._trust is not None
        return Connection(CalledPlace(self._find_server, f"the Dask scheduler at {self._target.address}"), self._trust)

    def on_broken(self, call: Callable[[LoomException], None]) -> None:
        self._on_broken = call
        if self._broken_by is not None:
            call(self._broken_by)

    def expect_end(self) -> None:
        self._ending = True
        if self._turns is not None:
            self._turns.close()

    # -- Starting -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        from loom.deploy.dask_nodes import DaskNodes, Scaling

        address, security, cluster = self._target
        self._says.say(f"connecting to the Dask scheduler at {address}")
        self._dask = _connected(address, security, self._start_timeout_s)
        self._check_version()
        deployment = f"loom_{secrets.token_hex(4)}"
        scaling: Scaling | None = Scaling(cluster, self._dask) if _can_scale(cluster) else None
        own = (self._threads, self._extras, self._options, scaling, self._follow, self._break, self._says)
        provider = DaskNodes(self._dask, deployment, *own)
        self._place_server(deployment)
        self._provider = provider
        self._take_key(provider)
        self._find_server()
        self._says.say(f"the server is at {self.address}")
        provider.check_fit()
        self._keeper = Keeper(provider, self._says, lambda names: self._ask().retire(names), Wanted(0, 0))
        self._keeper.turn(None, time.monotonic())  # the first ones start here and now
        self._turns = KeeperThread(self._keeper, lambda: self._ask().load(), self._says, _LOOK_S)
        self._turns.start()

    def _check_version(self) -> None:
        """DeployError where the scheduler has another hyperloom, or none."""
        from loom.deploy.dask_nodes import VERSION, wrong_version

        about = self._dask.sync(self._dask.scheduler.versions, packages=["hyperloom"])
        version = about["packages"].get("hyperloom")
        if version != VERSION:
            raise DeployError(f"the Dask scheduler at {self._target.address} has {wrong_version(version)}")

    def _place_server(self, deployment: str) -> None:
        from loom.deploy.dask_scheduler import ServerPlugin

        self._says.say("starting a server there")
        plugin = ServerPlugin(deployment, self._dask.id, self._host, self._journal, self._key_file, tuple(self._log))
        try:
            self._dask.register_plugin(plugin, name=deployment)
        except Exception as error:
            said = str(error) or type(error).__name__
            raise DeployError(f"the Dask scheduler at {self._target.address} cannot run a server: {said}") from error

    def _take_key(self, provider: DaskNodes) -> None:
        """The server's, which comes sealed for this process, into a file that goes with it."""
        receiver = Receiver()
        key = receiver.open(provider.ask("key", public=receiver.public)["sealed"])
        self._directory = PrivateDirectory("loom-key-")
        path = self._directory.file("key")
        replace_own(path, key.hex().encode() + b"\n")
        self._trust = find_trust(path)

    def _find_server(self) -> tuple[str, int]:
        assert self._provider is not None
        try:
            found = self._provider.ask("where")
        except DeployError as error:
            raise ConnectError(str(error)) from error
        self._last_address = address_line(found["host"], found["port"])
        return found["host"], found["port"]

    # -- Running ------------------------------------------------------------------------------------------------------

    def _follow(self, count: int) -> None:
        if self._keeper is not None:
            self._keeper.wanted = Wanted(count, count)

    def _break(self, reason: str) -> None:
        """It cannot go on."""
        if not self._ending and self._broken_by is None:
            self._broken_by = LoomError(f"{self.title} is broken: {reason}")
            self._on_broken(self._broken_by)

    def _check_alive(self) -> None:
        if self._broken_by is not None:
            raise self._broken_by

    def _nodes(self) -> tuple[int, list[Node]]:
        keeper = self._keeper
        return (keeper.n_wanted, keeper.nodes) if keeper is not None else (0, [])

    def _close(self) -> None:
        self.expect_end()
        if self._dask is not None:
            if self._provider is not None and self._broken_by is None:
                try:
                    self._provider.close()
                except DeployError as error:
                    self._says.complain(str(error))
            self._dask.close(timeout=_CLOSE_S)
        if self._directory is not None:
            self._directory.remove()


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise DeployError(f"Dask's distributed is not there ({error}): pip install distributed") from error
    return distributed


def _find(dask: Any, security: Any) -> _Target:
    distributed = _distributed()
    if isinstance(dask, str):
        return _Target(dask.removeprefix(_URL), security, None)
    if isinstance(dask, distributed.Client):
        if dask.asynchronous:
            raise LoomError("an asynchronous Dask client cannot be used: give the address of its scheduler")
        if dask.scheduler is None:
            raise LoomError("the Dask client is closed")
        return _Target(dask.scheduler.address, dask.security, dask.cluster)
    if hasattr(dask, "scheduler_address"):
        return _Target(dask.scheduler_address, getattr(dask, "security", None), dask)
    raise LoomError(
        f"{dask!r:.200} is neither a Dask client, nor a Dask cluster, nor the address of a scheduler (tcp://host:8786)"
    )


def _can_scale(cluster: Any) -> bool:
    return hasattr(cluster, "scale") and getattr(cluster, "_supports_scaling", True)


def _connected(address: str, security: Any, timeout_s: float) -> Any:
    """A Dask client of our own: what it has asked for ends when it does, and when this process does."""
    distributed = _distributed()
    try:
        return distributed.Client(address, security=security, name="loom", set_as_default=False, timeout=timeout_s)
    except Exception as error:
        raise DeployError(
            f"there is no Dask scheduler to be reached at {address}: {str(error) or type(error).__name__}"
        ) from error
