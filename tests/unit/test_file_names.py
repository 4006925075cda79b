"""Names of files in plans that mean harm: refused where the task is built, where it is submitted, and at the worker."""

import ast
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.msgpack import encode

import loom
from loom import tasks
from loom.data.file import FileObject
from loom.data.pack import describe, rebuild
from loom.data.plain import Plain
from loom.errors import InvalidPlan, LoomError
from loom.tasktypes.base import RunContext, TaskError
from loom.tasktypes.plan import encode_plan, encode_redirect
from loom.tasktypes.registry import TASK_TYPES
from loom.tasktypes.run import parse_run_config
from loom.tasktypes.saving import FIND, LOAD, write_checkpoint
from loom.tasktypes.task import Task

SOURCES = Path(loom.__file__).parent

HOSTILE_NAMES = [
    (b"/etc/passwd", "absolute"),
    (b"//etc/passwd", "absolute"),
    (b"..", "leaves the directory"),
    (b"../r1/out", "leaves the directory"),
    (b"a/../../b", "leaves the directory"),
    (b"a/..", "leaves the directory"),
    (b"", "empty"),
    (b".", "no plain file name"),
    (b"./a", "no plain file name"),
    (b"a/", "no plain file name"),
    (b"a//b", "no plain file name"),
    (b"a\0b", "no file name"),
    (b"\0", "no file name"),
    (b"n" * 256, "longer than 255 bytes"),
    (b"a/" + b"n" * 256, "longer than 255 bytes"),
    (b"a/" * 2048 + b"a", "no file name"),
    (b"+out/a", "below the program's own output"),
    (b"+err/a", "below the program's own output"),
]
CLEANED = (b"./a",)  # what builders take, and put right

HOSTILE_PATHS = [b"", b"relative", b"../up", b"/", b"/a/", b"/a/.", b"/a/..", b"/a\0b", b"/" + b"n" * 5000]


def config_of(
    inputs: Sequence[bytes | None] = (), outputs: Sequence[bytes | None] = (), args: Sequence[bytes] = (b"true",)
) -> bytes:
    return encode((args, inputs, outputs))


def run_here(symbol: str, config: bytes, *inputs: Plain) -> object:
    return TASK_TYPES[symbol].run(RunContext(1, lambda _level, _text: None, None, {}, ()), config, inputs)


@pytest.mark.parametrize(("name", "story"), HOSTILE_NAMES)
def test_a_file_name_that_leaves_the_run_directory_is_refused_when_built(name: bytes, story: str) -> None:
    if name in CLEANED:
        return
    for text in (name, os.fsdecode(name)):
        with pytest.raises(LoomError, match=f"run: .*{story}"):
            tasks.run("true", [(tasks.const(""), text)])
        with pytest.raises(LoomError, match=f"run: .*{story}"):
            tasks.run("true", outputs=[text])


@pytest.mark.parametrize(("name", "story"), HOSTILE_NAMES)
def test_a_file_name_that_leaves_the_run_directory_is_refused_when_submitted(name: bytes, story: str) -> None:
    hostile = Task("loom/run/run", (), config_of(outputs=[name]), label="hostile")
    with pytest.raises(InvalidPlan, match=f"task 'hostile': .*{story}"):
        encode_plan([hostile], 1, lambda _: 0)
    with pytest.raises(TaskError, match=story):
        encode_redirect(hostile)


@pytest.mark.parametrize(("name", "story"), HOSTILE_NAMES)
def test_a_file_name_that_leaves_the_run_directory_is_refused_at_the_worker(name: bytes, story: str) -> None:
    with pytest.raises(TaskError, match=story):
        parse_run_config(config_of(outputs=[name]), 0)
    with pytest.raises(TaskError, match=story):
        parse_run_config(config_of(inputs=[name]), 1)


@pytest.mark.parametrize(
    ("inputs", "outputs", "story"),
    [
        ([b"a", b"a"], [], "'a' is given twice"),
        ([b"a"], [b"a"], "'a' is given twice"),
        ([b"a"], [b"a/b"], "'a' is a file and the folder of 'a/b'"),
        ([b"a/b/c", b"a-b"], [b"a"], "'a' is a file and the folder of 'a/b/c'"),
        ([], [b"a/b", b"a"], "'a' is a file and the folder of 'a/b'"),
        ([b"+out"], [], "own output"),
        ([], [None, b"+out"], "standard output is asked for twice"),
        ([], [None, None], "standard output is asked for twice"),
        ([None, None], [], "standard input is given twice"),
        ([b"$x", b"$x"], [], "is given twice"),
    ],
)
def test_file_names_that_collide_are_refused(
    inputs: list[bytes | None], outputs: list[bytes | None], story: str
) -> None:
    constant = tasks.const("")
    with pytest.raises(LoomError, match=story):
        tasks.run("true", [(constant, name) for name in inputs], outputs)
    config = config_of(inputs, outputs)
    with pytest.raises(InvalidPlan, match=story):
        encode_plan([Task("loom/run/run", (constant,) * len(inputs), config)], 1, lambda _: 0)
    with pytest.raises(TaskError, match=story):
        parse_run_config(config, len(inputs))


