"""What simulated tasks do. An object is a digest of the task that made it and of its inputs.

So a result can be compared with a plain evaluation of the plan, however it came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from msgspec import Struct, msgpack

from loom.messages import PlanChunk
from loom.resources import Request
from loom.tasktypes.plan import Task, encode_redirect
from loom.tasktypes.task import InputReference, Source

OK: Final = "ok"
FAIL: Final = "fail"
CRASH: Final = "crash"
REDIRECT: Final = "redirect"

ALIAS: Final = "loom/base/same"
UNKNOWN: Final = "sim/unknown"
PLACES: Final = {ALIAS: "inline", "sim/inline": "inline", "sim/executor": "executor", "sim/program": "program"}

_DIGEST_BYTES: Final = 16
_SIZE_BYTES: Final = 8


class SimObject(NamedTuple):
    digest: bytes
    size_bytes: int

    def packed(self) -> bytes:
        return self.digest + self.size_bytes.to_bytes(_SIZE_BYTES, "little")


def unpack(packed: bytes) -> SimObject:
    return SimObject(packed[:_DIGEST_BYTES], int.from_bytes(packed[_DIGEST_BYTES:], "little"))


class SubTask(Struct, array_like=True):
    """A task of a redirection's plan: `inputs` below 0 are the redirecting task's own (-1 is the first)."""

    symbol: str
    cpus: int
    inputs: list[int]
    config: bytes


class Spec(Struct, array_like=True):
    """A task's config. `salt` is its own in the whole run."""

    salt: int
    outcome: str
    duration_us: int
    size_bytes: int
    plan: list[SubTask] = []


class Failure(NamedTuple):
    error: str


def encode_spec(spec: Spec) -> bytes:
    return msgpack.encode(spec)


def spec_of(symbol: str, config: bytes) -> Spec:
    return Spec(0, OK, 1, 0) if symbol == ALIAS else msgpack.decode(config, type=Spec)


def run(symbol: str, spec: Spec, inputs: Sequence[SimObject]) -> SimObject | Failure | PlanChunk:
    """What one run of a task comes to."""
    if symbol == ALIAS:
        return inputs[0]
    if spec.outcome == REDIRECT:
        return encode_redirect(_plan_of(spec))
    if spec.outcome != OK:
        return Failure(error_of(spec))
    digest = blake2b(digest_size=_DIGEST_BYTES)
    digest.update(b"%d %d" % (spec.salt, len(inputs)))
    for given in inputs:
        digest.update(given.digest)
    return SimObject(digest.digest(), spec.size_bytes)


def error_of(spec: Spec) -> str:
    return f"task {spec.salt} {'crashes' if spec.outcome == CRASH else 'fails'}"


def _plan_of(spec: Spec) -> Task:
    tasks: list[Task] = []
    for sub in spec.plan:
        inputs: list[Source] = [InputReference(-1 - i) if i < 0 else tasks[i] for i in sub.inputs]
        tasks.append(Task(sub.symbol, tuple(inputs), sub.config, Request(sub.cpus) if sub.cpus else None))
    return tasks[-1]


class Expected(NamedTuple):
    """What a task must come to: its object, or one of several errors."""

    value: SimObject | None
    errors: frozenset[str]


def expect(symbol: str, config: bytes, inputs: Sequence[Expected]) -> Expected:
    """The plain evaluation of one task; redirections nest no deeper than workloads make them."""
    errors = frozenset[str]().union(*(given.errors for given in inputs))
    if symbol == UNKNOWN:  # that may be found out before its inputs are there
        return Expected(None, errors | {UNKNOWN})
    if errors:
        return Expected(None, errors)
    spec = spec_of(symbol, config)
    if spec.outcome == REDIRECT:
        made: list[Expected] = []
        for sub in spec.plan:
            own = [inputs[-1 - i] if i < 0 else made[i] for i in sub.inputs]
            made.append(expect(sub.symbol, sub.config, own))
        return made[-1]
    values = [given.value for given in inputs]
    outcome = run(symbol, spec, [value for value in values if value is not None])
    if isinstance(outcome, Failure):
        return Expected(None, frozenset({outcome.error}))
    assert isinstance(outcome, SimObject)
    return Expected(outcome, frozenset())
