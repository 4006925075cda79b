"""What simulated tasks do. An object is a digest of the task that made it and of its inputs.

So a result can be compared with a plain evaluation of the plan, however it came about. Objects have few elements: with
no more of them than a `dslice` makes slices at least, each of its slices is one element.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import product
from typing import Final, NamedTuple

from msgspec import Struct, msgpack

from loom.messages import ARRAY_MAKE, DGET, DSLICE, GET, SAME, SLICE, GetConfig, PlanChunk, SliceConfig
from loom.resources import Request
from loom.tasktypes.plan import Task, encode_redirect
from loom.tasktypes.task import InputReference, Source

OK: Final = "ok"
FAIL: Final = "fail"
CRASH: Final = "crash"
REDIRECT: Final = "redirect"
FLAKY: Final = "flaky"  # fails the first few times

UNKNOWN: Final = "sim/unknown"
_SERVER_MADE: Final = (SAME, GET, SLICE, ARRAY_MAKE)  # types of tasks that the server puts in a plan
PLACES: Final = {
    **dict.fromkeys(_SERVER_MADE, "inline"),
    "sim/inline": "inline",
    "sim/executor": "executor",
    "sim/program": "program",
}
MOST_ELEMENTS: Final = 4  # of a simulated object
NO_ELEMENTS: Final = f"{DGET}: the input has no elements"  # so it begins
BAD_PATH: Final = b"/full/"  # a checkpoint below it cannot be written
DISK_FULL: Final = "no space left on device"

_SURELY_US: Final = 1_000_000  # what is so much above its time limit is ended; what is less may be done before
_DIGEST_BYTES: Final = 16
_SIZE_BYTES: Final = 8


class SimObject(NamedTuple):
    digest: bytes
    size_bytes: int
    length: int = 0

    def packed(self) -> bytes:
        return self.digest + self.size_bytes.to_bytes(_SIZE_BYTES, "little") + bytes([self.length])


def unpack(packed: bytes) -> SimObject:
    size_bytes = int.from_bytes(packed[_DIGEST_BYTES:-1], "little")
    return SimObject(packed[:_DIGEST_BYTES], size_bytes, packed[-1])


_items: Final[dict[bytes, tuple[SimObject, ...]]] = {}  # of every array there ever was, by its digest


class SubTask(Struct, array_like=True):
    """A task of a redirection's plan: `inputs` below 0 are the redirecting task's own (-1 is the first)."""

    symbol: str
    cpus: int
    inputs: list[int]
    config: bytes


class Spec(Struct, array_like=True):
    """A task's config. `salt` is its own in the whole run. `retries` and `limit_ms` are the task's rules."""

    salt: int
    outcome: str
    duration_us: int
    size_bytes: int
    plan: list[SubTask] = []
    length: int = 0
    fails_first: int = 0
    retries: int = 0
    limit_ms: int = 0

    def over_limit_us(self, symbol: str) -> int:
        """By how much it takes longer than it may."""
        if not self.limit_ms or PLACES.get(symbol) == "inline":
            return 0
        return max(0, self.duration_us - 1000 * self.limit_ms)


class Failure(NamedTuple):
    error: str


def encode_spec(spec: Spec) -> bytes:
    return msgpack.encode(spec)


def spec_of(symbol: str, config: bytes) -> Spec:
    return Spec(0, OK, 1, 0) if symbol in _SERVER_MADE else msgpack.decode(config, type=Spec)


def run(symbol: str, config: bytes, inputs: Sequence[SimObject], n_run: int) -> SimObject | Failure | PlanChunk:
    """What the n-th run of a task comes to, counted from 1."""
    if symbol == SAME:
        return inputs[0]
    if symbol == ARRAY_MAKE:
        return array_of(inputs)
    if symbol in (GET, SLICE):
        return part_of(inputs[0], symbol, config)
    spec = spec_of(symbol, config)
    if spec.outcome == REDIRECT:
        return encode_redirect(_plan_of(spec))
    if spec.outcome in (FAIL, CRASH) or (spec.outcome == FLAKY and n_run <= spec.fails_first):
        return Failure(error_of(spec))
    digest = blake2b(digest_size=_DIGEST_BYTES)
    digest.update(b"%d %d" % (spec.salt, len(inputs)))
    for given in inputs:
        digest.update(given.digest)
    return SimObject(digest.digest(), spec.size_bytes, spec.length)


def array_of(items: Sequence[SimObject]) -> SimObject:
    digest = blake2b(b"".join(item.digest for item in items), digest_size=_DIGEST_BYTES).digest()
    _items[digest] = tuple(items)
    return SimObject(digest, sum(item.size_bytes for item in items), len(items))


def part_of(whole: SimObject, symbol: str, config: bytes) -> SimObject:
    """An element or a slice; that of anything but an array has elements of its own."""
    if whole.digest in _items and symbol == GET:
        return _items[whole.digest][msgpack.decode(config, type=GetConfig).index]
    digest = blake2b(whole.digest + symbol.encode() + config, digest_size=_DIGEST_BYTES).digest()
    return SimObject(digest, whole.size_bytes // (whole.length or 1), digest[0] % 3)


def limit_text(limit_ms: int) -> str:
    return f"time limit of {limit_ms / 1000:g} s exceeded"


def unlikely(spec: Spec) -> str:
    """Stands for the error of a task that is only run too seldom where it has also failed for another reason."""
    return f"unless it is killed: {error_of(spec)}"


def error_of(spec: Spec) -> str:
    return f"task {spec.salt} {'crashes' if spec.outcome == CRASH else 'fails'}"


def _plan_of(spec: Spec) -> Task:
    tasks: list[Task] = []
    for sub in spec.plan:
        inputs: list[Source] = [InputReference(-1 - i) if i < 0 else tasks[i] for i in sub.inputs]
        task = Task(sub.symbol, tuple(inputs), sub.config, Request(sub.cpus) if sub.cpus else None)
        set_rules(task, spec_of(sub.symbol, sub.config))
        tasks.append(task)
    return tasks[-1]


def set_rules(task: Task, spec: Spec) -> None:
    task.retries = spec.retries
    task.time_limit_s = spec.limit_ms / 1000 if spec.limit_ms else None


class Expected(NamedTuple):
    """What a task must come to: its object, or one of several errors; where both are given, either.

    `parts`: what a dynamic task (`dynamic`) or a copied consumer of one is expanded to.
    """

    value: SimObject | None
    errors: frozenset[str]
    parts: tuple[Expected, ...] = ()
    dynamic: bool = False

    def __bool__(self) -> bool:
        return self.value is not None


def expect(symbol: str, config: bytes, inputs: Sequence[Expected], checkpoint: bytes = b"") -> Expected:
    """The plain evaluation of one task; redirections nest no deeper than workloads make them."""
    if symbol in (DGET, DSLICE):
        return _expect_dynamic(symbol, [part for given in inputs for part in given.parts or (given,)])
    if any(given.dynamic and given.parts for given in inputs):
        unique = list(dict.fromkeys(map(id, (given for given in inputs if given.dynamic and given.parts))))
        by_id = {id(given): given for given in inputs}
        copies = []
        for pieces in product(*(by_id[key].parts for key in unique)):
            piece_of = dict(zip(unique, pieces, strict=True))
            copies.append(expect(symbol, config, [piece_of.get(id(given), given) for given in inputs]))
        return _array_of(copies, dynamic=False)
    flat = [part for given in inputs for part in given.parts or (given,)]
    expected = _expect_one(symbol, config, flat)
    if checkpoint.startswith(BAD_PATH) and expected:
        return expected._replace(errors=expected.errors | {DISK_FULL})  # consumers may have been quicker
    return expected


def _expect_dynamic(symbol: str, sources: Sequence[Expected]) -> Expected:
    errors = frozenset[str]().union(*(given.errors for given in sources))
    values = [given.value for given in sources if given.value is not None]
    if len(values) < len(sources):
        return Expected(None, errors)
    pieces = [part_of(value, *_piece(symbol, index)) for value in values for index in range(value.length)]
    if not pieces and symbol == DGET:
        return Expected(None, errors | {NO_ELEMENTS})
    if not pieces:
        pieces = [part_of(values[0], SLICE, msgpack.encode(SliceConfig(0, 0)))]
    return _array_of([Expected(piece, errors) for piece in pieces], dynamic=True)


def _piece(symbol: str, index: int) -> tuple[str, bytes]:
    if symbol == DGET:
        return GET, msgpack.encode(GetConfig(index))
    return SLICE, msgpack.encode(SliceConfig(index, index + 1))


def _array_of(parts: Sequence[Expected], dynamic: bool) -> Expected:
    errors = frozenset[str]().union(*(part.errors for part in parts))
    values = [part.value for part in parts if part.value is not None]
    value = array_of(values) if len(values) == len(parts) else None
    return Expected(value, errors, tuple(parts), dynamic)


def _expect_one(symbol: str, config: bytes, inputs: Sequence[Expected]) -> Expected:
    errors = frozenset[str]().union(*(given.errors for given in inputs))
    if symbol == UNKNOWN:  # that may be found out before its inputs are there
        return Expected(None, errors | {UNKNOWN})
    if not all(inputs):
        return Expected(None, errors)
    spec = spec_of(symbol, config)
    if spec.over_limit_us(symbol):
        errors |= {limit_text(spec.limit_ms)}
        if spec.over_limit_us(symbol) > _SURELY_US:
            return Expected(None, errors)
    if spec.outcome == FLAKY:  # not all of its failures need have been heard of, and others may count too
        errors |= {(error_of if spec.fails_first > spec.retries else unlikely)(spec)}
    if spec.outcome == REDIRECT:
        made: list[Expected] = []
        for sub in spec.plan:
            own = [inputs[-1 - i] if i < 0 else made[i] for i in sub.inputs]
            made.append(expect(sub.symbol, sub.config, own))
        return made[-1]._replace(errors=made[-1].errors | errors)
    values = [given.value for given in inputs]
    outcome = run(symbol, config, [value for value in values if value is not None], spec.fails_first + 1)
    if isinstance(outcome, Failure):
        return Expected(None, errors | {outcome.error})
    assert isinstance(outcome, SimObject)
    return Expected(outcome, errors)
