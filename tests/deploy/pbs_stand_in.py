"""Stand-ins for qsub, qstat, qselect, qdel and qsig, after the manuals of PBS Professional: one file under each name.

Jobs are processes of this machine, and what is known of them are files in the directory PBS_STAND_IN names. Ended jobs
are remembered, as with job_history_enable, unless there is a file `no-history`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

PLACE = Path(os.environ.get("PBS_STAND_IN", "/nowhere"))


def fail(text: str, status: int) -> None:
    print(text, file=sys.stderr)
    sys.exit(status)


def directives(script: str) -> dict[str, str]:
    """-N and the resources that a script asks for."""
    found = {"name": "STDIN"}
    for letter, value in re.findall(r"^#PBS -(\w) (.*)$", script, re.MULTILINE):
        if letter == "N":
            found["name"] = value
        elif letter == "l":
            name, _, amount = value.partition("=")
            found[name] = amount
    return found


def qsub(arguments: list[str]) -> None:
    *options, path = arguments
    if "nowhere" in options:
        fail("qsub: Unknown queue", 170)
    script = Path(path).read_text()
    number = 1 + max((int(file.stem) for file in PLACE.glob("*.json")), default=100)
    job = {"id": f"{number}.here", "began": time.time(), **directives(script)}
    copy = PLACE / f"{number}.sh"
    copy.write_text(script)
    held = (PLACE / "hold").exists()
    if not held:
        environment = {**os.environ, "PBS_JOBID": job["id"], "PBS_O_WORKDIR": os.getcwd()}
        runner = (
            "import pathlib, subprocess, sys\n"
            "status = subprocess.run(['bash', sys.argv[1]]).returncode\n"
            "pathlib.Path(sys.argv[2]).write_text(str(status if status >= 0 else 256 - status))"
        )
        job["pid"] = subprocess.Popen(
            [sys.executable, "-c", runner, copy, PLACE / f"{number}.status"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ).pid
    (PLACE / f"{number}.json").write_text(json.dumps(job))
    print(job["id"])


def load(id: str) -> dict[str, object] | None:
    file = PLACE / f"{id.partition('.')[0]}.json"
    return json.loads(file.read_text()) if file.exists() else None  # type: ignore[no-any-return]


def status_of(job: dict[str, object]) -> int | None:
    file = PLACE / f"{str(job['id']).partition('.')[0]}.status"
    text = file.read_text() if file.exists() else ""
    return int(text) if text else None


def qstat(arguments: list[str]) -> None:
    ids = [word for word in arguments if word[0].isdigit()]
    history = "-x" in arguments
    if history and (PLACE / "no-history").exists():
        fail("qstat: PBS is not configured to maintain job history (job_history_enable)", 1)
    if (PLACE / "down").exists():
        fail("Connection refused\nqstat: cannot connect to server here (errno=15010)", 255)
    jobs = {}
    unknown = []
    for id in ids:
        job = load(id)
        status = status_of(job) if job is not None else None
        if job is None or (status is not None and not history):
            unknown.append(id)
            continue
        limits = {"walltime": job["walltime"]} if "walltime" in job else {}
        shown = {"Job_Name": job["name"], "Resource_List": {"select": job["select"], **limits}}
        if status is not None:
            shown |= {"job_state": "F", "Exit_status": status}
        elif "pid" in job:
            used = time.strftime("%H:%M:%S", time.gmtime(time.time() - float(str(job["began"]))))
            shown |= {"job_state": "R", "resources_used": {"walltime": used}}
        else:
            shown |= {"job_state": "Q", "comment": "Not Running: Insufficient amount of resource: ncpus"}
        jobs[id] = shown
    if "-F" in arguments:
        print(json.dumps({"timestamp": 1, "pbs_version": "stand-in", "Jobs": jobs}))
    else:
        for id, shown in jobs.items():
            print(f"Job Id: {id}")
            for name, value in shown["Resource_List"].items():
                print(f"    Resource_List.{name} = {value}")
    if unknown:
        fail("\n".join(f"qstat: Unknown Job Id {id}" for id in unknown), 153)


def qselect(arguments: list[str]) -> None:
    name = arguments[arguments.index("-N") + 1]
    for file in sorted(PLACE.glob("*.json")):
        job = json.loads(file.read_text())
        if job["name"] == name and status_of(job) is None:
            print(job["id"])


def qdel(arguments: list[str]) -> None:
    (id,) = arguments
    job = load(id)
    if job is None:
        fail(f"qdel: Unknown Job Id {id}", 153)
        return
    if status_of(job) is not None:
        fail(f"qdel: Job has finished {id}", 35)
    if "pid" in job:
        signal_tree(int(str(job["pid"])), signal.SIGTERM)
    else:
        (PLACE / f"{id.partition('.')[0]}.status").write_text("271")


def qsig(arguments: list[str]) -> None:
    _, name, id = arguments
    job = load(id)
    if job is None or "pid" not in job or status_of(job) is not None:
        fail(f"qsig: Request invalid for state of job {id}", 168)
        return
    signal_tree(int(str(job["pid"])), signal.Signals[name])


def signal_tree(leader: int, number: int) -> None:
    """For all processes of the job but the one that notes its status."""
    for process in psutil.Process(leader).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


if __name__ == "__main__":
    {"qsub": qsub, "qstat": qstat, "qselect": qselect, "qdel": qdel, "qsig": qsig}[Path(sys.argv[0]).name](sys.argv[1:])
