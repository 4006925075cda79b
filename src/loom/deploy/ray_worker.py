"""The actor around a worker: it gets the key, sealed, from the server's actor, and tells the worker where that is."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

from loom import __version__
from loom.deploy.hosted import HostedWorker
from loom.deploy.ray_names import Actor, Settings, ask, find_server, import_ray
from loom.deploy.sealing import Receiver
from loom.errors import DeployError, LoomError, LoomException

_log = logging.getLogger(__name__)

_ORPHANED_S: Final = 30.0  # after so long without an actor of the server there will be none
_PAUSE_S: Final = 0.5
_WAIT_S: Final = 0.2


class WorkerActor:
    """Ray restarts it where its process or node dies. Its cpus are those of the bundle that it is placed in."""

    def __init__(self, settings: Settings, name: str, cpus: int) -> None:
        if settings.version != __version__:
            raise DeployError(f"there is hyperloom {__version__} on this node, and {settings.version} elsewhere")
        self._settings = settings
        self._name = name
        self._cpus = cpus
        self._server: Actor = None
        self._closing = threading.Event()
        self._other_key = threading.Event()  # the server is another one, which knows nothing of what this worker has
        self._mark = ""
        self._lost_since = 0.0
        self._over = False
        self._story = ""
        self._thread = threading.Thread(target=self._run, name="loom-host", daemon=True)
        self._thread.start()

    def state(self) -> tuple[bool, str]:
        """Whether the worker has ended for good, and why; an empty story where it was told to."""
        return self._over, self._story

    def close(self) -> None:
        """End the worker, at once. What is left to do is to end this actor."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set() and not self._over:
            try:
                self._host()
            except LoomException as error:
                _log.info("%s: %s", self._name, error)
                if self._is_orphaned():
                    self._remove_itself()
                    return
            except Exception as error:  # a thread that dies would leave an actor that does nothing
                self._story = f"{type(error).__name__}: {error}"
                self._over = True
            self._closing.wait(_PAUSE_S)

    def _host(self) -> None:
        """Until it is over, or there is another server. LoomException where there is none now."""
        receiver = Receiver()
        key = receiver.open(self._ask("sealed_key", receiver.public))
        self._other_key.clear()
        worker = HostedWorker(self._name, self._cpus, self._locate, key, self._settings.worker_options)
        self._mark = worker.key_mark
        try:
            while not worker.wait(_WAIT_S) and not self._closing.is_set() and not self._other_key.is_set():
                if self._is_orphaned():
                    raise LoomError("there is no server any more")
        finally:
            ended = not worker.alive
            worker.close()
        if ended:
            self._story = worker.story
            self._over = True

    def _locate(self) -> tuple[str, int]:
        host, port, mark = self._ask("where")
        if mark != self._mark:
            self._other_key.set()
        return host, port

    def _ask(self, question: str, *arguments: object) -> Any:
        """Of the server's actor."""
        try:
            if self._server is None:
                self._server = find_server(self._settings.name)
            answer = ask(self._server, question, *arguments)
        except (ValueError, DeployError) as error:
            self._server = None
            if not self._lost_since:
                self._lost_since = time.monotonic()
            raise LoomError(f"there is no actor of the server: {error}") from error
        self._lost_since = 0.0
        return answer

    def _is_orphaned(self) -> bool:
        return bool(self._lost_since) and time.monotonic() - self._lost_since > _ORPHANED_S

    def _remove_itself(self) -> None:
        """Whoever would have removed it is gone."""
        import_ray()
        from ray.util.placement_group import get_current_placement_group, remove_placement_group

        _log.warning("%s: no actor of the server for %g s: this one ends", self._name, _ORPHANED_S)
        remove_placement_group(get_current_placement_group())
