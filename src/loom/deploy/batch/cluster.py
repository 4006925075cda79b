"""What clusters of batch systems have in common: a server here, with one allocation queue."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from loom.deploy.batch.options import QueueOptions, System, check_options
from loom.deploy.batch.questions import (
    AddQueue,
    ListQueues,
    QueueReport,
    Queues,
    Said,
    ScaleQueue,
    decode_answer,
    encode,
)
from loom.deploy.batch.queue import SYSTEMS
from loom.deploy.batch.system import check_commands
from loom.deploy.keeper import check_wanted
from loom.deploy.nodes import Node
from loom.deploy.offers import memory_option, offered, plugin_options
from loom.deploy.processes import import_path
from loom.deploy.serving import ServingCluster
from loom.errors import DeployError, LoomError, LoomException
from loom.net.interfaces import interface_address
from loom.resources import MEM

_BACKLOG: Final = 1000  # jobs were asked for by number
_QUESTION_S: Final = 90.0  # a batch system takes its time


class BatchCluster(ServingCluster):
    """A server on this machine, which the nodes have to reach, and `n_jobs` jobs of `workers_per_job` workers.

    Each worker has `cpus` cores, and what `gpus`, `mem` (bytes, or text such as "4GiB") and `resources` say; the jobs
    ask the batch system for cores, gpus and memory. `memory`, `load` and `load_native` are those of a LocalCluster,
    `worker_options` further ones of `loom-worker`. `time_limit_s`: of a job; workers take no task that does not fit
    into what is left of it. `arguments` go to the batch system's submit command. `prologue` are lines of shell code
    that run in a job before its workers ("module load python"), `python` is the command there (this Python unless
    given, with the same modules).

    Script, address file and logs of jobs are in a folder below `directory`, which the nodes have to see: below
    ~/.local/state/loom/queues unless given. So is the key, in the file `key_file`. Nodes reach the server at the
    `address` or `interface` of this machine that is given, else at the one with the default route, at `port` (any free
    one).

    Nodes are jobs. They end with this process, however it ends; those that run when it is killed hand over nothing.
    `start` returns when the jobs are submitted; `wait` waits until workers are there. The batch system is asked every
    `poll_s` seconds.
    """

    system: ClassVar[System]

    def __init__(
        self,
        n_jobs: int = 1,
        cpus: int = 1,
        *,
        workers_per_job: int = 1,
        time_limit_s: float | None = None,
        gpus: int = 0,
        mem: int | str | None = None,
        resources: Mapping[str, int] | None = None,
        memory: int | str | None = None,
        load: Sequence[str] | None = None,
        load_native: Sequence[str | os.PathLike[str]] | None = None,
        worker_options: Sequence[str] = (),
        arguments: Sequence[str] = (),
        prologue: str = "",
        python: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        address: str | None = None,
        interface: str | None = None,
        port: int = 0,
        poll_s: float = 5.0,
        progress: bool | None = None,
    ) -> None:
        super().__init__(key_file, progress)
        if not isinstance(prologue, str):
            raise LoomError(f"prologue={prologue!r:.200}: write the lines as one text")
        if time_limit_s is not None and (isinstance(time_limit_s, bool) or not isinstance(time_limit_s, int | float)):
            raise LoomError(f"time_limit_s={time_limit_s!r:.200}: write seconds, as a number")
        if address is not None and interface is not None:
            raise LoomError("address and interface both say where this machine is: choose one")
        self._wanted = check_wanted(n_jobs, n_jobs)
        extras, _ = offered(cpus, gpus, mem, resources)
        path = f"export PYTHONPATH={shlex.quote(os.pathsep.join(import_path()))}\n" if python is None else ""
        self._options = QueueOptions(
            self.system,
            f"cluster-{os.getpid()}",
            backlog=_BACKLOG,
            time_limit_s=time_limit_s,
            n_workers=workers_per_job,
            min_workers=0,
            max_workers=max(1, workers_per_job),
            cpus=cpus,
            gpus=gpus,
            mem=extras.get(MEM, 0),
            resources=dict(resources or {}),
            arguments=_words("arguments", arguments),
            worker_options=(
                *memory_option(memory),
                *plugin_options(load or (), load_native or ()),
                *_words("worker_options", worker_options),
            ),
            prologue=path + prologue,
            python=python or "",
            directory="" if directory is None else os.path.abspath(directory),
            poll_s=poll_s,
        )
        check_options(self._options)
        self._told_address = address
        self._interface = interface
        self._port = port
        self._is_added = False
        self._queue_id = ""
        self._queue_directory = ""
        self._said: dict[str, str] = {}

    def adapt(self, minimum: int, maximum: int, idle_s: float = 30.0) -> None:
        self._check_open()
        self._wanted = check_wanted(minimum, maximum, idle_s)
        if self._is_added:
            self._scale()

    # -- The server and its queue -------------------------------------------------------------------------------------

    def _start(self) -> None:
        check_commands(SYSTEMS[self.system])
        host = "0.0.0.0" if self._interface is None else interface_address(self._interface)
        told = [] if self._told_address is None else ["--advertise", self._told_address]
        self._start_server(host, self._port, ["--log-level", "error", "--host", host, *told])
        self._is_started = True  # from here on it can be asked
        try:
            notes = decode_answer(self._question(AddQueue(self._options)), Said).notes
            self._is_added = True
            for note in notes:
                self._says.say(note)
            (queue,) = decode_answer(self._question(ListQueues()), Queues).queues
            self._queue_id, self._queue_directory = queue.id, queue.directory
            self._scale()
        except LoomException as error:
            raise DeployError(str(error)) from None

    def _question(self, question: AddQueue | ListQueues | ScaleQueue) -> bytes:
        return self._ask().allocations(encode(question), _QUESTION_S)

    def _scale(self) -> None:
        each = self._options.n_workers
        minimum, maximum, idle_s = self._wanted
        self._question(ScaleQueue(self._options.name, minimum * each, maximum * each, idle_s))

    def _report(self) -> QueueReport | None:
        """What the server says of the queue; what is new of it is said on."""
        queues = decode_answer(self._question(ListQueues()), Queues).queues
        for queue in queues:
            for problem in queue.problems:
                if problem not in self._says.problems:
                    self._says.complain(problem)
            for job in queue.jobs:
                state = f"{job.state} ({job.reason})" if job.reason else job.state
                if self._said.get(job.id) != state:
                    self._said[job.id] = state
                    self._says.say(f"job {job.id} is {state}")
            return queue
        return None

    def _check_alive(self) -> None:
        super()._check_alive()
        self._report()

    def _nodes(self) -> tuple[int, list[Node]]:
        try:
            report = self._report() if self._is_added and not self._is_closed else None
        except LoomException as error:
            self._says.complain(f"the server does not say what jobs there are: {error}")
            report = None
        if report is None:
            return self._wanted.minimum, []
        nodes = [
            Node(job.id, "running" if job.state == "running" else "waiting", job.workers, job.reason)
            for job in report.jobs
        ]
        return report.n_wanted, nodes

    def _close(self) -> None:
        """The server cancels the jobs of its queue before it ends; where it was killed, or did not come to it, that is
        done here.
        """
        if self._asker is not None:
            self._asker.close()
        super()._close()
        if not self._queue_id or (self._broken_by is None and not os.path.exists(self._queue_directory)):
            return
        system = SYSTEMS[self.system]
        try:
            system.cancel(system.find(system.mark(self._options.name, self._queue_id)), at_once=True)
        except DeployError as error:
            self._says.complain(f"jobs may be left: {error}")
        shutil.rmtree(self._queue_directory, ignore_errors=True)


def _words(name: str, words: Sequence[str]) -> tuple[str, ...]:
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise LoomError(f'{name}={words!r:.200}: write a list of words, such as ["--partition=main"]')
    return tuple(words)
