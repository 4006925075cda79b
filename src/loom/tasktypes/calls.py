"""Python values and functions in plans: how they run."""

import pickle
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

from loom.data.base import DataObject
from loom.data.own import OwnObject
from loom.data.pack import from_packed
from loom.data.pyobj import PyObj
from loom.limits import KEPT_FUNCTIONS, MAX_ERROR_CHARS
from loom.tasktypes import checks
from loom.tasktypes.base import RunContext, TaskError, TaskType
from loom.tasktypes.outputs import store_object
from loom.tasktypes.python import CALL_DECODER, PY_CALL, PY_CALL_OLD, PY_VALUE
from loom.tasktypes.redirect import without_wrappers
from loom.tasktypes.task import Task
from loom.tasktypes.wrappers import Context, data_object_of, wrap


def _run_value(context: RunContext, config: bytes, _inputs: Sequence[DataObject]) -> DataObject:
    try:
        value = from_packed(config)
    except ValueError as error:
        raise TaskError(f"{PY_VALUE}: the configuration is malformed: {error}") from None
    if not isinstance(value, PyObj | OwnObject):
        raise TaskError(f"{PY_VALUE}: the configuration is no Python object but {value.symbol}")
    return store_object(context, value)


def _run_call(context: RunContext, config: bytes, inputs: Sequence[DataObject]) -> DataObject | Task:
    call = checks.parse_config(PY_CALL, config, CALL_DECODER)
    function = _live_function(context, inputs)
    args: list[Any] = [Context(context.task_id, context.log, context.attempt)] if call.context else []
    args += _direct_args(call.direct_args)
    args += [wrap(value, position) for position, value in enumerate(inputs) if position]
    try:
        result = function(*args)
    except BaseException as error:  # sys.exit is the end of the task, not of its executor
        raise TaskError(story_of(error)) from None
    return outcome_of(result)


def outcome_of(result: object) -> DataObject | Task:
    """What a function that has returned this makes of its task; TaskError where it is nothing that may be returned."""
    if isinstance(result, Task):
        return without_wrappers(result)
    try:
        return data_object_of(result)
    except RecursionError:
        raise TaskError("The function returned a list that is nested too deeply") from None


def _live_function(context: RunContext, inputs: Sequence[DataObject]) -> Any:
    """The function that is the first input, unpickled once for all its calls here."""
    if not inputs:
        raise TaskError(f"{PY_CALL}: there is no function to call")
    key = context.input_ids[0]
    function = context.functions.pop(key, None)
    if function is None:
        if not isinstance(inputs[0], PyObj):
            raise TaskError(f"{PY_CALL}: the first input is no Python object but {inputs[0].symbol}")
        try:
            function = inputs[0].load()
        except BaseException as error:
            raise TaskError(f"The function cannot be loaded\n{story_of(error)}") from None
        if not callable(function):
            raise TaskError(f"{PY_CALL}: the first input is no function but {type(function).__name__}")
    context.functions[key] = function  # at the end: what was called last goes last
    if len(context.functions) > KEPT_FUNCTIONS:
        del context.functions[next(iter(context.functions))]
    return function


def _direct_args(pickled: bytes) -> Sequence[Any]:
    if not pickled:
        return ()
    try:
        args = pickle.loads(pickled)
    except BaseException as error:
        raise TaskError(f"The direct arguments cannot be loaded\n{story_of(error)}") from None
    if not isinstance(args, tuple):
        raise TaskError(f"{PY_CALL}: the direct arguments are no tuple but {type(args).__name__}")
    return args


def story_of(error: BaseException) -> str:
    """The traceback from the user's own code on; of a long one the end."""
    below: TracebackType | None = error.__traceback__.tb_next if error.__traceback__ else None
    return "".join(traceback.format_exception(type(error), error, below))[-MAX_ERROR_CHARS:]


TYPES: Final = (
    TaskType(PY_VALUE, "inline", _run_value),
    TaskType(PY_CALL, "executor", _run_call),
    TaskType(PY_CALL_OLD, "executor", _run_call),
)
