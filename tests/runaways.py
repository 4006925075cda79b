"""Processes that do what they can to outlive whoever started them."""

import sys
from pathlib import Path

# Two daemons, one of which hides its environment, each with a child in a session of its own; then an end as told.
SCRIPT = """
import os, signal, sys, time

notes, ending = sys.argv[1:3]

def note():
    open(f"{notes}/{os.getpid()}", "w").close()

for environment in (dict(os.environ), {}):
    if os.fork() == 0:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if os.fork():
            os._exit(0)
        os.fork()
        os.setpgid(0, 0)
        note()
        os.execve("/bin/sleep", ["sleep", "1000"], environment)
    os.wait()
note()
while len(os.listdir(notes)) < 5:
    time.sleep(0.001)
if ending == "stay":
    time.sleep(1000)
elif ending == "crash":
    os.abort()
sys.exit(int(ending))
"""
N_PROCESSES = 5


class Runaways:
    """Of one run of the script, which leaves a note of each of its processes."""

    def __init__(self, directory: Path, name: str = "notes") -> None:
        self._notes = directory / name
        self._notes.mkdir()

    def command(self, ending: str) -> tuple[str, ...]:
        """`ending`: "stay", "crash", or a status to exit with."""
        return (sys.executable, "-c", SCRIPT, str(self._notes), ending)

    def pids(self) -> list[int]:
        return [int(note.name) for note in self._notes.iterdir()]

    def all_run(self) -> bool:
        return len(self.pids()) == N_PROCESSES

    def living(self) -> list[int]:
        return [pid for pid in self.pids() if lives(pid)]


def lives(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
