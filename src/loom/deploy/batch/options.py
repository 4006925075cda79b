"""What an allocation queue is asked to do. No I/O: the same on the side that asks and on the server's."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct, field

from loom.deploy.keeper import Wanted
from loom.deploy.nodes import Offer
from loom.errors import LoomError
from loom.limits import MAX_CPUS
from loom.resources import GPU_PARTS, GPUS, MEM, check_name

System = Literal["slurm", "pbs"]

DRAIN_S: Final = 30.0  # what a worker keeps of the time limit of its job to hand over what it has
_DRAIN_PART: Final = 4  # but not more than this part of it
_START_S: Final = 5.0  # what a worker takes of the time of its job to come
_SHORTEST_S: Final = 20.0
_MOST_WORKERS: Final = 100_000
_MOST_TEXT: Final = 64 * 1024

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_TAKEN: Final[Mapping[System, Mapping[str, str]]] = {  # arguments that would undo what the script says
    "slurm": {
        **dict.fromkeys(("-n", "--ntasks"), "--workers-per-job"),
        **dict.fromkeys(("-c", "--cpus-per-task"), "--cpus"),
        **dict.fromkeys(("-t", "--time"), "--time-limit"),
        **dict.fromkeys(("-J", "--job-name"), "--name"),
        **dict.fromkeys(("-o", "--output", "-e", "--error"), "--directory"),
        **dict.fromkeys(("-a", "--array", "--requeue", "--wrap", "--parsable", "--wait", "-W"), ""),
    },
    "pbs": {
        **dict.fromkeys(("-N",), "--name"),
        **dict.fromkeys(("-o", "-e", "-j"), "--directory"),
        **dict.fromkeys(("-J", "-I", "-X"), ""),
    },
}


class QueueOptions(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`backlog`: jobs that wait in the batch system at a time. `time_limit_s`: None is what the batch system says.

    `n_workers` a job; between `min_workers` and `max_workers` in all. A job whose workers had nothing to do for
    `idle_s` is let go. `cpus`, `gpus`, `mem` (bytes) and `resources` are those of each worker. `arguments` are for
    sbatch or qsub, `worker_options` for `loom-worker`, `prologue` is shell code that runs in the job before the
    workers. `python` is a command on the nodes. `directory`: below it (shared with the nodes) the queue keeps its
    script, the address file and the logs of its jobs; `key_file` and `address_file` are paths as the nodes see them.
    Empty: the server's own. A worker that does not find the server for `lost_s` ends. The batch system is asked every
    `poll_s`.
    """

    system: System
    name: str
    backlog: int = 2
    time_limit_s: float | None = None
    n_workers: int = 1
    min_workers: int = 0
    max_workers: int = 16
    idle_s: float = 60.0
    cpus: int = 1
    gpus: int = 0
    mem: int = 0
    resources: dict[str, int] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    worker_options: tuple[str, ...] = ()
    prologue: str = ""
    python: str = ""
    directory: str = ""
    key_file: str = ""
    address_file: str = ""
    lost_s: float = 300.0
    poll_s: float = 5.0

    @property
    def offer(self) -> Offer:
        extras = dict(self.resources)
        if self.gpus:
            extras[GPUS] = self.gpus * GPU_PARTS
        if self.mem:
            extras[MEM] = self.mem
        left_s = 0.0 if self.time_limit_s is None else self.time_limit_s - _START_S
        return Offer(self.cpus, extras, self.n_workers, round(1000 * left_s))

    @property
    def wanted(self) -> Wanted:
        """In jobs."""
        return Wanted(math.ceil(self.min_workers / self.n_workers), self.max_workers // self.n_workers, self.idle_s)

    @property
    def drain_s(self) -> float:
        return DRAIN_S if self.time_limit_s is None else min(DRAIN_S, self.time_limit_s / _DRAIN_PART)


def check_options(options: QueueOptions) -> None:
    """LoomError where they make no sense, with what to write instead."""
    if not _NAME.fullmatch(options.name):
        raise LoomError(f"{options.name!r:.100} is no name of a queue: up to 40 letters, digits and . _ - (not first)")
    for name, number, least, most in (
        ("--backlog", options.backlog, 1, _MOST_WORKERS),
        ("--workers-per-job", options.n_workers, 1, _MOST_WORKERS),
        ("--min-workers", options.min_workers, 0, _MOST_WORKERS),
        ("--max-workers", options.max_workers, 1, _MOST_WORKERS),
        ("--cpus", options.cpus, 1, MAX_CPUS),
        ("--gpus", options.gpus, 0, MAX_CPUS),
        ("--mem", options.mem, 0, math.inf),
        ("--idle", options.idle_s, 0, math.inf),
        ("--lost-timeout", options.lost_s, 1, math.inf),
        ("--poll", options.poll_s, 0.1, 3600),
    ):
        if not least <= number <= most:
            raise LoomError(f"{name} {number:g}: from {least:g} to {most:g}")
    if options.max_workers < options.n_workers:
        raise LoomError(f"--max-workers {options.max_workers} is less than one job has (--workers-per-job)")
    if options.min_workers > options.max_workers:
        raise LoomError(f"--min-workers {options.min_workers} is more than --max-workers {options.max_workers}")
    if options.time_limit_s is not None and options.time_limit_s < _SHORTEST_S:
        raise LoomError(f"--time-limit {options.time_limit_s:g} s: a job needs {_SHORTEST_S:g} s to get anything done")
    for name in options.resources:
        check_name(name)
    _check_texts(options)


def _check_texts(options: QueueOptions) -> None:
    for path in (options.directory, options.key_file, options.address_file):
        if path and not os.path.isabs(path):
            raise LoomError(f"{path!r:.200}: jobs start elsewhere, write an absolute path")
    if any(sign in options.directory for sign in '"\\'):
        raise LoomError(f"{options.directory!r:.200}: batch systems do not take that name, choose another --directory")
    words = (*options.arguments, *options.worker_options, options.python)
    paths = (options.directory, options.key_file, options.address_file)
    for text in (*words, *paths):
        if not text.isprintable():
            raise LoomError(f"{text!r:.200} has signs that cannot be printed")
    if "\0" in options.prologue or sum(map(len, words)) + len(options.prologue) > _MOST_TEXT:
        raise LoomError(f"the prologue and all arguments may have {_MOST_TEXT:,} characters together, and no NUL")
    for argument in options.arguments:
        word = argument.partition("=")[0]
        taken = _TAKEN[options.system].get(word)
        if taken is not None:
            instead = f"the option {taken} of the queue says that" if taken else "a queue's jobs cannot have that"
            raise LoomError(f"{argument!r:.100}: {instead}")
