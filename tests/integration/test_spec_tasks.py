"""The contract, section 3: the builders, what sizes and lengths are, requests and policies."""

import sys
import time
from pathlib import Path

import pytest
from clusters import Cluster, eventually

from loom.client import Client, LoomError, Task, TaskFailed, tasks

LARGE = bytes(range(256)) * 1024  # 256 KiB: a file in the worker


def number(value: object) -> int:
    assert isinstance(value, bytes)
    assert len(value) == 8
    return int.from_bytes(value, "little")


def run(client: Client, task: Task) -> object:
    return client.submit_one(task).gather()


def failure(client: Client, task: Task) -> str:
    with pytest.raises(TaskFailed) as caught:
        client.submit_one(task).gather()
    return caught.value.error_msg


def pyobj(value: object) -> Task:
    return tasks.py_value(value)


class TestConstAndMerge:
    @pytest.mark.parametrize("data", [b"", b"\0\xff bytes", "text: žluťoučký", LARGE])
    def test_const(self, client: Client, data: bytes | str) -> None:
        assert run(client, tasks.const(data)) == (data.encode() if isinstance(data, str) else data)

    def test_merge(self, client: Client) -> None:
        parts = [tasks.const(c) for c in ("a", "", "b")]
        assert run(client, tasks.merge(parts)) == b"ab"
        assert run(client, tasks.merge(parts, ", ")) == b"a, , b"
        assert run(client, tasks.merge(parts, b"\0")) == b"a\0\0b"
        assert run(client, tasks.merge(())) == b""
        assert run(client, tasks.merge((), "-")) == b""
        assert run(client, tasks.merge(parts[:1], "-")) == b"a"

    def test_merge_of_large_ones(self, client: Client) -> None:
        assert run(client, tasks.merge([tasks.const(LARGE)] * 3, "|")) == b"|".join([LARGE] * 3)

    @pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1])
    def test_sizes_where_the_way_of_keeping_changes(self, client: Client, size: int) -> None:
        data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
        const = tasks.const(data)
        assert run(client, const) == data
        assert run(client, tasks.merge((const, const), "|")) == data + b"|" + data
        assert run(client, tasks.array_make((const, const))) == [data, data]
        assert run(client, tasks.run("/bin/cat", stdin=const)) == data
        assert number(run(client, tasks.size(const))) == size


