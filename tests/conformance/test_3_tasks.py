"""The contract, section 3: what the builders of data tasks do, what sizes and lengths are."""

import os
import sys
from pathlib import Path

import pytest
from contract import LARGE, failure, meeting, number, run, shell

from loom.client import Client, LoomError, LoomException, Task, tasks


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

    def test_a_file_that_goes_while_it_is_needed(self, client: Client, tmp_path: Path) -> None:
        """Only its path is kept: who needs it then fails and names it."""
        path = tmp_path / "file"
        path.write_bytes(LARGE)
        opened = client.submit_one(tasks.open(str(path)))
        opened.wait()
        path.unlink()

        @tasks.py_task()
        def read(a):  # type: ignore[no-untyped-def]
            return a.read()

        for consumer in (tasks.merge((opened,)), tasks.split(opened), tasks.run("cat", stdin=opened), read(opened)):
            assert str(path) in failure(client, consumer)
        with pytest.raises(OSError, match=str(path)):
            opened.fetch()
        path.write_bytes(LARGE)
        assert opened.gather() == LARGE

    def test_a_directory(self, client: Client, tmp_path: Path) -> None:
        assert "not a regular file" in failure(client, tasks.open(str(tmp_path)))

    def test_a_thousand_files(self, client: Client, tmp_path: Path) -> None:
        for i in range(1000):
            (tmp_path / str(i)).write_text(f"{i};")
        opened = [tasks.open(str(tmp_path / str(i))) for i in range(1000)]
        assert run(client, tasks.merge(opened)) == "".join(f"{i};" for i in range(1000)).encode()
        assert client.gather(client.submit(opened))[999] == b"999;"

    def test_only_the_path_of_a_file_travels_between_workers(self, client: Client, tmp_path: Path) -> None:
        """On both workers it is the user's own file."""
        file, meet = tmp_path / "file", tmp_path / "meet"
        file.write_bytes(LARGE)
        meet.mkdir()
        opened = client.submit_one(tasks.open(str(file)))
        both = [shell(meeting(meet, i, 2, "readlink -f name"), [(opened, "name")]) for i in range(2)]
        assert client.gather(client.submit(both)) == [os.fsencode(file) + b"\n"] * 2
        changed = b"*" + LARGE[1:]  # of the same size: it is read when it is needed, not before
        file.write_bytes(changed)
        assert opened.gather() == changed


