"""Plans of all shapes from a seed, with the value of each result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from chaos import bodies, ledger
from chaos.bodies import Value, joined
from loom import tasks
from loom.client import Future
from loom.tasktypes.task import Task

PROGRAM: Final = str(Path(__file__).with_name("program.sh"))
_LARGE_BYTES: Final = (100_000, 300_000, 1_000_000, 5_000_000, 20_000_000)
_LARGE_COST_S: Final = 0.1
_OVERHEAD_S: Final = 0.002  # of a task, roughly; of a program more
_PROGRAM_S: Final = 0.02


@dataclass(frozen=True)
class Made:
    """A task, or the future of one, and its value; `fails`: what stands in its error instead."""

    source: Task | Future
    value: Value
    fails: str = ""
    name: str = ""


class Maker:
    """Makes named tasks. `cost_s` sums up what they will take of one core."""

    def __init__(self, rng: Random, prefix: str, directory: Path, largest_bytes: int) -> None:
        self.rng = rng
        self.retries = 0  # of what functions return to be run in their place
        self.sizes = [size for size in _LARGE_BYTES if size <= largest_bytes]
        self.cost_s = 0.0
        self.n_tasks = 0
        self.directory = directory  # for tasks that remember something
        self._prefix = prefix
        self.ms = rng.choice((0.5, 2.0, 10.0, 40.0))

    def name(self, many: bool = False) -> str:
        self.n_tasks += 1
        return f"chaos:{self._prefix}.{self.n_tasks}{ledger.MANY if many else ''};"

    def _some_ms(self) -> float:
        ms = min(self.ms * self.rng.lognormvariate(0, 0.7), 500.0)
        self.cost_s += ms / 1000 + _OVERHEAD_S
        return round(ms, 3)

    def const(self) -> Made:
        data = b"%d" % self.rng.randrange(1000)
        self.n_tasks += 1
        return Made(tasks.const(data), data)

    def mix(self, inputs: Sequence[Made]) -> Made:
        name = self.name()
        task = bodies.mix_task(name, self._some_ms(), *sources(inputs))
        return Made(task, bodies.mix(values(inputs)), name=name)

    def blob(self, size_bytes: int, inputs: Sequence[Made]) -> Made:
        name = self.name()
        self.cost_s += _LARGE_COST_S * size_bytes / _LARGE_BYTES[-1]
        task = bodies.blob_task(name, self._some_ms(), size_bytes, *sources(inputs))
        return Made(task, bodies.blob(size_bytes, values(inputs)), name=name)

    def parts(self, n: int, size_bytes: int, inputs: Sequence[Made]) -> Made:
        name = self.name()
        task = bodies.parts_task(name, self._some_ms(), n, size_bytes, *sources(inputs))
        return Made(task, bodies.parts(n, size_bytes, values(inputs)), name=name)

    def redirect(self, given: Made) -> Made:
        name, depth = self.name(), self.rng.randrange(3)
        ms = self._some_ms()
        self.cost_s += depth * ms / 1000
        task = bodies.redirect_task(name, ms, depth, self.retries, given.source)
        return Made(task, bodies.mix((*values([given]), b"end")), name=name)

    def merge(self, inputs: Sequence[Made], delimiter: bytes = b"") -> Made:
        self.n_tasks += 1
        return Made(tasks.merge(sources(inputs), delimiter), delimiter.join(values(inputs)))

    def digest(self, given: Made) -> Made:
        """By a program that reads standard input."""
        import hashlib

        name = self._program()
        task = tasks.run(("/bin/sh", PROGRAM, name, "sha256sum"), stdin=given.source)
        return Made(task, hashlib.sha256(values([given])[0]).hexdigest().encode() + b"  -\n", name=name)

    def glue(self, left: Made, right: Made) -> Made:
        """By a program with two input files and two output files: both in a row, and the second."""
        name = self._program()
        command = "cat one two >both && sleep 0.01 && cat two >last"
        task = tasks.run(
            ("/bin/sh", PROGRAM, name, "/bin/sh", "-c", command),
            inputs=[(left.source, "one"), (right.source, "two")],
            outputs=["both", "last"],
        )
        first, second = values([left, right])
        return Made(task, [first + second, second], name=name)

    def _program(self) -> str:
        self.cost_s += _PROGRAM_S
        return self.name()

    def any(self, inputs: Sequence[Made]) -> Made:
        """One of the ordinary kinds."""
        chance = self.rng.random()
        plain = [one for one in inputs if isinstance(one.value, bytes)]
        if chance < 0.6 or not plain:
            return self.mix(inputs)
        if chance < 0.7:
            return self.merge(plain, b",")
        if chance < 0.8:
            return self.digest(plain[0])
        if chance < 0.87:
            return self.redirect(plain[0])
        if chance < 0.93:
            return self.blob(self.rng.choice((0, 1_000, 70_000, 300_000)), inputs)
        return self.glue(plain[0], plain[-1])


def sources(inputs: Sequence[Made]) -> list[Task | Future]:
    return [one.source for one in inputs]


def values(inputs: Sequence[Made]) -> list[bytes]:
    return joined([one.value for one in inputs])


# -- Shapes -----------------------------------------------------------------------------------------------------------

Shape = Callable[[Maker, Sequence[Made]], list[Made]]


def chain(maker: Maker, given: Sequence[Made]) -> list[Made]:
    last = maker.any(given[:1] or [maker.const()])
    for _ in range(maker.rng.randint(5, 40)):
        last = maker.any([last])
    return [last]


def bag(maker: Maker, given: Sequence[Made]) -> list[Made]:
    shared = maker.any(given[:2] or [maker.const()])
    return [maker.any([shared, maker.const()]) for _ in range(maker.rng.randint(10, 80))]


def tree(maker: Maker, given: Sequence[Made]) -> list[Made]:
    layer = [maker.any([maker.const()]) for _ in range(maker.rng.randint(8, 60))]
    while len(layer) > 1:
        layer = [maker.any(layer[i : i + 3]) for i in range(0, len(layer), 3)]
    return layer


def fan_in(maker: Maker, given: Sequence[Made]) -> list[Made]:
    leaves = [maker.any([maker.const()]) for _ in range(maker.rng.randint(10, 60))]
    return [maker.mix([*given, *leaves, leaves[0]]), leaves[-1]]


def stencil(maker: Maker, given: Sequence[Made]) -> list[Made]:
    width = maker.rng.randint(3, 6)
    row = [maker.any([maker.const()]) for _ in range(width)]
    for _ in range(maker.rng.randint(3, 12)):
        row = [maker.mix(row[max(0, i - 1) : i + 2]) for i in range(width)]
    return row


def large(maker: Maker, given: Sequence[Made]) -> list[Made]:
    """Large objects that functions, built-ins and programs pass on."""
    size_bytes = maker.rng.choice(maker.sizes)
    whole = maker.blob(size_bytes, [maker.const()])
    second = maker.blob(size_bytes // 2, [whole])
    glued = maker.glue(whole, second)
    last = Made(tasks.get(glued.source, 1), glued.value[1] if isinstance(glued.value, list) else b"")
    return [maker.digest(whole), maker.mix([glued]), maker.mix([last, whole]), maker.merge([second, last]), second]


def arrays(maker: Maker, given: Sequence[Made]) -> list[Made]:
    array = maker.parts(maker.rng.randint(1, 30), maker.rng.choice((0, 10, 3_000, 100_000)), [maker.const()])
    assert isinstance(array.value, list)
    i = maker.rng.randrange(len(array.value))
    one = Made(tasks.get(array.source, i), array.value[i])
    some = Made(tasks.slice(array.source, 0, i), array.value[:i])
    made = Made(tasks.array_make([one.source, array.source]), [one.value, array.value])  # type: ignore[list-item]
    size = Made(tasks.size(array.source), sum(map(len, array.value)).to_bytes(8, "little"))
    return [array, maker.any([one]), maker.mix([some]), made, size]


def dynamic(maker: Maker, given: Sequence[Made]) -> list[Made]:
    """Consumers of dget once per element, of dslice once per slice; the second gives the whole however it is cut."""
    array = maker.parts(maker.rng.randint(1, 25), maker.rng.choice((5, 2_000)), [maker.const()])
    assert isinstance(array.value, list)
    name, again = maker.name(many=True), maker.name(many=True)
    each = bodies.mix_task(name, maker._some_ms(), tasks.dget(array.source))
    maker.cost_s += len(array.value) * maker.ms / 1000
    mixed = [bodies.mix([part]) for part in array.value]
    sliced = bodies.upper_task(again, maker._some_ms(), tasks.dslice(array.source))
    whole = b"".join(array.value).upper()
    return [
        Made(each, mixed, name=name),
        Made(tasks.merge([each]), b"".join(mixed)),
        Made(tasks.merge([sliced]), whole),
    ]


SHAPES: Final[dict[str, Shape]] = {
    shape.__name__: shape for shape in (chain, bag, tree, fan_in, stencil, large, arrays, dynamic)
}


def make_round(maker: Maker, given: Sequence[Made], cost_s: float, shapes: Sequence[str]) -> list[Made]:
    """Shapes by chance, until they take about `cost_s` of one core."""
    until = maker.cost_s + cost_s
    made: list[Made] = []
    while maker.cost_s < until:
        usable = [one for one in given if isinstance(one.value, bytes)]
        some = maker.rng.sample(usable, min(len(usable), 2))
        made += SHAPES[maker.rng.choice(list(shapes))](maker, some)
    return made


def small_bag(maker: Maker, n: int) -> list[Made]:
    """Many small tasks."""
    maker.ms = 0.5
    return [maker.mix([Made(tasks.const(b"%d" % i), b"%d" % i)]) for i in range(n)]
