"""What the tests of the contract have in common: short ways to run a task, and programs that tell what happens.

| section of the contract       | tests                                                             |
|-------------------------------|-------------------------------------------------------------------|
| 1 names and entry points      | test_1_names.py (client, futures), test_1_processes.py (the rest) |
| 2 plans                       | test_2_plans.py                                                   |
| 3 tasks                       | test_3_table.py (every row), test_3_tasks.py, test_3_requests.py  |
| 4 external programs           | test_4_programs.py                                                |
| 5 Python functions            | test_5_functions.py (inputs, values), test_5_outcomes.py          |
|   retries, limits, cancelling | test_5_limits.py, test_5_cancelling.py                            |
| 6 dynamic slice and get       | test_6_dynamic.py                                                 |
| 7 own types                   | test_7_plugins.py                                                 |
| 8 reports                     | test_8_reports.py                                                 |
| 9 checkpoints                 | test_9_checkpoints.py                                             |
| 10 the documents of HyperLoom | test_10_seeds.py                                                  |

Those that take the fixture `client` run against an embedded cluster and against a server with two workers that were
started with the console scripts.
"""

from pathlib import Path

import pytest

from loom.client import Client, Task, TaskFailed, tasks

LARGE = bytes(range(256)) * 1280  # 320 KiB: a file in the worker


def run(client: Client, task: Task) -> object:
    return client.submit_one(task).gather()


def failure(client: Client, task: Task) -> str:
    """What the task says when it fails, which it has to."""
    with pytest.raises(TaskFailed) as caught:
        client.submit_one(task).gather()
    return caught.value.error_msg


def number(value: object) -> int:
    """An unsigned 64-bit little-endian number, as `size` and `length` give it."""
    assert isinstance(value, bytes)
    assert len(value) == 8
    return int.from_bytes(value, "little")


def shell(script: str, *args: object, **kwargs: object) -> Task:
    return tasks.run(("/bin/sh", "-c", script), *args, **kwargs)  # type: ignore[arg-type]


def noting(path: Path, text: str = "x") -> Task:
    """A program that leaves a line in a file each time it runs, and prints it."""
    return shell(f"echo {text} | tee -a {path}")


def meeting(directory: Path, me: int, everybody: int, then: str) -> str:
    """A script that goes on only when `everybody` of its kind run at the same time."""
    return f"touch {directory}/{me}; until [ $(ls {directory} | wc -l) = {everybody} ]; do sleep 0.01; done; {then}"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
