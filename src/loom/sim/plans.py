"""Plans as a simulated client submits them, and what must come of each task in them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from loom.core.columns import column
from loom.messages import CANCELLED_TEXT, PlanChunk
from loom.sim.tasks import Expected, expect
from loom.tasktypes.plan import EncodedPlan, Reference, Task, encode_plan


def cut_chunk(chunk: PlanChunk, rows: int) -> Iterator[PlanChunk]:
    """The same stretch of a plan in chunks of at most so many rows."""
    input_ends, config_ends = column(chunk.input_ends, "I").tolist(), column(chunk.config_ends, "I").tolist()
    saved = column(chunk.checkpoint_rows, "I").tolist()
    for start in range(0, len(chunk.flags), rows):
        end = min(start + rows, len(chunk.flags))
        low, high = bisect_left(saved, start), bisect_left(saved, end)
        first_input, first_config = (input_ends[start - 1], config_ends[start - 1]) if start else (0, 0)
        yield PlanChunk(
            chunk.plan_first,
            chunk.first + start,
            chunk.symbols,
            chunk.labels,
            chunk.requests,
            chunk.rules,
            chunk.symbol_of[2 * start : 2 * end],
            chunk.label_of[2 * start : 2 * end],
            chunk.request_of[2 * start : 2 * end],
            chunk.rules_of[2 * start : 2 * end],
            chunk.flags[start:end],
            chunk.levels[4 * start : 4 * end],
            chunk.consumers[4 * start : 4 * end],
            _less(chunk.input_ends[4 * start : 4 * end], first_input),
            chunk.inputs[8 * first_input : 8 * input_ends[end - 1]],
            _less(chunk.config_ends[4 * start : 4 * end], first_config),
            chunk.configs[first_config : config_ends[end - 1]],
            b"".join((row - start).to_bytes(4, "little") for row in saved[low:high]),
            chunk.checkpoint_paths[low:high],
            chunk.more or end < len(chunk.flags),
        )


def _less(offsets: bytes, base: int) -> bytes:
    return b"".join((offset - base).to_bytes(4, "little") for offset in column(offsets, "I"))


class Reckoning:
    """All tasks of one client: their inputs, and what must come of them."""

    def __init__(self) -> None:
        self.next_number = 0
        self.plan_ends = {0}  # numbers at which a plan is whole
        self.expected: dict[int, Expected] = {}
        self._inputs: dict[int, list[int]] = {}
        self.checkpoints: dict[int, bytes] = {}
        self._cancelled: set[int] = set()

    def until(self, next_number: int) -> Reckoning:
        """What is left of it where tasks from that number on never came to the server."""
        left = Reckoning()
        left.next_number = next_number
        left.plan_ends = {next_number}
        left.expected = {number: one for number, one in self.expected.items() if number < next_number}
        left.checkpoints = {number: path for number, path in self.checkpoints.items() if number < next_number}
        left._inputs = {number: inputs for number, inputs in self._inputs.items() if number < next_number}
        left._cancelled = {number for number in self._cancelled if number < next_number}
        return left

    def encode(self, tasks: Sequence[Task]) -> EncodedPlan:
        plan = encode_plan(tasks, self.next_number, _number_of)
        self.next_number += plan.count
        self.plan_ends.add(self.next_number)
        for chunk in plan:
            self._reckon(chunk)
        return plan

    def _reckon(self, chunk: PlanChunk) -> None:
        symbol_of = column(chunk.symbol_of, "H")
        input_ends, inputs = column(chunk.input_ends, "I"), column(chunk.inputs, "Q")
        config_ends = column(chunk.config_ends, "I")
        checkpoints = dict(zip(column(chunk.checkpoint_rows, "I"), chunk.checkpoint_paths, strict=True))
        for row in range(len(chunk.flags)):
            number = chunk.first + row
            own = inputs[input_ends[row - 1] if row else 0 : input_ends[row]].tolist()
            config = chunk.configs[config_ends[row - 1] if row else 0 : config_ends[row]]
            symbol = chunk.symbols[symbol_of[row]]
            self._inputs[number] = own
            checkpoint = checkpoints.get(row, b"")
            if checkpoint:
                self.checkpoints[number] = checkpoint
            self.expected[number] = expect(symbol, config, [self._expected_of(i, chunk) for i in own], checkpoint)

    def cancel(self, number: int) -> None:
        """Whoever takes the result from now on fails."""
        self._cancelled.add(number)

    def _expected_of(self, number: int, chunk: PlanChunk) -> Expected:
        expected = self.expected[number]
        if number in self._cancelled and number < chunk.plan_first:
            return Expected(None, expected.errors | {CANCELLED_TEXT})
        return expected

    def descends_from(self, number: int, ancestor: int) -> bool:
        return ancestor in self._ancestors(number)

    def _ancestors(self, number: int) -> set[int]:
        """With the task itself."""
        found: set[int] = set()
        ahead = [number]
        while ahead:
            task = ahead.pop()
            if task not in found:
                found.add(task)
                ahead += self._inputs[task]
        return found


def _number_of(reference: Reference) -> int:
    return reference.task_id
