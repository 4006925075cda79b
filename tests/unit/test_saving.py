"""Checkpoints as files: what stands in them, and what comes back."""

import os
from pathlib import Path

import pytest

from loom.data.array import Array
from loom.data.base import DataObject
from loom.data.file import FileObject
from loom.data.index import Index
from loom.data.pack import value_of
from loom.data.pieces import column_of
from loom.data.plain import Plain
from loom.data.pyobj import PyObj
from loom.tasktypes.base import RunContext, TaskError
from loom.tasktypes.registry import TASK_TYPES
from loom.tasktypes.saving import LOAD, MAGIC, find_task, load_task, save, write_checkpoint


def run(symbol: str, config: bytes | str, *inputs: DataObject) -> DataObject:
    assert isinstance(config, bytes)
    context = RunContext(1, lambda _level, _text: None, None, {}, ())
    made = TASK_TYPES[symbol].run(context, config, inputs)
    assert isinstance(made, DataObject)
    return made


def load(path: bytes) -> DataObject:
    return run(LOAD, load_task(path).config)


@pytest.fixture
def path(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "new" / "folder" / "checkpoint")


@pytest.mark.parametrize("content", [b"", b"abc", bytes(200_000)])
def test_a_d_object_is_saved_as_its_bytes(path: bytes, content: bytes) -> None:
    assert write_checkpoint(path, Plain(content)) == len(content)
    assert Path(os.fsdecode(path)).read_bytes() == content
    assert value_of(load(path)) == content
    assert os.listdir(os.path.dirname(path)) == [b"checkpoint"]


def test_a_file_is_saved_as_its_bytes(path: bytes, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    write_checkpoint(path, FileObject(os.fsencode(source), 11))
    source.write_bytes(b"changed")
    loaded = load(path)
    assert isinstance(loaded, Plain)
    assert loaded.read() == b"from a file"


@pytest.mark.parametrize(
    "value",
    [
        Array([]),
        Array([Plain(b"a"), Array([Plain(b"bc")])]),
        Index(Plain(b"a\nb\n"), column_of([2, 4])),
        PyObj.of({"a": (1, 2)}),
        Array([Plain(bytes(100_000)), PyObj.of([1])]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_objects_are_saved_in_a_container(path: bytes, value: DataObject) -> None:
    write_checkpoint(path, value)
    loaded = load(path)
    assert type(loaded) is type(value)
    assert value_of(loaded) == value_of(value)
    assert (loaded.size(), loaded.length()) == (value.size(), value.length())


def test_bytes_that_look_like_a_container_stay_bytes(path: bytes) -> None:
    write_checkpoint(path, Array([Plain(b"a")]))
    container = Path(os.fsdecode(path)).read_bytes()
    assert container.startswith(MAGIC)
    write_checkpoint(path, Plain(container))
    assert value_of(load(path)) == container
    write_checkpoint(path, Array([Plain(b"b")]))
    assert value_of(load(path)) == [b"b"]  # the mark of the other bytes counts for nothing


def test_a_long_name(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / ("n" * 255))
    for value in (Plain(b"a"), Array([Plain(b"b")])):
        write_checkpoint(path, value)
        assert value_of(load(path)) == value_of(value)


def test_a_damaged_container_is_refused_at_every_byte(path: bytes) -> None:
    write_checkpoint(path, Array([Plain(b"some bytes"), PyObj.of(1)]))
    file = Path(os.fsdecode(path))
    whole = file.read_bytes()
    for place in range(len(MAGIC), len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(TaskError, match="is damaged"):
            load(path)
    for end in range(len(MAGIC), len(whole)):
        file.write_bytes(whole[:end])
        with pytest.raises(TaskError, match="is damaged"):
            load(path)


def test_what_is_not_there(path: bytes) -> None:
    with pytest.raises(TaskError, match="cannot be read: No such file"):
        load(path)


def test_which_files_are_there(path: bytes, tmp_path: Path) -> None:
    write_checkpoint(path, Plain(b""))
    question = find_task([path, path + b"x", os.fsencode(tmp_path)])
    assert value_of(run(question.task_type, question.config)) == b"\1\0\0"


def test_a_write_that_fails_leaves_what_was_there(path: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(path, Plain(b"old"))

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loom.tasktypes.saving.write_segments", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(path, Plain(b"new"))
    assert value_of(load(path)) == b"old"
    assert os.listdir(os.path.dirname(path)) == [b"checkpoint"]


def test_save_says_what_is_wrong(tmp_path: Path) -> None:
    task = save(find_task([]), "relative")
    with pytest.raises(TaskError, match="'relative' is no absolute path"):
        run(task.task_type, task.config, Plain(b""))
    task = save(find_task([]), tmp_path / "no" / "such")
    with pytest.raises(TaskError, match=r"no/such cannot be written: No such file"):
        run(task.task_type, task.config, Plain(b""))
    with pytest.raises(TaskError, match="no D-object but loom/array"):
        run(task.task_type, task.config, Array([]))
