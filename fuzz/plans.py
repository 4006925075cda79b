"""Plans made of decisions, such as clients and tasks may send."""

from array import array
from itertools import accumulate

import msgspec

from fuzz.choices import Choices
from loom.core.session import Session
from loom.ids import SERVER_MADE
from loom.messages import (
    ARRAY_MAKE,
    DGET,
    DSLICE,
    GET,
    RESULT,
    SAME,
    SLICE,
    GetConfig,
    PlanChunk,
    Rules,
    SliceConfig,
)
from loom.resources import Request

SYMBOLS = ("t/work", "t/work", "t/other", GET, SLICE, SAME, ARRAY_MAKE, DGET, DSLICE, "t/unknown")
_REQUESTS = (
    Request(1),
    Request(0),
    Request(2),
    Request(1, (("mem", 100),)),
    Request(64),
    Request(1, (("gpus", 5000),)),
)
_MOST_ROWS = 6


def column(numbers: list[int]) -> bytes:
    return array("Q", numbers).tobytes()


class Plans:
    """Those of one world's sessions."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._open: dict[int, tuple[int, list[int]]] = {}  # by session: where its plan began, what it has to take

    def chunk(self, first: int, session: Session | None, n_inputs: int = 2) -> PlanChunk:
        """A stretch of a plan that makes sense, but for what a task makes of its inputs.

        Tasks that later chunks of the same plan are to take are remembered, one consumer of each.
        """
        choices = self._choices
        rows = 1 + choices.below(_MOST_ROWS)
        more = session is not None and choices.one_in(6)
        plan_first, owed = first, list[int]()
        if session is not None and session.plan_open:
            plan_first, said = self._open.get(session.id, (first, []))
            owed = [number for number in said if number < first]  # what came last may have been refused
        inputs: list[list[int]] = []
        for row in range(rows):
            below = [first + i for i in range(row)]
            if session is not None:
                below += [node.number for node in session.nodes() if node.number < plan_first][-8:]
            elif first == SERVER_MADE:
                below += range(n_inputs)
            own = [choices.of(below) for _ in range(choices.below(3))] if below else []
            if owed and choices.byte() & 1:
                own.append(owed.pop())
            inputs.append(own)
        if not more:
            inputs[-1] += owed
            owed = []
        if session is None:  # all of it is for the last one: that is what the task gives
            taken = {number for own in inputs for number in own}
            inputs[-1] = [*inputs[-1], *(first + row for row in range(rows - 1) if first + row not in taken)]
        consumers, levels = [0] * rows, [0] * rows
        for row in range(rows - 1, -1, -1):
            for number in set(inputs[row]):
                if first <= number:
                    consumers[number - first] += 1
                    levels[number - first] = max(levels[number - first], levels[row] + 1)
        if session is not None:
            later = [row for row in range(rows) if more and choices.byte() & 1]
            for row in later:
                consumers[row] += 1
            self._open[session.id] = plan_first, owed + [first + row for row in later]
        configs = [self._config() for _ in range(rows)]
        saved = [row for row in range(rows) if choices.one_in(8)]
        rules = [Rules(), Rules(2, 1, 0), Rules(0, 0, 1000)] if choices.one_in(4) else []
        return PlanChunk(
            plan_first,
            first,
            list(SYMBOLS),
            ["", "label"],
            list(_REQUESTS),
            rules,
            array("H", [choices.below(len(SYMBOLS)) for _ in range(rows)]).tobytes(),
            array("H", [choices.below(2) for _ in range(rows)]).tobytes(),
            array("H", [choices.below(len(_REQUESTS)) if choices.one_in(3) else 0 for _ in range(rows)]).tobytes(),
            array("H", [choices.below(3) for _ in range(rows)] if rules else []).tobytes(),
            bytes([RESULT if choices.byte() & 1 or not n else 0 for n in consumers]) if session else bytes(rows),
            array("I", levels).tobytes(),
            array("I", consumers).tobytes(),
            array("I", accumulate(map(len, inputs))).tobytes(),
            column([number for row in inputs for number in row]),
            array("I", accumulate(map(len, configs))).tobytes(),
            b"".join(configs),
            array("I", saved).tobytes(),
            [b"/saved/%d" % (first + row) for row in saved],
            more,
        )

    def _config(self) -> bytes:
        choices = self._choices
        match choices.below(4):
            case 0:
                return msgspec.msgpack.encode(GetConfig(choices.below(4)))
            case 1:
                return msgspec.msgpack.encode(SliceConfig(choices.below(3), choices.below(5)))
            case _:
                return choices.take(choices.below(4))
