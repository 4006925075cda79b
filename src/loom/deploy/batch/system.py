"""What a batch system is to an allocation queue, and how its commands are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from loom.deploy.batch.options import QueueOptions
from loom.deploy.nodes import NodeState
from loom.errors import DeployError

_COMMAND_S: Final = 60.0  # a batch system under load takes its time
_SAID_CHARS: Final = 500
_ID_IN_LOG: Final = re.compile(r"%j|\$\{PBS_JOBID%%\.\*\}")  # in the name of a log, for the batch system
# A server that runs in a job itself must not pass that on, except for what says where the batch system is.
_OF_A_JOB: Final = re.compile(r"SLURM_(?!CONF|CLUSTERS$|TIME_FORMAT$)|PBS_(O_|JOB|NODE|TASK|ENVIRONMENT|QUEUE|MOM)")


class Job(NamedTuple):
    """As the batch system shows it. `reason`: why it waits; `left`: of its time. `story`: how an ended one ended, empty
    where that was in good order.
    """

    id: str
    state: NodeState
    reason: str = ""
    left: str = ""
    story: str = ""


class Files(NamedTuple):
    """Absolute paths, as the nodes see them. `log` may have signs that the batch system replaces."""

    directory: str
    address: str
    key: str


class BatchSystem(Protocol):
    """Its commands raise DeployError with what they said. `mark` is what all jobs of one queue are called."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def commands(self) -> tuple[str, ...]:
        """What has to be in the PATH."""

    def mark(self, queue: str, id: str) -> str:
        """The name of the jobs of a queue."""

    def log_file(self, directory: str) -> str:
        """Where jobs log, for people."""

    def script(self, options: QueueOptions, mark: str, files: Files) -> str:
        """What a job runs."""

    def submit_command(self, options: QueueOptions, script: str) -> list[str]: ...

    def try_out(self, options: QueueOptions, script: str) -> None:
        """DeployError where such a job would be refused; nothing is submitted."""

    def submit(self, options: QueueOptions, script: str) -> str:
        """The id of a new job."""

    def find(self, mark: str) -> list[str]:
        """The ids of the jobs of that name that wait or run."""

    def jobs(self, ids: Collection[str]) -> dict[str, Job]:
        """What is known of them; of those that are not in the answer nothing is."""

    def cancel(self, ids: Collection[str], at_once: bool = False) -> None:
        """End them; some may have ended. `at_once`: the server goes, their workers need not hand anything over."""

    def workers(self, job: str, count: int) -> tuple[str, ...]:
        """The names of the workers of a job."""


def job_log(system: BatchSystem, directory: str, job: str) -> str:
    """Where this one logs."""
    return _ID_IN_LOG.sub(lambda found: job.partition(".")[0], system.log_file(directory))


def run_command(command: Sequence[str]) -> str:
    """What it prints. DeployError where it fails, with what it said."""
    name = command[0]
    try:
        done = subprocess.run(
            command,
            env=own_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_S,
            check=False,
        )
    except FileNotFoundError:
        raise DeployError(f"{name} is not in the PATH of this process") from None
    except subprocess.TimeoutExpired:
        raise DeployError(f"{name} has not answered within {_COMMAND_S:g} s") from None
    except OSError as error:
        raise DeployError(f"{name} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip() or f"status {done.returncode}"
        raise DeployError(f"{shlex.join(command)[:_SAID_CHARS]} failed: {said[:_SAID_CHARS]}")
    return done.stdout.decode(errors="replace")


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """For a command of the batch system: without what is said of the job that this process may run in."""
    return {name: value for name, value in environment.items() if not _OF_A_JOB.match(name)}


def check_commands(system: BatchSystem) -> None:
    """DeployError where the batch system is not here."""
    missing = [command for command in system.commands if shutil.which(command) is None]
    if missing:
        raise DeployError(
            f"{', '.join(missing)} not found in the PATH of the server's process: start the server on a machine from "
            f"which jobs of {system.title} can be submitted (a login node), and with its commands in the PATH"
        )


def worker_arguments(options: QueueOptions, files: Files) -> list[str]:
    """For a shell, a line each. $time_limit is set there, or empty. The name of the worker is not among them."""
    lines = [["--address-file", files.address], ["--key-file", files.key], ["--cpus", str(options.cpus)]]
    if options.gpus:
        lines[-1] += ["--gpus", str(options.gpus)]
    if options.mem:
        lines[-1] += ["--mem", str(options.mem)]
    for name, amount in sorted(options.resources.items()):
        lines[-1] += ["--resource", f"{name}={amount}"]
    lines.append(["--drain-timeout", f"{options.drain_s:g}", "--lost-timeout", f"{options.lost_s:g}"])
    own = [shlex.join(options.worker_options)] if options.worker_options else []
    return [*map(shlex.join, lines), '${time_limit:+--time-limit "$time_limit"}', *own]


def clock(seconds: float) -> str:
    """HH:MM:SS."""
    whole = max(1, round(seconds))
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