def test_file_names_of_no_encoding_are_refused_with_their_reason() -> None:
    for build in (
        lambda: tasks.run("true", outputs=["\ud800"]),
        lambda: tasks.run("true", [(tasks.const(""), "a\ud800")]),
        lambda: tasks.run(["true", "\ud800"]),
    ):
        with pytest.raises(LoomError, match=r"run: .*ud800' is no valid text"):
            build()
    for builder in (tasks.open, lambda name: tasks.save(tasks.const(""), name)):
        with pytest.raises(LoomError, match=r"ud800' is no file name"):
            builder("/a\ud800")
    assert parse_run_config(config_of(outputs=[b"\xff\n"]), 0).outputs == [b"\xff\n"]  # Linux has such names


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"\xc1",
        encode(None),
        encode([[b"true"], []]),
        encode([[b"true"], [], [], []]),
        encode([[b"true"], [1], []]),
        encode([["true"], [["a"]], []]),
        encode({"args": [b"true"]}),
        config_of(args=[]),
        config_of(args=[b"a\0b"]),
        config_of()[:-1],
        config_of() + b"\0",
    ],
)
def test_a_damaged_run_configuration_fails_its_task_only(config: bytes) -> None:
    with pytest.raises(TaskError):
        parse_run_config(config, 0)


def test_many_hostile_names_are_checked_in_reasonable_time() -> None:
    """What costs the square of their number would stop a worker."""
    deep = b"/".join([b"d"] * 2000)
    names = [b"%d/%b" % (number, deep) for number in range(300)] + [b"n%d" % number for number in range(100_000)]
    assert len(parse_run_config(config_of(outputs=names), 0).outputs) == len(names)
    with pytest.raises(TaskError, match="given twice"):
        parse_run_config(config_of(outputs=[*names, names[-1]]), 0)


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_hostile_checkpoint_path_is_refused_when_submitted_and_at_the_worker(path: bytes, here: Path) -> None:
    task = tasks.const("a")
    task.checkpoint_path = os.fsdecode(path)
    with pytest.raises(InvalidPlan, match="checkpoint_path"):
        encode_plan([task], 1, lambda _: 0)
    with pytest.raises(ValueError, match="is no"):
        write_checkpoint(path, Plain(b"a"))
    with pytest.raises(TaskError, match="is no"):
        run_here(LOAD, path)
    assert run_here(FIND, encode([path])).read() == b"\0"  # type: ignore[attr-defined]
    assert os.listdir(here) == []


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_hostile_path_of_open_or_save_is_refused_at_the_worker(path: bytes, here: Path) -> None:
    with pytest.raises(TaskError):
        run_here("loom/data/save", path, Plain(b"a"))
    with pytest.raises(TaskError):
        run_here("loom/data/open", path)
    assert os.listdir(here) == []


@pytest.mark.parametrize("symbol", ["loom/data/save", "loom/data/open", "loom/checkpoint/load"])
def test_a_path_that_is_none_is_refused_when_submitted(symbol: str) -> None:
    inputs = (tasks.const(""),) if symbol == "loom/data/save" else ()
    for path in (b"", b"/a\0b", b"/" + b"n" * 5000):
        with pytest.raises(InvalidPlan, match="is no file name"):
            encode_plan([Task(symbol, inputs, path)], 1, lambda _: 0)


@pytest.mark.parametrize("path", [b"relative", b"../up", b"", b"/a\0b"])
def test_a_file_object_with_a_hostile_path_is_refused_where_it_arrives(path: bytes) -> None:
    header, segments = describe(FileObject(b"/no/such/file", 3))
    damaged = header.replace(encode(b"/no/such/file"), encode(path))
    assert damaged != header
    with pytest.raises(ValueError, match="absolute path"):
        rebuild(damaged, segments)


# -- No shell ----------------------------------------------------------------------------------------------------------

_SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell", "subprocess_shell"}
_STARTERS = {"Popen", "run", "call", "check_call", "check_output", "posix_spawn", "posix_spawnp"}


def shells_in(source: str) -> list[int]:
    """Lines where a shell is started, or a program from one string."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "subprocess", "asyncio", "pty"):
            found += [node.lineno for alias in node.names if alias.name in _SHELLS]
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        module = (
            function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
        )
        if name in _SHELLS and module in ("os", "subprocess", "asyncio", "pty", "loop", ""):
            found.append(node.lineno)
        if any(word.arg == "shell" for word in node.keywords):
            found.append(node.lineno)
        if name in _STARTERS and module in ("os", "subprocess", "") and node.args:
            given = node.args[0] if module != "os" else (node.args[1] if len(node.args) > 1 else None)
            if isinstance(given, ast.JoinedStr) or (isinstance(given, ast.Constant) and isinstance(given.value, str)):
                found.append(node.lineno)
            names = {part.value for part in ast.walk(given) if isinstance(part, ast.Constant)} if given else set()
            if names & {"sh", "bash", "/bin/sh", "/bin/bash", "-c"}:
                found.append(node.lineno)
    return found


def test_a_shell_is_nowhere_unless_the_user_names_one() -> None:
    files = list(SOURCES.rglob("*.py"))
    assert len(files) > 150
    found = {str(file.relative_to(SOURCES)): lines for file in files if (lines := shells_in(file.read_text()))}
    found.pop("deploy/private.py", None)  # its shell removes one directory that it is given as an argument
    assert found == {}
    for line in (
        "os.system('ls')",
        "os.popen(x)",
        "subprocess.run(x, shell=True)",
        "subprocess.Popen('ls -l')",
        "subprocess.run(['sh', '-c', x])",
        "asyncio.create_subprocess_shell(x)",
        "from os import system",
    ):
        assert shells_in(line), line


def test_arguments_with_the_signs_of_a_shell_stay_single_arguments() -> None:
    config = tasks.run("echo $(id) `id` ; rm -rf * | cat > x && y").config
    assert isinstance(config, bytes)
    assert parse_run_config(config, 0).args == [b"echo", *b"$(id) `id` ; rm -rf * | cat > x && y".split()]
