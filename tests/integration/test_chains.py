"""Chains of Python functions, which executors run ahead by themselves: every link of one may go wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loom.client import Client, Task, TaskFailed, tasks
from loom.limits import SMALL_OBJECT_BYTES

Chain = list[Task]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(cpus=1) as client:
        yield client


@tasks.py_task()
def add(value: object) -> bytes:
    return value.read()[:8] + b"+"  # type: ignore[attr-defined]


def chain(first: Task, length: int) -> Chain:
    made = [first]
    for _ in range(length):
        made.append(add(made[-1]))
    return made


def warm(client: Client) -> None:
    """So that functions are known to be short, and whole chains are sent."""
    client.wait(client.submit(chain(tasks.const(b""), 200)[-1:]))


def test_a_long_chain(client: Client) -> None:
    warm(client)
    made = chain(tasks.const(b"a"), 1000)
    assert client.gather(client.submit([made[3], made[-1]])) == [b"a+++", b"a+++++++" + b"+"]


@pytest.mark.parametrize("size", [SMALL_OBJECT_BYTES // 2, SMALL_OBJECT_BYTES * 2])
def test_a_link_that_is_too_large_to_be_kept(client: Client, size: int) -> None:
    warm(client)
    large = tasks.py_task()(lambda value: value.read() * size)
    made = chain(large(chain(tasks.const(b"b"), 50)[0]), 50)
    assert client.gather(client.submit(made[-1:])) == [b"bbbbbbbb+"]


def test_a_link_that_fails(client: Client) -> None:
    warm(client)

    @tasks.py_task()
    def fail(value: object) -> bytes:
        raise ValueError("in the middle")

    before = chain(tasks.const(b"c"), 20)
    futures = client.submit([before[-1], chain(fail(before[-1]), 20)[-1]])
    with pytest.raises(TaskFailed, match="in the middle"):
        client.gather(futures)
    assert client.gather(futures[:1]) == [b"c+++++++" + b"+"]


def test_a_link_that_becomes_a_plan(client: Client) -> None:
    warm(client)

    @tasks.py_task()
    def more(value: object) -> Task:
        return add(add(tasks.const(b"d")))

    made = chain(more(chain(tasks.const(b""), 20)[-1]), 3)
    assert client.gather(client.submit(made[-1:])) == [b"d+++++"]


def test_a_link_whose_process_dies(client: Client) -> None:
    warm(client)

    @tasks.py_task()
    def die(value: object) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    futures = client.submit([chain(die(chain(tasks.const(b""), 20)[-1]), 20)[-1]])
    with pytest.raises(TaskFailed, match="SIGKILL"):
        client.gather(futures)
    assert client.gather(client.submit(chain(tasks.const(b"e"), 3)[-1:])) == [b"e+++"]


def test_a_link_that_takes_long_does_not_hold_up_what_can_run_elsewhere(tmp_path: Path) -> None:
    """On two cores: what follows a long task waits for it, everything else goes on."""
    with Client(cpus=2) as client:
        warm(client)
        may_end = tmp_path / "may-end"

        @tasks.py_task()
        def slow(value: object) -> bytes:
            while not may_end.exists():
                time.sleep(0.01)
            return value.read()  # type: ignore[attr-defined, no-any-return]

        long = client.submit(chain(slow(tasks.const(b"f")), 5)[-1:])
        others = client.submit([add(tasks.const(b"%d" % n)) for n in range(200)])
        client.wait(others)
        assert not long[0].finished()
        may_end.touch()
        assert client.gather(long) == [b"f+++++"]
