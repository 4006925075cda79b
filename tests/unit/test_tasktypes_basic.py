import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom import tasks
from loom.data.array import Array
from loom.data.base import DataObject
from loom.data.buffers import FileSegment
from loom.data.file import FileObject
from loom.data.index import Index
from loom.data.pack import value_of
from loom.data.plain import Plain
from loom.data.pyobj import PyObj
from loom.errors import LoomError
from loom.limits import SMALL_OBJECT_BYTES
from loom.tasktypes import content
from loom.tasktypes.plan import Task
from loom.tasktypes.registry import TASK_TYPES, RunContext, TaskError


def context(directory: Path | None = None) -> RunContext:
    """A context that keeps large outputs in `directory`, or in memory."""
    new_output = None if directory is None else lambda _size: str(directory / "output")
    return RunContext(1, lambda _level, _text: None, new_output, {}, ())


def run(task: Task, inputs: Sequence[DataObject] = (), directory: Path | None = None) -> DataObject:
    """Run a task on objects in the place of its inputs."""
    config = task.config.encode() if isinstance(task.config, str) else task.config
    result = TASK_TYPES[task.task_type].run(context(directory), config, inputs)
    assert isinstance(result, DataObject)
    return result


anything = tasks.const("")  # where only the input given to `run` counts
pieces = Array([Plain(b"a"), PyObj.of(1), Array([])])
lines = Index(Plain(b"a\nbb\nc"), (2).to_bytes(8, "little") + (5).to_bytes(8, "little") + (6).to_bytes(8, "little"))


def test_const() -> None:
    assert run(tasks.const("é")).read() == "é".encode()  # type: ignore[attr-defined]
    assert run(tasks.const(b"\0")).read() == b"\0"  # type: ignore[attr-defined]
    for wrong in (5, None, "\ud800"):
        with pytest.raises(LoomError, match="const"):
            tasks.const(wrong)  # type: ignore[arg-type]


def test_merge() -> None:
    inputs = [Plain(b"a"), Plain(b""), Plain([b"b", b"c"])]
    assert value_of(run(tasks.merge([]))) == b""
    assert value_of(run(tasks.merge(()), inputs)) == b"abc"
    assert value_of(run(tasks.merge((), "--"), inputs)) == b"a----bc"
    assert run(tasks.merge(()), inputs[:1]) is inputs[0]


def test_what_has_no_bytes_cannot_be_merged() -> None:
    with pytest.raises(TaskError, match="input 1 is no D-object but loom/array"):
        run(tasks.merge(()), [Plain(b"a"), Array([])])


def test_a_large_result_goes_to_a_file(tmp_path: Path) -> None:
    half = bytes(SMALL_OBJECT_BYTES)
    merged = run(tasks.merge(()), [Plain(half), Plain(b"x")], tmp_path)
    assert isinstance(merged, Plain)
    (segment,) = merged.segments()
    assert isinstance(segment, FileSegment)
    assert segment.file.path == str(tmp_path / "output")
    assert merged.read() == half + b"x"
    assert value_of(run(tasks.merge(()), [Plain(half), Plain(b"x")])) == half + b"x"


