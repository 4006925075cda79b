"""The task that runs an external program: how it is built, and what its configuration means.

The running itself is the worker's (`executors.programs`).
"""

import os
from collections.abc import Iterable, Sequence
from typing import Final, NoReturn, TypeAlias

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from loom.data.base import DataObject
from loom.errors import LoomError
from loom.limits import MAX_PATH_BYTES
from loom.messages import RUN
from loom.resources import Request, cpu1
from loom.tasktypes import checks
from loom.tasktypes.base import RunContext, TaskError, TaskType
from loom.tasktypes.task import Source, Task

STDOUT_FILE: Final = b"+out"  # where they are in the run directory while the program runs
STDERR_FILE: Final = b"+err"

_RESERVED: Final = frozenset({STDOUT_FILE, STDERR_FILE})
_VARIABLE: Final = b"$"

Text: TypeAlias = str | bytes | os.PathLike[str]
Name: TypeAlias = str | bytes | None


class RunConfig(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A program's arguments, and the names of its inputs and outputs in the run directory.

    Input `i` of the task is the file `inputs[i]`, or standard input where that is None, or with a `$` in front the
    value of every argument equal to it. An output None is standard output. Paths are relative and free of `..`; no
    name stands twice, none is a folder of another.
    """

    args: list[bytes]
    inputs: list[bytes | None]
    outputs: list[bytes | None]


_encode: Final = Encoder().encode
_DECODER: Final = Decoder(RunConfig)


def run(
    args: str | Sequence[Text],
    inputs: Iterable[tuple[Source, Name]] = (),
    outputs: Iterable[Name] = (None,),
    stdin: Source | None = None,
    request: Request | None = cpu1,
) -> Task:
    """Run a program in a fresh directory.

    A str `args` is split at white space. `inputs` are pairs: `(task, "name")` is a file there, `(task, None)` standard
    input as `stdin` is, `(task, "$name")` replaces every argument equal to `$name`. `outputs` are the files to keep,
    None is standard output; one of them is the result itself, several are an array. LoomError where a name is
    absolute, leaves the directory, is empty or stands twice.
    """
    if isinstance(args, bytes):
        raise LoomError(f"run: args={args!r:.200} is neither a str nor a sequence of arguments")
    if isinstance(outputs, str | bytes):
        raise LoomError(f"run: outputs={outputs!r} is one name, not a series of names")
    pairs = [_pair(given) for given in checks.series("run", inputs)]
    if stdin is not None:
        pairs.append((stdin, None))
    try:
        config = RunConfig(
            args=[_argument(arg) for arg in (args.split() if isinstance(args, str) else args)],
            inputs=[_clean_name(name) for _, name in pairs],
            outputs=[_clean_name(name) for name in checks.series("run", outputs)],
        )
        check_run_config(config)
    except (TypeError, ValueError) as error:
        raise LoomError(f"run: {error}") from None
    return Task(RUN, tuple([given for given, _ in pairs]), _encode(config), request)


def parse_run_config(config: bytes, n_inputs: int) -> RunConfig:
    """The configuration of a `loom/run/run` task with so many inputs; TaskError where it is not valid."""
    parsed = checks.parse_config(RUN, config, _DECODER)
    if len(parsed.inputs) != n_inputs:
        raise TaskError(f"{RUN}: {len(parsed.inputs)} names for {n_inputs} inputs")
    try:
        check_run_config(parsed)
    except ValueError as error:
        raise TaskError(f"{RUN}: {error}") from None
    return parsed


def is_variable(name: bytes) -> bool:
    """Whether an input's name is that of a variable, not of a file."""
    return name.startswith(_VARIABLE)


def check_run_config(config: RunConfig) -> None:
    """ValueError that says what is wrong with the arguments or names."""
    if not config.args:
        raise ValueError("there is no program to run")
    for arg in config.args:
        if b"\0" in arg:
            raise ValueError(f"the argument {_shown(arg)} has a NUL in it")
    names = [name for name in (*config.inputs, *config.outputs) if name is not None]
    if config.inputs.count(None) > 1:
        raise ValueError("standard input is given twice")
    if config.outputs.count(None) > 1:
        raise ValueError("standard output is asked for twice")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"the name {_shown(twice)} is given twice")
    files = [name for name in config.inputs if name is not None and not is_variable(name)]
    for name in files:
        if name in _RESERVED:
            raise ValueError(f"the name {_shown(name)} is the program's own output")
    files += [name for name in config.outputs if name is not None]
    for name in files:
        _check_path(name)
    _check_folders(files)


def _check_path(name: bytes) -> None:
    if not name:
        raise ValueError("a file name is empty")
    if b"\0" in name or len(name) > MAX_PATH_BYTES:
        raise ValueError(f"{_shown(name)} is no file name")
    if name.startswith(b"/"):
        raise ValueError(f"the file name {_shown(name)} is absolute")
    parts = name.split(b"/")
    if b".." in parts:
        raise ValueError(f"the file name {_shown(name)} leaves the directory")
    if b"" in parts or b"." in parts:
        raise ValueError(f"{_shown(name)} is no plain file name")


def _check_folders(files: Sequence[bytes]) -> None:
    """No file may be a folder of another one."""
    known = frozenset(files)
    for name in files:
        folder = name
        while b"/" in folder:
            folder = folder.rpartition(b"/")[0]
            if folder in known:
                raise ValueError(f"{_shown(folder)} is a file and the folder of {_shown(name)}")


def _argument(arg: Text) -> bytes:
    try:
        return os.fsencode(arg)
    except TypeError:
        raise LoomError(f"run: the argument {arg!r:.200} is no text; write str({arg!r:.200})") from None


def _pair(given: tuple[Source, Name]) -> tuple[Source, Name]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise LoomError(f"run: an input is a pair (task, name), not {given!r:.200}")
    return given[0], given[1]


def _clean_name(name: Name) -> bytes | None:
    """The name as bytes, without `./` in front of its parts. TypeError where it is no name."""
    if name is None:
        return None
    encoded = os.fsencode(name)
    parts = encoded.split(b"/")
    return b"/".join([part for part in parts if part != b"."]) or encoded


def _shown(name: bytes) -> str:
    return repr(os.fsdecode(name))


def _refuse(_context: RunContext, _config: bytes, _inputs: Sequence[DataObject]) -> NoReturn:
    raise AssertionError(f"{RUN} is started by the worker, it does not run inside a process of Loom")


TYPES: Final = (TaskType(RUN, "program", _refuse),)