class TestOpen:
    def test_a_file(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(LARGE)
        assert run(client, tasks.open(str(tmp_path / "file"))) == LARGE

    def test_a_relative_name_is_taken_from_here(self, client: Client, here: Path) -> None:
        (here / "file").write_text("content")
        assert run(client, tasks.open("file")) == b"content"

    def test_an_empty_file(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        opened = tasks.open(str(tmp_path / "empty"))
        assert run(client, opened) == b""
        assert run(client, tasks.split(opened)) == []

    def test_a_missing_file_fails_the_task_and_is_named(self, client: Client, tmp_path: Path) -> None:
        assert str(tmp_path / "missing") in failure(client, tasks.open(str(tmp_path / "missing")))

    def test_a_directory(self, client: Client, tmp_path: Path) -> None:
        assert "not a regular file" in failure(client, tasks.open(str(tmp_path)))

    def test_a_thousand_files(self, client: Client, tmp_path: Path) -> None:
        for i in range(1000):
            (tmp_path / str(i)).write_text(f"{i};")
        opened = [tasks.open(str(tmp_path / str(i))) for i in range(1000)]
        assert run(client, tasks.merge(opened)) == "".join(f"{i};" for i in range(1000)).encode()
        assert client.gather(client.submit(opened))[999] == b"999;"


class TestPieces:
    def test_split(self, client: Client) -> None:
        lines = tasks.const("one\ntwo\n\nlast")
        assert run(client, tasks.split(lines)) == [b"one\n", b"two\n", b"\n", b"last"]
        assert run(client, tasks.split(tasks.const("a;b;"), ";")) == [b"a;", b"b;"]
        assert run(client, tasks.split(tasks.const("a<>b<>c"), b"<>")) == [b"a<>", b"b<>", b"c"]
        assert run(client, tasks.split(tasks.const(""))) == []

    def test_split_of_a_large_one(self, client: Client, tmp_path: Path) -> None:
        content = b"".join(b"line %d\n" % i for i in range(100_000))
        (tmp_path / "lines").write_bytes(content)
        for source in (tasks.const(content), tasks.open(str(tmp_path / "lines"))):
            index = client.submit_one(tasks.split(source))
            assert number(run(client, tasks.length(index))) == 100_000
            assert number(run(client, tasks.size(index))) == len(content) + 8 * 100_000
            assert run(client, tasks.get(index, 99_999)) == b"line 99999\n"
            assert run(client, tasks.slice(index, 10, 12)) == b"line 10\nline 11\n"
            index.release()

    def test_get(self, client: Client) -> None:
        array = tasks.array_make([tasks.const(c) for c in "abc"])
        index = tasks.split(tasks.const("a\nb\nc\n"))
        assert run(client, tasks.get(array, 0)) == b"a"
        assert run(client, tasks.get(index, 2)) == b"c\n"
        for source in (array, index):
            for wrong in (3, -1, 1 << 40):
                assert f"element {wrong} is out of range, the input has 3" in failure(client, tasks.get(source, wrong))

    def test_slice(self, client: Client) -> None:
        array = tasks.array_make([tasks.const(c) for c in "abcd"])
        index = tasks.split(tasks.const("a\nb\nc\nd"))
        assert run(client, tasks.slice(array, 1, 3)) == [b"b", b"c"]
        assert run(client, tasks.slice(index, 1, 3)) == b"b\nc\n"
        assert run(client, tasks.slice(array, 2, 100)) == [b"c", b"d"]
        assert run(client, tasks.slice(index, 2, 100)) == b"c\nd"
        for start, end in ((2, 2), (3, 1), (50, 60)):
            assert run(client, tasks.slice(array, start, end)) == []
            assert run(client, tasks.slice(index, start, end)) == b""
        with pytest.raises(LoomError, match="bounds count from 0"):
            tasks.slice(array, -1, 2)

    def test_only_what_has_pieces_has_them(self, client: Client) -> None:
        assert "only arrays and indexes" in failure(client, tasks.get(tasks.const("abc"), 0))
        assert "only arrays and indexes" in failure(client, tasks.slice(pyobj([1]), 0, 1))


class TestArrays:
    def test_both_names(self) -> None:
        assert tasks.array_make is tasks.make_array

    def test_fetched_as_lists(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("file")
        inner = tasks.array_make((tasks.const("x"), pyobj((1, 2)), tasks.array_make(())))
        outer = tasks.make_array((inner, tasks.open(str(tmp_path / "f")), tasks.split(tasks.const("a\nb"))))
        assert run(client, outer) == [[b"x", (1, 2), []], b"file", [b"a\n", b"b"]]

    def test_large_elements(self, client: Client) -> None:
        array = client.submit_one(tasks.array_make([tasks.const(LARGE + bytes([i])) for i in range(10)]))
        assert run(client, tasks.get(array, 7)) == LARGE + b"\x07"
        assert run(client, tasks.slice(array, 8, 10)) == [LARGE + b"\x08", LARGE + b"\x09"]
        array.release()


class TestSizeAndLength:
    def test_of_every_kind(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"12345")
        value = {"A": "B"}
        for source, size, length in (
            (tasks.const("abc"), 3, 0),
            (tasks.open(str(tmp_path / "f")), 5, 0),
            (tasks.array_make((tasks.const("abc"), tasks.const("de"))), 5, 2),
            (tasks.array_make(()), 0, 0),
            (tasks.split(tasks.const("a\nb\n")), 4 + 2 * 8, 2),
            (pyobj(value), sys.getsizeof(value), 0),
        ):
            future = client.submit_one(source)
            assert number(run(client, tasks.size(future))) == size
            assert number(run(client, tasks.length(future))) == length
            future.release()


class TestWhatIsNoDObject:
    def test_is_named(self, client: Client) -> None:
        array = tasks.array_make((tasks.const("a"),))
        for source, symbol in ((array, "loom/array"), (pyobj(1), "loom/pyobj")):
            assert f"no D-object but {symbol}" in failure(client, tasks.merge((tasks.const("x"), source)))
            assert f"no D-object but {symbol}" in failure(client, tasks.split(source))
            assert f"'name' of the program is no D-object but {symbol}" in failure(
                client, tasks.run("/bin/cat name", [(source, "name")])
            )


class TestRequests:
    def test_who_asks_for_a_core(self) -> None:
        const = tasks.const("x")
        light = (
            const,
            tasks.merge(()),
            tasks.open("x"),
            tasks.split(const),
            tasks.get(const, 0),
            tasks.slice(const, 0, 1),
            tasks.size(const),
            tasks.length(const),
            tasks.array_make(()),
        )
        assert [task.resource_request for task in light] == [None] * len(light)

        @tasks.py_task()
        def function() -> str:
            return ""

        value = tasks.py_value(1)
        for task in (tasks.run("x"), value, tasks.py_call(value), function()):
            assert task.resource_request == tasks.cpu1 == tasks.cpus(1)

    def test_two_wide_programs_exclude_each_other(self, embedded: Client, tmp_path: Path) -> None:
        script = f"mkdir {tmp_path}/lock && sleep 0.1 && rmdir {tmp_path}/lock"
        wide = [tasks.run(("/bin/sh", "-c", script), request=tasks.cpus(2)) for _ in range(4)]
        assert embedded.gather(embedded.submit(wide)) == [b""] * 4

    def test_light_tasks_run_beside_full_cores(self, client: Client) -> None:
        full = client.submit([tasks.run("/bin/sleep 30") for _ in range(4)])
        began = time.monotonic()
        assert run(client, tasks.merge([tasks.const(c) for c in "abc"])) == b"abc"
        assert time.monotonic() - began < 10
        client.release(full)

    def test_a_program_without_a_request_runs_beside_full_cores(self, client: Client) -> None:
        full = client.submit([tasks.run("/bin/sleep 30") for _ in range(4)])
        simple = client.submit_one(tasks.run("/bin/echo simple", request=None))
        try:
            eventually(simple.finished, 10)
        finally:
            client.release((*full, simple))

    def test_what_no_worker_can_meet_waits_alone_until_one_comes(self, cluster: Cluster) -> None:
        with cluster.client() as client:
            wide = client.submit_one(tasks.run("/bin/echo wide", request=tasks.cpus(64)))
            assert client.gather(client.submit([tasks.run("/bin/echo n") for _ in range(20)])) == [b"n\n"] * 20
            assert wide.running()
            cluster.add_worker(cpus=64)
            assert wide.gather() == b"wide\n"

    def test_tasks_wait_for_the_first_worker(self, cluster: Cluster) -> None:
        for worker in cluster.workers:
            worker.terminate()
            assert worker.wait(10) == 0
        with Client("127.0.0.1", cluster.port) as client:
            eventually(lambda: client.get_stats()["n_workers"] == 0)
            future = client.submit_one(tasks.run("/bin/echo late"))
            cluster.add_worker()
            assert future.gather() == b"late\n"