class TestSave:
    @pytest.mark.parametrize("data", [b"", b"content", LARGE])
    def test_a_file_is_written(self, client: Client, tmp_path: Path, data: bytes) -> None:
        """`save(input, filename)` writes a D-object to an absolute path, atomically; the result is empty."""
        target = tmp_path / "žluť file"
        assert run(client, tasks.save(tasks.const(data), str(target))) == b""
        assert target.read_bytes() == data
        inode = target.stat().st_ino
        assert run(client, tasks.save(tasks.const("another"), str(target))) == b""
        assert target.read_text() == "another"
        assert target.stat().st_ino != inode  # replaced as a whole, never written over
        assert list(tmp_path.iterdir()) == [target]

    def test_an_opened_file_can_be_saved_elsewhere(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(LARGE)
        saved = tasks.save(tasks.open(str(tmp_path / "source")), str(tmp_path / "target"))
        assert run(client, saved) == b""
        assert (tmp_path / "target").read_bytes() == LARGE

    def test_an_input_that_cannot_be_read_is_named(self, client: Client, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(LARGE)
        opened = client.submit_one(tasks.open(str(source)))
        opened.wait()
        source.unlink()
        assert str(source) in failure(client, tasks.save(opened, str(tmp_path / "target")))
        assert not list(tmp_path.iterdir())
        opened.release()

    def test_consumers_of_it_come_after_it(self, client: Client, tmp_path: Path) -> None:
        target = str(tmp_path / "target")
        read = tasks.run(("/bin/sh", "-c", f"cat {target}"), [(tasks.save(tasks.const("x"), target), "done")])
        assert run(client, read) == b"x"

    def test_a_relative_path_fails(self, client: Client, here: Path) -> None:
        assert "relative" in failure(client, Task("loom/data/save", (tasks.const("x"),), "relative"))
        with pytest.raises(LoomException, match="relative"):
            run(client, tasks.save(tasks.const("x"), "relative"))
        assert not list(here.iterdir())

    @pytest.mark.parametrize("where", ["missing/target", "file/target", "folder"])
    def test_what_cannot_be_written_fails_and_is_named(self, client: Client, tmp_path: Path, where: str) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
        assert str(tmp_path / where) in failure(client, tasks.save(tasks.const("x"), str(tmp_path / where)))
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]

    def test_what_is_no_d_object_is_named(self, client: Client, tmp_path: Path) -> None:
        for source, symbol in ((tasks.array_make(()), "loom/array"), (pyobj(1), "loom/pyobj")):
            target = str(tmp_path / "target")
            assert f"no D-object but {symbol}" in failure(client, tasks.save(source, target))
        assert not list(tmp_path.iterdir())


class TestPieces:
    def test_split(self, client: Client) -> None:
        lines = tasks.const("one\ntwo\n\nlast")
        assert run(client, tasks.split(lines)) == [b"one\n", b"two\n", b"\n", b"last"]
        assert run(client, tasks.split(tasks.const("a;b;"), ";")) == [b"a;", b"b;"]
        assert run(client, tasks.split(tasks.const("a<>b<>c"), b"<>")) == [b"a<>", b"b<>", b"c"]
        assert run(client, tasks.split(tasks.const(""))) == []

    @pytest.mark.parametrize(
        ("content", "char", "expected"),
        [
            (b"a\nb;c\n", ";", [b"a\nb;", b"c\n"]),
            (b"a\nb\n", None, [b"a\n", b"b\n"]),
            (b"no delimiter", ",", [b"no delimiter"]),
            (b",,", ",", [b",", b","]),
            (b"aXYbXXYc", "XY", [b"aXY", b"bXXY", b"c"]),
            (b"aaa", "aa", [b"aa", b"a"]),
            ("ažbžc".encode(), "ž", ["až".encode(), "bž".encode(), b"c"]),
            (b"1\0002\000", b"\0", [b"1\0", b"2\0"]),
            (b"", ",", []),
        ],
    )
    def test_split_at(self, client: Client, content: bytes, char: str | bytes | None, expected: list[bytes]) -> None:
        """Each piece keeps its delimiter (newline unless given; one or more bytes), a last one without it counts."""
        assert run(client, tasks.split(tasks.const(content), char)) == expected

    def test_split_where_a_delimiter_lies_across_parts(self, client: Client) -> None:
        text = LARGE.replace(b"<", b"-")
        halves = [tasks.const(text + b"<"), tasks.const(b">" + text)]
        assert run(client, tasks.split(tasks.merge(halves), "<>")) == [text + b"<>", text]

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
            (tasks.array_make(()), 0, 0),
            (tasks.split(tasks.const("")), 0, 0),
            (tasks.array_make((tasks.array_make((tasks.const("abc"), tasks.const("d"))), tasks.const("e"))), 5, 2),
        ):
            future = client.submit_one(source)
            assert number(run(client, tasks.size(future))) == size
            assert number(run(client, tasks.length(future))) == length
            future.release()


def test_symbols_of_data_objects(client: Client, tmp_path: Path) -> None:
    """`loom/data`, `loom/file`, `loom/array`, `loom/index`, `loom/pyobj`: as functions see what they are given."""

    @tasks.py_task()
    def show(*inputs):  # type: ignore[no-untyped-def]
        return " ".join(repr(a).split()[0] for a in inputs)

    (tmp_path / "f").touch()
    array = tasks.array_make(())
    inputs = (tasks.const("x"), tasks.open(str(tmp_path / "f")), array, tasks.split(tasks.const("x")), pyobj(1))
    assert run(client, show(*inputs)) == b"<loom/data <loom/file <loom/array <loom/index <loom/pyobj"


class TestWhatIsNoDObject:
    def test_is_named(self, client: Client) -> None:
        array = tasks.array_make((tasks.const("a"),))
        for source, symbol in ((array, "loom/array"), (pyobj(1), "loom/pyobj")):
            assert f"no D-object but {symbol}" in failure(client, tasks.merge((tasks.const("x"), source)))
            assert f"no D-object but {symbol}" in failure(client, tasks.split(source))
            assert f"'name' of the program is no D-object but {symbol}" in failure(
                client, tasks.run("/bin/cat name", [(source, "name")])
            )
