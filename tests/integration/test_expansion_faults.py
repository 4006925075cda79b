"""Copies of dynamic tasks and checkpoints when things go wrong: workers die, copies fail, results are released."""
# mypy: disable-error-code="no-untyped-def"

import os
from pathlib import Path

import pytest

from clusters import Cluster, assert_no_objects, eventually
from loom.client import Client, Task, TaskFailed, tasks
from loom.errors import InvalidPlan
from loom.resources import Request


@tasks.py_task(n_direct_args=1)
def gate(folder, piece):
    """Say that it runs, wait until it may go on."""
    import os
    import time

    number = piece.read().decode().strip()
    open(f"{folder}/runs-{number}", "w").close()
    while not os.path.exists(f"{folder}/open"):
        time.sleep(0.002)
    if os.path.exists(f"{folder}/bad-{number}"):
        raise ValueError(f"piece {number} is bad")
    return f"<{number}>"


def lines(count: int) -> Task:
    return tasks.split(tasks.const("".join(f"{i}\n" for i in range(count))))


def running(folder: Path) -> int:
    return len(list(folder.glob("runs-*")))


def test_a_worker_is_killed_while_it_runs_copies(cluster: Cluster, tmp_path: Path) -> None:
    gates = tmp_path / "gates"
    gates.mkdir()
    with cluster.client() as client:
        copies = gate(str(gates), tasks.dget(lines(20)))
        future = client.submit_one(tasks.merge((tasks.merge((copies,)), tasks.const("!"))))
        eventually(lambda: running(gates) >= 2, what="copies on both workers")
        cluster.watch()
        cluster.workers[0].kill()
        eventually(lambda: client.get_stats()["n_workers"] == 1)
        (gates / "open").touch()
        assert future.gather() == "".join(f"<{i}>" for i in range(20)).encode() + b"!"
        assert_no_objects(client)
        cluster.add_worker()  # sweeps what the killed one has left


def test_the_holder_of_the_pieces_is_killed_after_the_expansion(cluster: Cluster) -> None:
    with cluster.client() as client:
        pieces, copies = client.submit([tasks.dget(lines(30)), tasks.size(tasks.dslice(lines(30)))])
        client.wait([pieces, copies])
        cluster.watch()
        cluster.workers[0].kill()
        eventually(lambda: client.get_stats()["n_workers"] == 1)
        sizes = client.submit_one(tasks.array_make((tasks.size(pieces),)))
        assert pieces.fetch() == [f"{i}\n".encode() for i in range(30)]
        assert sum(int.from_bytes(size, "little") for size in copies.gather()) == sum(len(f"{i}\n") for i in range(30))
        assert [int.from_bytes(size, "little") for size in sizes.gather()] == [len(f"{i}\n") for i in range(30)]
        pieces.release()
        assert_no_objects(client)
        cluster.add_worker()


def test_a_copy_fails(client: Client, tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    (tmp_path / "bad-3").touch()
    dynamic = tasks.dget(lines(6))
    bad, good = client.submit([gate(str(tmp_path), dynamic), tasks.merge((dynamic, tasks.const("!")))])
    with pytest.raises(TaskFailed, match="piece 3 is bad"):
        bad.gather()
    assert good.gather() == [f"{i}\n!".encode() for i in range(6)]
    with pytest.raises(TaskFailed, match="piece 3 is bad"):
        client.submit_one(tasks.merge((bad,))).gather()


def test_copies_are_stopped_when_their_result_is_released(client: Client, tmp_path: Path) -> None:
    future = client.submit_one(tasks.merge((gate(str(tmp_path), tasks.dget(lines(50))),)))
    eventually(lambda: running(tmp_path) >= 1)
    future.release()
    eventually(lambda: client.get_stats()["n_tasks"] == 0)
    assert client.submit_one(tasks.merge((tasks.const("it goes on"),))).gather() == b"it goes on"
    assert running(tmp_path) < 50


def test_a_worker_is_killed_while_checkpoints_are_written(cluster: Cluster, tmp_path: Path) -> None:
    saved = tmp_path / "saved"

    def plan() -> list[Task]:
        made = []
        for i in range(40):
            task = tasks.run(("/bin/sh", "-c", f"head -c {2_000_000 + i} /dev/zero"))
            task.checkpoint_path = str(saved / f"{i}")
            made.append(task)
        return made

    with cluster.client() as client:
        futures = client.submit(plan())
        eventually(lambda: any(future.finished() for future in futures))
        cluster.watch()
        cluster.workers[1].kill()
        client.wait(futures)
        assert [os.path.getsize(saved / f"{i}") for i in range(40)] == [2_000_000 + i for i in range(40)]
        client.release(futures)
        loaded = client.submit([tasks.size(task) for task in plan()], load=True)
        assert [int.from_bytes(size, "little") for size in client.gather(loaded)] == [2_000_000 + i for i in range(40)]
        assert_no_objects(client)
        cluster.add_worker()


def test_the_end_of_the_client_waits_for_checkpoints(tmp_path: Path) -> None:
    with Client(cpus=1) as client:
        step = tasks.run(("/bin/sh", "-c", "head -c 30000000 /dev/zero"))
        step.checkpoint_path = str(tmp_path / "step")
        client.submit_one(tasks.size(step)).gather()
    assert os.path.getsize(tmp_path / "step") == 30_000_000
    assert os.listdir(tmp_path) == ["step"]


def test_a_task_that_returns_a_plan_with_a_request_that_is_none(client: Client) -> None:
    """It fails by itself; nobody loses a link over it."""

    @tasks.py_task()
    def bad():
        from loom.resources import Request

        task = tasks.const("x")
        task.resource_request = Request(0, (("mem", 5),))
        return task

    with pytest.raises(TaskFailed, match=r"is none that tasks\.resources makes"):
        client.submit_one(bad()).gather()
    task = tasks.const("x")
    task.resource_request = Request(1 << 40)
    with pytest.raises(InvalidPlan, match=r"is none that tasks\.resources makes"):
        client.submit_one(task)
    assert client.submit_one(tasks.const("y")).gather() == b"y"
