"""The task that runs an external program: how it is built, and what its configuration means.

The running itself is the worker's (`executors.programs`).
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NoReturn, TypeAlias

from msgspec import MsgspecError, Struct
from msgspec.msgpack import Decoder, Encoder

from loom.data.base import DataObject
from loom.errors import LoomError
from loom.messages import RUN
from loom.resources import Request, cpu1
from loom.tasktypes import checks
from loom.tasktypes.base import RunContext, TaskError, TaskType
from loom.tasktypes.paths import check_inside, shown
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


def check_files(config: bytes) -> None:
    """ValueError where a configuration names what it must not; where it is none at all, its task fails when it runs."""
    try:
        parsed = _DECODER.decode(config)
    except MsgspecError:
        return
    check_run_config(parsed)


def is_variable(name: bytes) -> bool:
    """Whether an input's name is that of a variable, not of a file."""
    return name.startswith(_VARIABLE)


def check_run_config(config: RunConfig) -> None:
    """ValueError that says what is wrong with the arguments or names."""
    if not config.args:
        raise ValueError("there is no program to run")
    for arg in config.args:
        if b"\0" in arg:
            raise ValueError(f"the argument {shown(arg)} has a NUL in it")
    if config.inputs.count(None) > 1:
        raise ValueError("standard input is given twice")
    if config.outputs.count(None) > 1 or (None in config.outputs and STDOUT_FILE in config.outputs):
        raise ValueError("standard output is asked for twice")
    names = [name for name in (*config.inputs, *config.outputs) if name is not None]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"the name {shown(twice)} is given twice")
    files = [name for name in config.inputs if name is not None and not is_variable(name)]
    for name in files:
        if name in _RESERVED:
            raise ValueError(f"the name {shown(name)} is the program's own output")
    files += [name for name in config.outputs if name is not None]
    check_inside(files)
    for name in files:
        if name not in _RESERVED and name.partition(b"/")[0] in _RESERVED:
            raise ValueError(f"the name {shown(name)} is below the program's own output")


def _argument(arg: Text) -> bytes:
    try:
        return os.fsencode(arg)
    except TypeError:
        raise LoomError(f"run: the argument {arg!r:.200} is no text; write str({arg!r:.200})") from None
    except UnicodeEncodeError:
        raise LoomError(f"run: the argument {arg!a:.200} is no valid text") from None


def _pair(given: tuple[Source, Name]) -> tuple[Source, Name]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise LoomError(f"run: an input is a pair (task, name), not {given!r:.200}")
    return given[0], given[1]


def _clean_name(name: Name) -> bytes | None:
    """The name as bytes, without `./` in front of its parts. TypeError where it is no name."""
    if name is None:
        return None
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        raise LoomError(f"run: the file name {name!a:.200} is no valid text") from None
    parts = encoded.split(b"/")
    return b"/".join([part for part in parts if part != b"."]) or encoded


def _refuse(_context: RunContext, _config: bytes, _inputs: Sequence[DataObject]) -> NoReturn:
    raise AssertionError(f"{RUN} is started by the worker, it does not run inside a process of Loom")


TYPES: Final = (TaskType(RUN, "program", _refuse),)