def test_a_small_result_does_not(tmp_path: Path) -> None:
    run(tasks.const(bytes(SMALL_OBJECT_BYTES)), (), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    monkeypatch.chdir(tmp_path)
    task = tasks.open("file")
    monkeypatch.chdir("/")
    opened = run(task)
    assert isinstance(opened, FileObject)
    assert (opened.path, opened.read()) == (os.fsencode(tmp_path / "file"), b"abc")


def test_open_fails_with_the_name(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no-such-file: No such file"):
        run(tasks.open(tmp_path / "no-such-file"))
    with pytest.raises(TaskError, match="not a regular file"):
        run(tasks.open(tmp_path))
    with pytest.raises(TaskError, match="no absolute path"):
        run(Task("loom/data/open", (), "relative"))
    with pytest.raises(LoomError, match="no file name"):
        tasks.open("a\0b")


@pytest.mark.parametrize(
    ("data", "char", "expected"),
    [
        (b"", None, []),
        (b"a", None, [b"a"]),
        (b"\n", None, [b"\n"]),
        (b"a\n\nb", None, [b"a\n", b"\n", b"b"]),
        (b"a\n", None, [b"a\n"]),
        (b"a;b", ";", [b"a;", b"b"]),
        (b"abbbc", "bb", [b"abb", b"bc"]),
        ("aéb".encode(), "é", ["aé".encode(), b"b"]),
    ],
)
def test_split(data: bytes, char: str | None, expected: list[bytes]) -> None:
    assert value_of(run(tasks.split(anything, char), [Plain(data)])) == expected


@given(st.text("ab", max_size=60), st.text("ab", min_size=1, max_size=3), st.integers(1, 9))
def test_splitting_is_the_same_in_blocks_of_any_size(text: str, char: str, block_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "_SPLIT_BLOCK_BYTES", block_bytes)
        result = value_of(run(tasks.split(anything, char), [Plain(text.encode())]))
    *whole, rest = text.split(char)
    assert result == [(piece + char).encode() for piece in whole] + ([rest.encode()] if rest else [])


def test_split_refuses() -> None:
    with pytest.raises(LoomError, match="empty"):
        tasks.split(anything, "")
    with pytest.raises(TaskError, match="loom/index"):
        run(tasks.split(anything), [lines])


def test_get() -> None:
    assert run(tasks.get(anything, 0), [pieces]) is pieces.get(0)
    assert value_of(run(tasks.get(anything, 1), [lines])) == b"bb\n"
    for index in (3, -1, 1 << 40):
        with pytest.raises(TaskError, match=f"element {index} is out of range, the input has 3"):
            run(tasks.get(anything, index), [lines])
    with pytest.raises(TaskError, match="the input is loom/data"):
        run(tasks.get(anything, 0), [Plain(b"abc")])
    for wrong in ("1", 1.5, 1 << 63):
        with pytest.raises(LoomError, match="get"):
            tasks.get(anything, wrong)  # type: ignore[arg-type]


def test_same_is_its_input() -> None:
    assert run(Task("loom/base/same", (anything,)), [pieces]) is pieces


def test_slice() -> None:
    assert value_of(run(tasks.slice(anything, 1, 99), [pieces])) == [1, []]
    assert value_of(run(tasks.slice(anything, 1, 99), [lines])) == b"bb\nc"
    assert value_of(run(tasks.slice(anything, 2, 2), [lines])) == b""
    assert value_of(run(tasks.slice(anything, 3, 1), [pieces])) == []
    with pytest.raises(LoomError, match="count from 0"):
        tasks.slice(anything, -1, 2)


def test_pieces_of_an_external_file_are_copies(tmp_path: Path) -> None:
    large = SMALL_OBJECT_BYTES + 1
    (tmp_path / "file").write_bytes(b"x" * large + b"\ny")
    index = run(tasks.split(anything), [run(tasks.open(tmp_path / "file"))])
    line = run(tasks.get(anything, 0), [index], tmp_path)
    (tmp_path / "file").unlink()
    assert value_of(line) == b"x" * large + b"\n"


@pytest.mark.parametrize(("value", "size", "length"), [(Plain(b"abc"), 3, 0), (lines, 30, 3), (Array([lines]), 30, 1)])
def test_size_and_length(value: DataObject, size: int, length: int) -> None:
    assert value_of(run(tasks.size(anything), [value])) == size.to_bytes(8, "little")
    assert value_of(run(tasks.length(anything), [value])) == length.to_bytes(8, "little")


def test_array_make() -> None:
    assert value_of(run(tasks.array_make([]), [Plain(b"a"), lines])) == [b"a", [b"a\n", b"bb\n", b"c"]]
    assert tasks.make_array is tasks.array_make


@pytest.mark.parametrize("symbol", ["loom/base/get", "loom/base/slice", "loom/py/call", "loom/py/value"])
def test_a_malformed_configuration_fails_the_task(symbol: str) -> None:
    for config in (b"", b"\xff", b"text"):
        with pytest.raises(TaskError, match="malformed"):
            TASK_TYPES[symbol].run(context(), config, [pieces])


@pytest.mark.parametrize("symbol", ["loom/base/get", "loom/base/size", "loom/data/split"])
def test_a_wrong_number_of_inputs_fails_the_task(symbol: str) -> None:
    with pytest.raises(TaskError, match="takes one input, not 2"):
        TASK_TYPES[symbol].run(context(), b"", [pieces, pieces])


def test_inputs_have_to_be_a_series() -> None:
    with pytest.raises(LoomError, match="no series"):
        tasks.merge(anything)  # type: ignore[arg-type]


def test_only_some_builders_ask_for_a_core() -> None:
    light = [
        tasks.const(""),
        tasks.merge(()),
        tasks.open("a"),
        tasks.split(anything),
        tasks.get(anything, 0),
        tasks.slice(anything, 0, 1),
        tasks.size(anything),
        tasks.length(anything),
        tasks.array_make(()),
    ]
    assert {task.resource_request for task in light} == {None}
    heavy = [tasks.run("a"), tasks.py_value(1), tasks.py_call(anything), tasks.py_task()(print)()]
    assert {task.resource_request for task in heavy} == {tasks.cpu1}
