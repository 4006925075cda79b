"""Traces of real runs: what a client waited for is in them at once, whoever ran it."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from clusters import Cluster, eventually
from loom.client import Client, LoomError, Task, TaskFailed, tasks
from loom.errors import ClientClosed
from loom.ids import number_of, session_of
from loom.trace import records
from loom.trace.reader import Trace, TraceFile, read_trace, rows_of
from loom.trace.records import LOOP_LANE, KindNamed, PlanGrew, TaskEndedBadly, TasksRan

T = TypeVar("T")

MIB = 1 << 20


class Ran(NamedTuple):
    task: int
    kind: KindNamed
    lane: int
    begun_us: int
    duration_us: int
    size_bytes: int
    worker: str


def files_of(trace: Trace, role: str) -> list[TraceFile]:
    return [file for file in trace.files if file.opened.role == role]


def found(trace: Trace, kind: type[T]) -> list[T]:
    return [record for file in trace.files for record in file.records if isinstance(record, kind)]


def ran(directory: Path) -> list[Ran]:
    """All tasks that ended well; fails where one is of a kind that was not named before."""
    rows = []
    for file in files_of(read_trace(directory), "worker"):
        kinds: dict[int, KindNamed] = {}
        for record in file.records:
            if isinstance(record, KindNamed):
                assert record.kind not in kinds
                kinds[record.kind] = record
            elif isinstance(record, TasksRan):
                rows += [Ran(row[0], kinds[row[1]], *row[2:], file.opened.name) for row in rows_of(record)]
    return rows


def planned(directory: Path, client: Client) -> list[int]:
    """Numbers of the client's tasks that stand in the server's file."""
    grown = [plan for plan in found(read_trace(directory), PlanGrew) if plan.session == client._session]
    return [plan.first + row for plan in grown for row in range(len(plan.symbol_of) // 2)]


def numbers(rows: Iterable[Ran], client: Client) -> list[int]:
    return sorted(number_of(row.task) for row in rows if session_of(row.task) == client._session)


@tasks.py_task(label="double:all")
def double(value: object) -> bytes:
    return 2 * value.read()  # type: ignore[attr-defined,no-any-return]


@tasks.py_task()
def again(value: object) -> Task:
    return tasks.merge((value, value), delimiter="-")  # type: ignore[arg-type]


@tasks.py_task(label="bad")
def bad() -> bytes:
    raise ValueError("no such luck")


@tasks.py_task()
def dies() -> bytes:
    os._exit(3)


def meeting(place: Path, me: int, then: str) -> Task:
    """A program that waits until both 0 and 1 run, so that two workers of one core have one each."""
    script = f"touch {place}/{me}; until [ -e {place}/{1 - me} ]; do sleep 0.01; done; {then}"
    return tasks.run(("/bin/sh", "-c", script))


def run_some(client: Client, n: int = 4) -> None:
    client.gather(client.submit([double(tasks.const("x")) for _ in range(n)]))


# -- What is in it ----------------------------------------------------------------------------------------------------


def test_all_that_gather_waited_for_is_there_when_it_returns(client: Client, tmp_path: Path) -> None:
    client.set_trace(tmp_path)
    n_before = 0
    for n in (1, 300, 7):
        before_us = time.monotonic_ns() // 1000
        leaves = [double(tasks.const(str(i))) for i in range(n)]
        assert client.submit_one(tasks.merge(leaves)).gather() == b"".join(b"%d%d" % (i, i) for i in range(n))
        rows = [row for row in ran(tmp_path) if row.begun_us >= before_us]
        assert sorted(planned(tmp_path, client)) == numbers(ran(tmp_path), client)
        n_before += len(rows)
        assert len(numbers(ran(tmp_path), client)) == n_before
        counts = Counter(row.kind.symbol for row in rows)
        assert counts == {"loom/data/const": n, "loom/py/value": 1, "loom/py/call": n, "loom/data/merge": 1}
        now_us = time.monotonic_ns() // 1000
        for row in rows:
            assert row.begun_us + row.duration_us <= now_us
            assert (row.lane == LOOP_LANE) == (row.kind.cpus == 0)


def test_labels_sizes_and_durations(client: Client, tmp_path: Path) -> None:
    client.set_trace(tmp_path)
    sleeping = tasks.run(("/bin/sh", "-c", "sleep 0.2; printf 12345"))
    sleeping.label = "nap:7"
    assert client.submit_one(double(sleeping)).gather() == b"1234512345"
    by_label = {row.kind.label: row for row in ran(tmp_path)}
    assert by_label["double"].kind.symbol == "loom/py/call"
    assert by_label["double"].size_bytes == 10
    nap = by_label["nap"]
    assert (nap.kind.symbol, nap.kind.cpus, nap.size_bytes) == ("loom/run/run", 1, 5)
    assert 200_000 <= nap.duration_us < 10_000_000
    assert nap.lane != LOOP_LANE
    assert nap.begun_us + nap.duration_us <= by_label["double"].begun_us
    labels = {label for plan in found(read_trace(tmp_path), PlanGrew) for label in plan.labels}
    assert {"nap:7", "double:all"} <= labels


def test_a_running_task_is_in_no_ones_way(client: Client, tmp_path: Path) -> None:
    """Traces are read while the system runs; tasks that have not ended are only in the plan."""
    client.set_trace(tmp_path)
    waiting = client.submit_one(tasks.run(("/bin/sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.01; done")))
    run_some(client)
    trace = read_trace(tmp_path)
    assert not trace.notes
    assert waiting.task_id in planned(tmp_path, client)
    assert waiting.task_id not in numbers(ran(tmp_path), client)
    (tmp_path / "go").touch()
    waiting.gather()
    assert waiting.task_id in numbers(ran(tmp_path), client)


def test_a_redirected_task_says_what_it_became(client: Client, tmp_path: Path) -> None:
    client.set_trace(tmp_path)
    future = client.submit_one(again(tasks.const("a")))
    assert future.gather() == b"a-a"
    (changed,) = found(read_trace(tmp_path), records.InputsChanged)
    assert (changed.session, changed.number) == (client._session, future.task_id)
    (made,) = memoryview(changed.inputs).cast("Q")
    assert made in planned(tmp_path, client)
    assert made in numbers(ran(tmp_path), client)
    own = [row for row in ran(tmp_path) if number_of(row.task) == future.task_id]
    assert [row.kind.symbol for row in sorted(own, key=lambda row: row.begun_us)] == ["loom/py/call", "loom/base/same"]


def test_a_failed_task_is_there_with_its_text(client: Client, tmp_path: Path) -> None:
    client.set_trace(tmp_path)
    future = client.submit_one(tasks.merge([bad()]))
    with pytest.raises(TaskFailed, match="no such luck") as caught:
        future.gather()
    trace = read_trace(tmp_path)
    (ended,) = found(trace, TaskEndedBadly)
    (failed,) = found(trace, records.TaskFailed)
    assert number_of(ended.task) == failed.number
    assert ended.error == failed.error == caught.value.error_msg
    assert failed.worker == caught.value.worker
    assert failed.worker in {file.opened.name for file in files_of(trace, "worker")}
    del future


@pytest.mark.parametrize("how", ["program", "process", "built-in"])
def test_other_ways_to_fail(client: Client, tmp_path: Path, how: str) -> None:
    client.set_trace(tmp_path)
    task, said = {
        "program": (tasks.run(("/bin/sh", "-c", "echo why >&2; exit 2")), "status 2\nStderr:\nwhy"),
        "process": (dies(), "status 3"),
        "built-in": (tasks.get(tasks.array_make(()), 5), "5"),
    }[how]
    before_us = time.monotonic_ns() // 1000
    with pytest.raises(TaskFailed, match=said):
        client.submit_one(task).gather()
    ended = found(read_trace(tmp_path), TaskEndedBadly)
    assert ended
    for one in ended:
        assert said in one.error
        assert before_us <= one.begun_us <= one.begun_us + one.duration_us <= time.monotonic_ns() // 1000


def test_a_released_program_ended_badly(client: Client, tmp_path: Path) -> None:
    client.set_trace(tmp_path)
    future = client.submit_one(tasks.run(("/bin/sh", "-c", f"touch {tmp_path}/up; sleep 100")))
    eventually((tmp_path / "up").exists)
    number = future.task_id
    future.release()
    (ended,) = eventually(lambda: found(read_trace(tmp_path), TaskEndedBadly))
    assert (number_of(ended.task), ended.error) == (number, "cancelled")
    assert ended.duration_us > 0


def test_objects_that_moved(shared_cluster: Cluster, tmp_path: Path) -> None:
    with shared_cluster.client() as client:
        client.set_trace(tmp_path)
        made = [meeting(tmp_path, i, f"head -c {MIB} /dev/zero") for i in range(2)]
        assert len(client.submit_one(tasks.merge(made)).gather()) == 2 * MIB
        trace = read_trace(tmp_path)
        where = {row.task: row for row in ran(tmp_path) if row.size_bytes == MIB}
        assert len({row.worker for row in where.values()}) == 2
        (moved,) = [o for o in found(trace, records.ObjectFetched) if o.size_bytes == MIB]
        source = where[moved.object]
        workers = {file.opened.worker: file.opened.name for file in files_of(trace, "worker")}
        assert workers[moved.source] == source.worker
        assert moved.begun_us >= source.begun_us + source.duration_us


def test_samples_come_by_themselves(client: Client, tmp_path: Path) -> None:
    client.set_trace(tmp_path)
    future = client.submit_one(tasks.run(("/bin/sh", "-c", f"head -c {MIB} /dev/zero")))
    future.wait()

    def last() -> records.Sampled | None:
        samples = [s for s in found(read_trace(tmp_path), records.Sampled) if s.store_bytes >= MIB]
        return samples[-1] if len(samples) > 1 else None

    sample = eventually(last)
    assert sample is not None
    assert sample.n_objects >= 1
    assert sample.memory_bytes > 10 * MIB
    assert sample.cpu_us > 0
    future.release()


# -- Who writes where -------------------------------------------------------------------------------------------------


def test_the_directory_is_made_and_named_from_here(client: Client, here: Path) -> None:
    client.set_trace("new/trace")
    assert (here / "new" / "trace").is_dir()
    run_some(client)
    trace = read_trace("new/trace")
    (server,) = files_of(trace, "server")
    joined = {(r.worker, r.name, r.cpus) for r in server.records if isinstance(r, records.WorkerJoined)}
    opened = [file.opened for file in files_of(trace, "worker")]
    assert joined == {(worker.worker, worker.name, worker.cpus) for worker in opened}
    assert {worker.incarnation for worker in opened} == {server.opened.incarnation}


@pytest.mark.parametrize("path", ["file", "file/below", "zero\0byte", "", None])
def test_a_directory_that_cannot_be_is_refused_and_the_client_lives(client: Client, here: Path, path: str) -> None:
    (here / "file").write_bytes(b"")
    with pytest.raises(LoomError, match=r"directory for traces .* cannot be made"):
        client.set_trace(path)
    run_some(client)


def test_another_directory_moves_the_trace(client: Client, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    client.set_trace(first)
    run_some(client)
    before = numbers(ran(first), client)
    client.set_trace(second)
    run_some(client)
    assert numbers(ran(first), client) == before == planned(first, client)
    assert numbers(ran(second), client) == sorted(planned(second, client))
    assert not set(before) & set(planned(second, client))


def test_the_same_directory_again_goes_on(client: Client, tmp_path: Path) -> None:
    client.set_trace(tmp_path)
    run_some(client)
    client.set_trace(tmp_path)
    run_some(client)
    assert numbers(ran(tmp_path), client) == sorted(set(planned(tmp_path, client)))
    assert len(files_of(read_trace(tmp_path), "server")) == 1


def test_a_directory_that_was_removed_is_made_again(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    for _ in range(2):
        client.set_trace(folder)
        assert client.submit_one(tasks.run("/bin/echo here")).gather() == b"here\n"
        assert [row.size_bytes for row in ran(folder)] == [5]
        shutil.rmtree(folder)


def test_a_plan_that_is_there_already_is_told(client: Client, tmp_path: Path) -> None:
    late = client.submit_one(
        double(tasks.run(("/bin/sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.01; done; printf a")))
    )
    client.set_trace(tmp_path)
    eventually(lambda: list(tmp_path.glob("worker-*")))
    (tmp_path / "go").touch()
    assert late.gather() == b"aa"
    assert late.task_id in planned(tmp_path, client)
    assert late.task_id in numbers(ran(tmp_path), client)


def test_workers_that_come_and_go(cluster: Cluster, tmp_path: Path) -> None:
    directory = tmp_path / "trace"
    with cluster.client() as client:
        client.set_trace(directory)
        run_some(client)
        first, new = cluster.workers[0].itself().pid, cluster.add_worker().itself().pid
        cluster.await_workers(client)

        def new_one_works() -> bool:
            run_some(client, 30)
            return any(row.worker.endswith(f":{new}") for row in ran(directory))

        eventually(new_one_works)
        cluster.workers[0].terminate()
        cluster.workers[0].wait()
        cluster.await_workers(client)
        trace = read_trace(directory)
        joined = {r.worker: r.name for r in found(trace, records.WorkerJoined)}
        assert len(joined) == 3
        (left,) = found(trace, records.WorkerLeft)
        assert joined[left.worker].endswith(f":{first}")
        run_some(client, 30)
        assert numbers(ran(directory), client)[-1] == max(planned(directory, client))


def test_two_clients_are_in_one_trace_which_ends_with_the_one_who_asked(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    with shared_cluster.client() as other:
        with shared_cluster.client() as client:
            client.set_trace(tmp_path)
            client.get_stats()  # from here on the server knows
            run_some(client)
            run_some(other)
            for one in (client, other):
                assert numbers(ran(tmp_path), one) == sorted(planned(tmp_path, one))
        before = numbers(ran(tmp_path), other)
        run_some(other)
        assert numbers(ran(tmp_path), other) == before


def test_the_other_client_moves_it(shared_cluster: Cluster, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with shared_cluster.client() as one, shared_cluster.client() as two:
        one.set_trace(first)
        run_some(one)
        two.set_trace(second)
        two.get_stats()
        before = numbers(ran(first), one)
        run_some(one)
        run_some(two)
        assert numbers(ran(first), one) == before
        assert len(numbers(ran(second), one)) == len(before)
        assert len(numbers(ran(second), two)) == len(before)


def test_a_directory_that_goes_away_harms_nobody(client: Client, tmp_path: Path) -> None:
    directory = tmp_path / "trace"
    client.set_trace(directory)
    run_some(client)
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    run_some(client)


def test_a_closed_client_traces_nothing(shared_cluster: Cluster, tmp_path: Path) -> None:
    client = shared_cluster.client()
    client.close()
    with pytest.raises(ClientClosed):
        client.set_trace(tmp_path / "trace")
    assert not (tmp_path / "trace").exists()
