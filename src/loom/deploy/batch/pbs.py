"""PBS Professional and OpenPBS: the job script, and qsub, qstat, qselect, qdel, qsig. Only stand-ins were tried."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final

from loom.deploy.batch.options import QueueOptions
from loom.deploy.batch.system import Files, Job, clock, run_command, worker_arguments
from loom.errors import DeployError

_MOST_IDS: Final = 200  # in one command
_UNKNOWN: Final = "Unknown Job"  # what is said of a job that is forgotten,
_NO_HISTORY: Final = "job_history_enable"  # where ended ones are forgotten at once,
_FINISHED: Final = "has finished"  # and where they are not
_WAITING: Final = frozenset("QHWTM")
_ENDED: Final = frozenset("FX")
_TERMINATED: Final = 256 + 15  # the status of a job that was ended by SIGTERM
_KILLED: Final = 256 + 9

_SCRIPT: Final = """\
#!/bin/bash
#PBS -N {mark}
#PBS -j oe
#PBS -o /dev/null
#PBS -l select=1:ncpus={n_cpus}{more}
{walltime}#PBS -r n
exec > "{log}" 2>&1
cd "$PBS_O_WORKDIR" 2>/dev/null || cd
{prologue}
# What this job still has: the workers take no task that does not fit, and leave before the time is over.
walltime=$(qstat -f "$PBS_JOBID" 2>/dev/null | sed -n 's/^ *Resource_List.walltime = //p')
walltime=${{walltime:-{time_limit}}}
IFS=: read -r hours minutes seconds <<< "$walltime"
time_limit=
if [ -n "$seconds" ]; then
  time_limit=$((10#$hours * 3600 + 10#$minutes * 60 + 10#$seconds - SECONDS))
fi

workers=
trap 'kill -TERM $workers 2>/dev/null' TERM INT
for number in $(seq 0 {last}); do
  {python} -m loom.cli.worker --name "pbs-${{PBS_JOBID%%.*}}-$number" \\
    {arguments} &
  workers="$workers $!"
done
status=0
for worker in $workers; do
  wait "$worker"
  result=$?
  while kill -0 "$worker" 2>/dev/null; do  # a signal came meanwhile
    wait "$worker"
    result=$?
  done
  [ "$result" -eq 0 ] || status=$result
done
exit "$status"
"""


class PBS:
    title = "PBS"
    commands = ("qsub", "qstat", "qselect", "qdel", "qsig")

    def mark(self, queue: str, id: str) -> str:
        return f"loom-{id}"  # older ones take 15 signs

    def log_file(self, directory: str) -> str:
        return f"{directory}/job-${{PBS_JOBID%%.*}}.log"

    def script(self, options: QueueOptions, mark: str, files: Files) -> str:
        more = [f"mem={options.n_workers * options.mem}b"] if options.mem else []
        more += [f"ngpus={options.n_workers * options.gpus}"] if options.gpus else []
        limit = "" if options.time_limit_s is None else clock(options.time_limit_s)
        directory = files.directory
        for sign in "$`":
            directory = directory.replace(sign, f"\\{sign}")
        return _SCRIPT.format(
            mark=mark,
            log=self.log_file(directory),
            n_cpus=options.n_workers * options.cpus,
            more="".join(f":{one}" for one in more),
            walltime=f"#PBS -l walltime={limit}\n" if limit else "",
            prologue=f"\n{options.prologue.strip()}\n" if options.prologue.strip() else "",
            time_limit=limit,
            last=options.n_workers - 1,
            python=shlex.quote(options.python),
            arguments=" \\\n    ".join(worker_arguments(options, files)),
        )

    def submit_command(self, options: QueueOptions, script: str) -> list[str]:
        return ["qsub", *options.arguments, script]

    def try_out(self, options: QueueOptions, script: str) -> None:
        """PBS has no way to say it without doing it."""

    def submit(self, options: QueueOptions, script: str) -> str:
        said = run_command(self.submit_command(options, script)).strip().splitlines()
        job = said[-1].strip() if said else ""
        if not job.partition(".")[0].isdecimal():
            raise DeployError(f"qsub said {' '.join(said)[:200]!r}, not the number of a job")
        return job

    def find(self, mark: str) -> list[str]:
        return run_command(["qselect", "-N", mark]).split()

    def jobs(self, ids: Collection[str]) -> dict[str, Job]:
        found: dict[str, Job] = {}
        rest = sorted(ids)
        while rest:
            some, rest = rest[:_MOST_IDS], rest[_MOST_IDS:]
            for name, attributes in _ask(some).items():
                found[name] = _parse(name, attributes)
        return found

    def cancel(self, ids: Collection[str], at_once: bool = False) -> None:
        for id in sorted(ids):  # of several it gives one status
            if at_once:
                with suppress(DeployError):  # those that wait have nobody to tell
                    run_command(["qsig", "-s", "SIGINT", id])
            try:
                run_command(["qdel", id])
            except DeployError as error:
                if not any(text in str(error) for text in (_UNKNOWN, _FINISHED)):
                    raise

    def workers(self, job: str, count: int) -> tuple[str, ...]:
        return tuple(f"pbs-{job.partition('.')[0]}-{number}" for number in range(count))


def _ask(ids: list[str]) -> dict[str, Any]:
    """What qstat says of those jobs, by their ids, ended ones too where the site keeps them."""
    for command in (["qstat", "-x", "-f", "-F", "json"], ["qstat", "-f", "-F", "json"]):
        try:
            said = run_command([*command, *ids])
        except DeployError as error:
            if _NO_HISTORY in str(error):
                continue
            if _UNKNOWN not in str(error):
                raise
            if len(ids) == 1:
                return {}
            return {name: job for id in ids for name, job in _ask([id]).items()}
        try:
            jobs = json.loads(said, strict=False).get("Jobs", {}) if said.strip() else {}
        except (ValueError, AttributeError):
            raise DeployError(f"qstat said {said[:200]!r}, no JSON") from None
        return dict(jobs)
    raise DeployError("qstat does not answer without its history either")


def _parse(id: str, attributes: Any) -> Job:
    """DeployError where qstat does not say the state of a job."""
    try:
        state = attributes["job_state"]
        comment = str(attributes.get("comment", ""))
        status = int(attributes.get("Exit_status", 0))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DeployError(f"qstat said {str(attributes)[:200]!r} of job {id}, not its state") from None
    if state in _WAITING:
        return Job(id, "waiting", comment)
    if state not in _ENDED:
        return Job(id, "running", left=_left(attributes))
    if status == 0 or "walltime" in comment:
        return Job(id, "ended")
    how = "was cancelled" if status in (_TERMINATED, _KILLED) else f"has failed with status {status}"
    return Job(id, "ended", story=f"{how} ({comment})" if comment else how)


def _left(attributes: Any) -> str:
    """Of its walltime, empty where qstat does not say."""
    try:
        whole = _seconds(attributes["Resource_List"]["walltime"])
        return clock(whole - _seconds(attributes.get("resources_used", {}).get("walltime", "0")))
    except (KeyError, TypeError, ValueError):
        return ""


def _seconds(text: str) -> float:
    total = 0.0
    for part in str(text).split(":"):
        total = 60 * total + float(part)
    return total
