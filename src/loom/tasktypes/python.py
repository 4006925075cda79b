"""Python values and functions in plans: how they are built."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from loom.data.own import pack_own
from loom.data.pack import to_packed
from loom.data.pyobj import PyObj, pickle_value
from loom.errors import LoomError
from loom.messages import Rules
from loom.resources import Request, cpu1
from loom.tasktypes import checks
from loom.tasktypes.task import Source, Task, make_rules

PY_VALUE: Final = "loom/py/value"
PY_CALL: Final = "loom/py/call"
PY_CALL_OLD: Final = "loom/py_call"  # the original's name in its documentation


class CallConfig(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """How a function is called. `direct_args`: a pickled tuple, or empty where there are none."""

    context: bool
    direct_args: bytes


_encode: Final = Encoder().encode
CALL_DECODER: Final = Decoder(CallConfig)


def py_value(obj: object) -> Task:
    """A Python object as a data object; an instance of an own data type as an object of that type.

    LoomError where it cannot be pickled or packed.
    """
    own = pack_own(obj)
    if own is not None:
        return Task(PY_VALUE, (), to_packed(own), cpu1)
    try:
        value = to_packed(PyObj.of(obj))
    except Exception as error:
        raise LoomError(f"py_value: {_described(obj)} cannot be pickled: {error}") from error
    return Task(PY_VALUE, (), value, cpu1)


def py_call(obj: Source, inputs: Iterable[Source] = (), direct_args: Sequence[object] = ()) -> Task:
    """Call the function that is the value of the task `obj`: first with `direct_args`, then with the inputs, wrapped.

    LoomError where a direct argument cannot be pickled.
    """
    config = _call_config("py_call", False, tuple(direct_args))
    return Task(PY_CALL, (obj, *checks.series("py_call", inputs)), config, cpu1)


def py_task(
    label: str | None = None,
    request: Request | None = cpu1,
    context: bool = False,
    n_direct_args: int = 0,
    *,
    retries: int = 0,
    time_limit_s: float | None = None,
    priority: int = 0,
) -> "Callable[[Callable[..., object]], PyTask]":
    """Decorate a function so that calling it makes a task that calls it.

    The task's label is `label` or the function's name. With `context` the function's first argument is a Context. The
    first `n_direct_args` arguments of a call are passed as they are; all others are tasks or futures, which the
    function sees wrapped. It may return bytes, str, a wrapper, a list of these, or a task to be run in its place.
    `retries`, `time_limit_s` and `priority` are set on each task that is made.
    """
    if callable(label):
        raise LoomError("py_task: write @py_task() with parentheses")
    if n_direct_args < 0:
        raise LoomError(f"py_task: n_direct_args={n_direct_args} is negative")
    rules = make_rules(retries, time_limit_s, priority)

    def decorate(function: Callable[..., object]) -> PyTask:
        return PyTask(function, label, request, context, n_direct_args, rules)

    return decorate


class PyTask:
    """A decorated function; calling it makes a task.

    The function is pickled at the first call, once. LoomError where that fails, or where a call's arguments do not
    fit.
    """

    def __init__(
        self,
        function: Callable[..., object],
        label: str | None,
        request: Request | None,
        context: bool,
        n_direct_args: int,
        rules: Rules | None,
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._label: str = label or str(getattr(function, "__name__", type(function).__name__))
        self._request = request
        self._context = context
        self._n_direct_args = n_direct_args
        self._rules = rules
        self._config = _call_config(self._label, context, ())
        self._function_input: tuple[Source, ...] = ()  # the task that lays the function down, once it is pickled

    def __call__(self, *args: Any) -> Task:
        config = self._config
        n_direct = self._n_direct_args
        if n_direct:
            if len(args) < n_direct:
                raise LoomError(f"{self._label}: takes {n_direct} direct arguments, got {len(args)}")
            config = _call_config(self._label, self._context, args[:n_direct])
            args = args[n_direct:]
        for value in args:
            if not isinstance(value, Source):
                raise LoomError(
                    f"{self._label}: {value!r:.200} is neither a task nor a future; pass plain values as direct "
                    "arguments (n_direct_args) or make them tasks with py_value"
                )
        inputs = (self._function_input or self._pickle_function()) + args  # one and the same where there are no more
        return Task(PY_CALL, inputs, config, self._request, self._label, rules=self._rules)

    def _pickle_function(self) -> tuple[Source, ...]:
        task = py_value(self._function)
        task.resource_request = None  # it only lays bytes down: no core has to be free for it
        self._function_input = (task,)
        return self._function_input

    def __getstate__(self) -> dict[str, object]:
        """Without the pickled function: one that calls itself would carry a copy of itself."""
        return {**self.__dict__, "_function_input": ()}


def _call_config(label: str, context: bool, direct_args: tuple[object, ...]) -> bytes:
    try:
        pickled = pickle_value(direct_args) if direct_args else b""
    except Exception as error:
        raise LoomError(f"{label}: a direct argument cannot be pickled: {error}") from error
    return _encode((context, pickled))  # as a CallConfig, for less than making one


def _described(obj: object) -> str:
    name = getattr(obj, "__qualname__", None)
    return f"{type(obj).__name__} {name!r}" if name else f"an object of type {type(obj).__name__}"
