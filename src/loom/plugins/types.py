"""Registering types: decorators for a module that is loaded by workers and, for data types, by clients too."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from loom.data.base import DataObject
from loom.data.own import register_own_type
from loom.errors import LoomError
from loom.limits import MAX_SYMBOL_CHARS
from loom.tasktypes.base import RunContext, TaskError, TaskType
from loom.tasktypes.calls import outcome_of, story_of
from loom.tasktypes.registry import add_task_type
from loom.tasktypes.task import Task
from loom.tasktypes.wrappers import Context, wrap

_RESERVED: Final = "loom/"

_Function = TypeVar("_Function", bound=Callable[..., object])
_Class = TypeVar("_Class", bound=type)

_homes: dict[str, str] = {}  # by symbol: where its type is defined
TASK_SYMBOLS: Final[list[str]] = []  # registered in this process, in order
DATA_SYMBOLS: Final[list[str]] = []


def task_type(symbol: str, *, context: bool = False) -> Callable[[_Function], _Function]:
    """Make a function or class what runs tasks of this type; it stays as it is.

    A function is called as `function(inputs, config)`: a list of the inputs, wrapped as a Python task gets them, and
    the configuration as bytes. It returns what a Python task may return: bytes, str, an input, own data, a list of
    these, or a task to be run in its place. TaskError is a failure that its user is told in these words, any other
    exception one with its traceback.

    A class is made once in a process, without arguments, when its first task comes; its method `run(inputs, config)` is
    called for each. With `context` a Context comes first: `function(ctx, inputs, config)`.

    LoomError where the symbol is not of the form `prefix/name`, is Loom's own, or is taken.
    """
    _check_symbol("task_type", symbol)
    home = _caller()

    def decorate(code: _Function) -> _Function:
        if not callable(code):
            raise LoomError(f"task_type: {symbol} needs a function or a class with a method run, not {code!r:.200}")
        if isinstance(code, type) and not callable(getattr(code, "run", None)):
            raise LoomError(f"task_type: {symbol}: the class {code.__name__} has no method run(inputs, config)")
        name = str(getattr(code, "__qualname__", type(code).__name__))
        if _claim(symbol, f"{name} ({home})"):
            TASK_SYMBOLS.append(symbol)
        add_task_type(TaskType(symbol, "executor", _Runner(code, context)))
        return code

    return decorate


def data_type(symbol: str) -> Callable[[_Class], _Class]:
    """Make a class an own data type: an instance that a task returns travels, and comes back as an instance.

    It has to have `pack()`, which gives the content as something bytes-like or a list of such, and a class method
    `unpack(packed)`, which takes the same as read-only memoryviews. It may have `size()` (else the bytes packed) and
    `length()` (else 0), and `get(i)` and `slice(start, end)`, which make it a sequence for tasks; they return what a
    Python task may. Without `slice` a slice is the array of its elements.

    LoomError where the symbol is not of the form `prefix/name`, is Loom's own, or is taken, or a method is missing.
    """
    _check_symbol("data_type", symbol)
    home = _caller()

    def decorate(cls: _Class) -> _Class:
        if not isinstance(cls, type):
            raise LoomError(f"data_type: {symbol} needs a class, not {cls!r:.200}")
        missing = [method for method in ("pack", "unpack") if not callable(getattr(cls, method, None))]
        if hasattr(cls, "get") and not hasattr(cls, "length"):
            missing.append("length")
        if missing:
            raise LoomError(f"data_type: {symbol}: the class {cls.__name__} has no method {', '.join(missing)}")
        if _claim(symbol, f"{cls.__qualname__} ({home})"):
            DATA_SYMBOLS.append(symbol)
        register_own_type(symbol, cls)
        return cls

    return decorate


def add_native(symbol: str, library: str, run: Callable[[RunContext, bytes, Sequence[DataObject]], DataObject]) -> None:
    """A task type of a shared library. LoomError as for `task_type`."""
    _check_symbol(library, symbol)
    if _claim(symbol, library):
        TASK_SYMBOLS.append(symbol)
    add_task_type(TaskType(symbol, "executor", run))


class _Runner:
    """Runs tasks of one type with the user's code."""

    def __init__(self, code: Callable[..., object], context: bool) -> None:
        self._code = code
        self._context = context
        self._call: Callable[..., object] | None = None if isinstance(code, type) else code

    def __call__(self, context: RunContext, config: bytes, inputs: Sequence[DataObject], /) -> DataObject | Task:
        args: list[Any] = [Context(context.task_id, context.log)] if self._context else []
        args += ([wrap(value, position) for position, value in enumerate(inputs)], config)
        try:
            if self._call is None:
                made: Any = self._code()
                self._call = made.run
            result = self._call(*args)
        except TaskError:
            raise
        except BaseException as error:  # sys.exit is the end of the task, not of its executor
            raise TaskError(story_of(error)) from None
        return outcome_of(result)


def check_own_symbol(symbol: str) -> None:
    """ValueError that says why this cannot be the symbol of an own type."""
    if symbol.startswith(_RESERVED):
        raise ValueError(f"{symbol!r} is reserved: symbols that begin with {_RESERVED} are Loom's own")
    prefix, _, name = symbol.partition("/")
    if not prefix or not name or not symbol.isprintable() or " " in symbol:
        raise ValueError(f"{symbol!r} is no symbol: write prefix/name, such as my/count")
    if len(symbol) > MAX_SYMBOL_CHARS:
        raise ValueError(f"{symbol[:40]!r}... has {len(symbol)} characters (limit {MAX_SYMBOL_CHARS})")


def _check_symbol(who: str, symbol: str) -> None:
    if not isinstance(symbol, str):
        raise LoomError(f"{who}: the symbol comes first, as in @task_type('my/count'), not {symbol!r:.200}")
    try:
        check_own_symbol(symbol)
    except ValueError as error:
        raise LoomError(f"{who}: {error}") from None


def _claim(symbol: str, home: str) -> bool:
    """Whether the symbol is new; LoomError where another type has it. A module loaded again defines its types again."""
    old = _homes.get(symbol)
    if old is not None and old != home:
        raise LoomError(f"the symbol {symbol} is defined twice: by {old} and by {home}")
    _homes[symbol] = home
    return old is None


def _caller() -> str:
    """File and line of the code that called the caller."""
    frame = sys._getframe(2)
    return f"{os.path.abspath(frame.f_code.co_filename)}:{frame.f_lineno}"
