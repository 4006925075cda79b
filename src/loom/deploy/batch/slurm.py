"""Slurm: its job script, and sbatch, squeue, scancel. Tried with 22.05."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from loom.deploy.batch.options import QueueOptions
from loom.deploy.batch.system import Files, Job, clock, run_command, worker_arguments
from loom.errors import DeployError
from loom.limits import MIB

_FORMAT: Final = "%i|%T|%L|%r"  # the reason last: it may have any sign
_SEPARATOR: Final = "|"
_PLAIN: Final = re.compile(r"[\w/%.,:@+-]*")
_DAY_S: Final = 86_400
_MOST_IDS: Final = 500  # in one command
_UNKNOWN: Final = "Invalid job id"

_WAITING: Final = frozenset(
    ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
)
_GOOD_ENDS: Final = frozenset(("COMPLETED", "TIMEOUT"))
_BAD_ENDS: Final = {
    "BOOT_FAIL": "could not start: its node did not boot",
    "CANCELLED": "was cancelled",
    "DEADLINE": "was ended at its deadline",
    "FAILED": "has failed",
    "NODE_FAIL": "was lost with a node",
    "OUT_OF_MEMORY": "took more memory than it may",
    "PREEMPTED": "had to make room for another job (preempted)",
    "REVOKED": "was revoked",
}

_SCRIPT: Final = """\
#!/bin/bash
#SBATCH --job-name={mark}
#SBATCH --output={log}
#SBATCH --ntasks={n_workers}
#SBATCH --cpus-per-task={cpus}
{more}#SBATCH --no-requeue
{prologue}
# What this job still has: the workers take no task that does not fit, and leave before the time is over.
time_limit=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%L 2>/dev/null)
case "$time_limit" in
  *:*) ;;
  UNLIMITED) time_limit= ;;
  *) time_limit={time_limit} ;;
esac

exec srun --ntasks={n_workers} --cpus-per-task={cpus} --export=ALL --mpi=none --wait=0 --kill-on-bad-exit=0 \\
  --input=none bash -c {inner} worker \\
  {arguments}
"""


class Slurm:
    title = "Slurm"
    commands = ("sbatch", "squeue", "scancel")

    def mark(self, queue: str, id: str) -> str:
        return f"loom-{queue}-{id}"

    def log_file(self, directory: str) -> str:
        return f"{directory}/job-%j.log"

    def script(self, options: QueueOptions, mark: str, files: Files) -> str:
        more = []
        if options.time_limit_s is not None:
            days, rest_s = divmod(options.time_limit_s, _DAY_S)
            more.append(f"--time={days:.0f}-{clock(rest_s)}" if days else f"--time={clock(rest_s)}")
        if options.mem:
            more.append(f"--mem-per-cpu={-(-options.mem // (options.cpus * MIB))}M")
        if options.gpus:
            more.append(f"--gpus-per-task={options.gpus}")
        name = '--name "slurm-$SLURM_JOB_ID-$SLURM_PROCID"'
        return _SCRIPT.format(
            mark=mark,
            log=_quoted(self.log_file(files.directory.replace("%", "%%"))),
            n_workers=options.n_workers,
            cpus=options.cpus,
            more="".join(f"#SBATCH {line}\n" for line in more),
            prologue=f"\n{options.prologue.strip()}\n" if options.prologue.strip() else "",
            time_limit="" if options.time_limit_s is None else f"{options.time_limit_s:g}",
            inner=shlex.quote(f'exec {shlex.quote(options.python)} -m loom.cli.worker {name} "$@"'),
            arguments=" \\\n  ".join(worker_arguments(options, files)),
        )

    def submit_command(self, options: QueueOptions, script: str) -> list[str]:
        return ["sbatch", "--parsable", *options.arguments, script]

    def try_out(self, options: QueueOptions, script: str) -> None:
        run_command(["sbatch", "--test-only", *options.arguments, script])

    def submit(self, options: QueueOptions, script: str) -> str:
        said = run_command(self.submit_command(options, script)).strip().splitlines()
        job = said[-1].partition(";")[0] if said else ""  # on several clusters: id;cluster
        if not job.isdecimal():
            raise DeployError(f"sbatch said {' '.join(said)[:200]!r}, not the number of a job")
        return job

    def find(self, mark: str) -> list[str]:
        return run_command(["squeue", "--noheader", "--me", f"--name={mark}", "--format=%i"]).split()

    def jobs(self, ids: Collection[str]) -> dict[str, Job]:
        found: dict[str, Job] = {}
        rest = sorted(ids)
        while rest:
            some, rest = rest[:_MOST_IDS], rest[_MOST_IDS:]
            command = ["squeue", "--noheader", f"--jobs={','.join(some)}", "--states=all", f"--format={_FORMAT}"]
            try:
                said = run_command(command)
            except DeployError as error:
                if _UNKNOWN not in str(error):
                    raise
                continue  # of a single one that it has forgotten it says so; of several it leaves those out
            for line in said.splitlines():
                job = _parse(line)
                found[job.id] = job
        return found

    def cancel(self, ids: Collection[str], at_once: bool = False) -> None:
        rest = sorted(ids)
        while rest:
            some, rest = rest[:_MOST_IDS], rest[_MOST_IDS:]
            if at_once:
                with suppress(DeployError):  # one that waits has nobody to tell, and scancel would try for minutes
                    run_command(["scancel", "--quiet", "--state=RUNNING", "--signal=INT", *some])
            run_command(["scancel", "--quiet", *some])

    def workers(self, job: str, count: int) -> tuple[str, ...]:
        return tuple(f"slurm-{job}-{number}" for number in range(count))


def _quoted(path: str) -> str:
    """As #SBATCH lines take it; there is no way to write every sign."""
    return path if _PLAIN.fullmatch(path) else f'"{path}"'


def _parse(line: str) -> Job:
    """DeployError where squeue says something else than it was asked for."""
    fields = line.strip().split(_SEPARATOR, _FORMAT.count(_SEPARATOR))
    if len(fields) != _FORMAT.count(_SEPARATOR) + 1:
        raise DeployError(f"squeue said {line[:200]!r}, not the id, state, time left and reason of a job")
    id, state, left, reason = fields
    reason = "" if reason == "None" else reason
    if state in _WAITING:
        return Job(id, "waiting", reason)
    if state in _GOOD_ENDS:
        return Job(id, "ended")
    story = _BAD_ENDS.get(state)
    if story is not None:
        return Job(id, "ended", story=f"{story} ({reason})" if reason else story)
    return Job(id, "running", left=left)  # it, or what it leaves, is at a node
