"""One allocation queue: its files, its jobs, and the keeper that says how many of them there are to be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from loom.deploy.batch.jobs import Jobs
from loom.deploy.batch.options import QueueOptions
from loom.deploy.batch.pbs import PBS
from loom.deploy.batch.questions import JobReport, QueueReport
from loom.deploy.batch.slurm import Slurm
from loom.deploy.batch.system import BatchSystem, Files
from loom.deploy.keeper import Keeper, Wanted
from loom.deploy.saying import Says
from loom.errors import DeployError
from loom.files import OWN_FILE, OWN_FOLDER, make_folders
from loom.messages import Load
from loom.net.places import write_address

SYSTEMS: Final[dict[str, BatchSystem]] = {"slurm": Slurm(), "pbs": PBS()}
_SCRIPT: Final = "job.sh"
_ADDRESS: Final = "address"


class Here(NamedTuple):
    """Where jobs find the server, and the key on this machine."""

    host: str
    port: int
    key_file: str


class KeptQueue(Struct, frozen=True):
    """What has to be known of a queue when the server starts again."""

    options: QueueOptions
    id: str
    paused: bool
    removing: bool
    keep_logs: bool
    jobs: tuple[str, ...]


class Queue:
    """`turn` and what it calls belong to one thread; other methods may be called from any.

    `changed` is called when something is different that has to be kept.
    """

    def __init__(
        self, options: QueueOptions, id: str, retire: Callable[[list[str]], object], changed: Callable[[], None]
    ) -> None:
        self.options = options
        self.id = id
        self.paused = False
        self.removing = False
        self.keep_logs = False
        self.directory = queue_directory(options, id)
        self._system = SYSTEMS[options.system]
        self._says = Says(f"queue {options.name}", show=False)
        self._jobs = Jobs(options, self._system, self.script_file, self._says, changed)
        self._keeper = Keeper(self._jobs, self._says, retire, options.wanted)
        self._changed = changed
        self._to_find = False  # jobs may be there of which nothing is known
        self._shown: tuple[JobReport, ...] = ()
        self._n_connected = 0

    @classmethod
    def kept(cls, kept: KeptQueue, retire: Callable[[list[str]], object], changed: Callable[[], None]) -> Queue:
        queue = cls(kept.options, kept.id, retire, changed)
        queue.paused = kept.paused
        queue.removing = kept.removing
        queue.keep_logs = kept.keep_logs
        queue._jobs.take_up(kept.jobs)
        queue._to_find = True
        return queue

    def to_keep(self) -> KeptQueue:
        jobs = tuple(self._jobs.known)
        return KeptQueue(self.options, self.id, self.paused, self.removing, self.keep_logs, jobs)

    @property
    def script_file(self) -> str:
        return os.path.join(self.directory, _SCRIPT)

    def write_files(self, here: Here) -> None:
        """The script, and where the server is now. DeployError where they cannot be written."""
        try:
            make_folders(self.directory, OWN_FOLDER)
            script = job_script(self.options, self.id, here.key_file)
            descriptor = os.open(self.script_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, OWN_FILE)
            with os.fdopen(descriptor, "w") as file:
                file.write(script)
        except OSError as error:
            raise DeployError(f"the queue cannot write to {self.directory}: {error.strerror}") from None
        write_address(os.path.join(self.directory, _ADDRESS), here.host, here.port)

    def remove_files(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.directory, _ADDRESS))
        if self.keep_logs:
            with suppress(FileNotFoundError):
                os.unlink(self.script_file)
        else:
            shutil.rmtree(self.directory, ignore_errors=True)

    def try_out(self) -> None:
        """DeployError where the batch system would refuse such jobs."""
        self._system.try_out(self.options, self.script_file)

    def scale(self, min_workers: int, max_workers: int, idle_s: float) -> None:
        self.options = replace(self.options, min_workers=min_workers, max_workers=max_workers, idle_s=idle_s)

    def complain(self, text: str) -> None:
        self._says.complain(text)

    # -- The thread ---------------------------------------------------------------------------------------------------

    def turn(self, load: Load | None, now: float) -> None:
        """Submit jobs, let some go, and see what became of the others."""
        try:
            self._find()
            self._jobs.look(now)
        except DeployError as error:
            self._says.complain(str(error))
            return
        there = {worker.name for worker in load.workers} if load is not None else set()
        self._jobs.are_here(there)
        self._keeper.wanted = self._wanted()
        self._keeper.turn(load, now)
        jobs = list(self._jobs.known.values())
        self._shown = tuple(JobReport(j.id, j.state, j.reason, j.left, self._jobs.workers(j.id)) for j in jobs)
        self._n_connected = sum(name in there for job in self._shown for name in job.workers)

    def _wanted(self) -> Wanted:
        """No more than run and may wait."""
        wanted = self.options.wanted
        if self.paused:
            most = len(self._jobs.known)
        else:
            most = self._jobs.n_running + self.options.backlog
        return Wanted(min(wanted.minimum, most), min(wanted.maximum, most), wanted.idle_s)

    def _find(self) -> None:
        """Jobs that an earlier server has submitted just before it died, of which it could not say so any more."""
        if self._to_find:
            found = self._system.find(self._system.mark(self.options.name, self.id))
            more = [id for id in found if id not in self._jobs.known]
            if self._jobs.known or more:
                self._says.say(f"taking up jobs {', '.join((*self._jobs.known, *more))}")
            self._jobs.take_up(more)
            self._to_find = False
            self._changed()

    def cancel(self, at_once: bool = False) -> None:
        """All its jobs. `at_once`: the server goes. DeployError where the batch system does not do it."""
        self._find()
        self._jobs.close(at_once)
        self._shown = ()

    def report(self) -> QueueReport:
        return QueueReport(
            self.options,
            self.id,
            self.directory,
            self.paused,
            self.removing,
            self._keeper.n_wanted,
            self._n_connected,
            self._jobs.n_submitted,
            self._shown,
            tuple(self._says.problems),
        )


def queue_directory(options: QueueOptions, id: str) -> str:
    """Of a queue's own, below the one that its options name."""
    if options.directory:
        above = options.directory
    else:
        state = os.environ.get("XDG_STATE_HOME", "")
        above = os.path.join(state if os.path.isabs(state) else os.path.expanduser("~/.local/state"), "loom", "queues")
    return os.path.join(above, f"{options.name}-{id}")


def job_script(options: QueueOptions, id: str, key_file: str) -> str:
    """What the jobs of a queue run. `key_file` is where the key is on this machine."""
    directory = queue_directory(options, id)
    address = options.address_file or os.path.join(directory, _ADDRESS)
    system = SYSTEMS[options.system]
    return system.script(
        options, system.mark(options.name, id), Files(directory, address, options.key_file or key_file)
    )
