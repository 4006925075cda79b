"""Tasks that write down that they have begun, and where."""
# mypy: disable-error-code="no-untyped-def"

from pathlib import Path

from loom.client import tasks


@tasks.py_task(n_direct_args=3)
def note(number, path, seconds):
    """Writes down which worker has begun it."""
    import os
    import time

    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{number}:{os.getppid()}\n".encode())
    os.close(descriptor)
    time.sleep(seconds)
    return f"{number}\n"


def begun(ledger: Path) -> list[tuple[int, int]]:
    """The number of the task and the worker, for each run."""
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return [(int(number), int(worker)) for number, worker in (line.split(":") for line in lines)]
