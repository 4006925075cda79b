import copy
import gc
import itertools
import pickle
from array import array
from collections.abc import Iterable, Sequence

import pytest

from loom import tasks
from loom.errors import InvalidPlan, LoomError
from loom.ids import SERVER_MADE
from loom.limits import (
    CHUNK_TARGET_BYTES,
    MAX_CHUNK_TASKS,
    MAX_CONFIG_BYTES,
    MAX_LABEL_CHARS,
    MAX_PRIORITY,
    MAX_RETRIES,
    MAX_TIME_LIMIT_MS,
)
from loom.messages import RESULT, PlanChunk, Rules
from loom.resources import Request, cpu1, cpus
from loom.tasktypes import walk
from loom.tasktypes.base import TaskError
from loom.tasktypes.plan import EncodedPlan, Reference, Task, encode_plan, encode_redirect
from loom.tasktypes.task import InputReference


class Future(Reference):
    def __init__(self, number: int) -> None:
        self.task_id = number


def number_of(reference: Reference) -> int:
    if reference.task_id < 0:
        raise LoomError("this future was released")
    return reference.task_id


def encode(submitted: Sequence[Task], first: int = 0) -> EncodedPlan:
    return encode_plan(submitted, first, number_of)


def cut(values: Sequence[int], ends: Iterable[int]) -> list[list[int]]:
    starts = [0, *ends]
    return [list(values[a:b]) for a, b in itertools.pairwise(starts)]


def rows(chunk: PlanChunk) -> list[dict[str, object]]:
    """A chunk by rows, in the words of its tasks."""
    rules_of = array("H", chunk.rules_of) or [0] * len(chunk.flags)
    config_ends = array("I", chunk.config_ends)
    return [
        {
            "symbol": chunk.symbols[symbol],
            "label": chunk.labels[label],
            "request": chunk.requests[request],
            "rules": chunk.rules[rules] if chunk.rules else Rules(),
            "flags": flags,
            "level": level,
            "consumers": consumers,
            "inputs": inputs,
            "config": bytes(config),
        }
        for symbol, label, request, rules, flags, level, consumers, inputs, config in zip(
            array("H", chunk.symbol_of),
            array("H", chunk.label_of),
            array("H", chunk.request_of),
            rules_of,
            chunk.flags,
            array("I", chunk.levels),
            array("I", chunk.consumers),
            cut(array("Q", chunk.inputs), array("I", chunk.input_ends)),
            cut(chunk.configs, config_ends),
            strict=True,
        )
    ]


def column(plan: EncodedPlan, name: str) -> list[object]:
    return [row[name] for chunk in plan for row in rows(chunk)]


def test_a_small_plan_in_columns() -> None:
    a, b = tasks.const("a"), tasks.const(b"bb")
    both = tasks.merge((a, b, a), "-")
    both.label = "join: it"
    run = tasks.run("cat", stdin=both)
    plan = encode([run, a], first=100)
    (chunk,) = plan
    assert (plan.numbers, plan.count) == ([103, 100], 4)
    assert (chunk.plan_first, chunk.first) == (100, 100)
    assert chunk.symbols == ["loom/data/const", "loom/data/merge", "loom/run/run"]
    assert chunk.labels == ["", "join: it"]
    assert chunk.requests == [Request(), cpu1]
    table = rows(chunk)
    assert [row["symbol"] for row in table] == [chunk.symbols[i] for i in (0, 0, 1, 2)]
    assert [row["label"] for row in table] == ["", "", "join: it", ""]
    assert [row["request"] for row in table] == [Request(), Request(), Request(), cpu1]
    assert [row["flags"] for row in table] == [RESULT, 0, 0, RESULT]
    assert (chunk.rules, chunk.rules_of) == ([], b"")
    assert [row["level"] for row in table] == [2, 2, 1, 0]
    assert [row["consumers"] for row in table] == [1, 1, 1, 0]
    assert [row["inputs"] for row in table] == [[], [], [100, 101, 100], [102]]
    assert [row["config"] for row in table][:3] == [b"a", b"bb", b"-"]


def test_nothing_to_submit() -> None:
    plan = encode([])
    assert (plan.numbers, plan.count, list(plan)) == ([], 0, [])


def test_the_same_task_twice_has_one_number() -> None:
    a = tasks.const("a")
    assert encode([a, a], first=7).numbers == [7, 7]


def test_futures_are_inputs_by_their_number() -> None:
    future = Future(3)
    plan = encode([tasks.merge((future, tasks.const("a"), future))], first=10)
    assert column(plan, "inputs") == [[], [3, 10, 3]]
    assert column(plan, "consumers") == [1, 0]


def test_what_is_wrong_with_a_future_is_passed_on() -> None:
    with pytest.raises(LoomError, match="released"):
        encode([tasks.merge((Future(-1),))])


def test_a_shared_task_stands_once() -> None:
    shared = tasks.const("a")
    left, right = tasks.merge((shared,)), tasks.merge((shared,), "x")
    plan = encode([tasks.array_make((left, right, shared))])
    assert plan.count == 4
    assert column(plan, "consumers") == [3, 1, 1, 0]
    assert column(plan, "level") == [2, 1, 1, 0]


def test_inputs_come_first_whatever_the_order_of_submission() -> None:
    layers: list[list[Task]] = [[tasks.const(str(i)) for i in range(5)]]
    for _ in range(6):
        layers.append([tasks.merge((layers[-1][i], layers[-1][i - 1], layers[0][0])) for i in range(5)])
    everything = [task for layer in layers for task in layer]
    plan = encode(list(reversed(everything)), first=50)
    assert sorted(plan.numbers) == list(range(50, 50 + len(everything)))
    for number, inputs in enumerate(column(plan, "inputs"), start=50):
        assert isinstance(inputs, list)
        assert all(source < number for source in inputs)


def test_a_long_chain_is_ordinary() -> None:
    task = tasks.const("a")
    for _ in range(100_000):
        task = tasks.merge((task,))
    plan = encode([task])
    assert (plan.numbers, plan.count) == ([100_000], 100_001)
    assert len(plan.chunks) == -(-100_001 // MAX_CHUNK_TASKS)
    assert column(plan, "level") == list(range(100_000, -1, -1))


def test_chunks_are_bounded_in_tasks_and_bytes() -> None:
    many = encode([tasks.const("") for _ in range(MAX_CHUNK_TASKS + 1)])
    assert [len(chunk.flags) for chunk in many] == [MAX_CHUNK_TASKS, 1]
    assert [chunk.first for chunk in many] == [0, MAX_CHUNK_TASKS]
    half = bytes(CHUNK_TARGET_BYTES // 2)
    large = encode([tasks.const(data) for data in (half, half, half, half * 5, b"a")])
    assert [len(chunk.flags) for chunk in large] == [2, 1, 1, 1]
    assert column(large, "config") == [half, half, half, half * 5, b"a"]


def test_consumers_in_later_chunks_are_counted() -> None:
    shared = tasks.const("a")
    plan = encode([tasks.merge((shared,)) for _ in range(3 * MAX_CHUNK_TASKS)])
    assert rows(plan.chunks[0])[0]["consumers"] == 3 * MAX_CHUNK_TASKS
    assert rows(plan.chunks[0])[0]["level"] == 1


def test_labels_that_all_differ() -> None:
    labelled = [tasks.const("") for _ in range(MAX_CHUNK_TASKS + 5)]
    for i, task in enumerate(labelled):
        task.label = f"step: {i}"
    assert column(encode(labelled), "label") == [task.label for task in labelled]


@pytest.mark.parametrize(
    ("request_given", "policy", "expected"),
    [
        (None, None, Request()),
        (cpus(3), None, cpus(3)),
        (cpus(3), "standard", cpus(3)),
        (cpus(3), "simple", Request()),
        (None, "simple", Request()),
    ],
)
def test_the_policy_is_resolved(request_given: Request | None, policy: str | None, expected: Request) -> None:
    task = Task("my/count", (), "x", request_given)
    task.policy = policy  # type: ignore[assignment]
    assert column(encode([task]), "request") == [expected]


def test_a_task_has_no_rules_until_one_is_set() -> None:
    task = tasks.const("a")
    assert (task.retries, task.time_limit_s, task.priority, task.rules) == (0, None, 0, None)
    task.retries = 3
    task.time_limit_s = 0.5
    task.priority = -2
    assert (task.retries, task.time_limit_s, task.priority) == (3, 0.5, -2)
    assert task.rules == Rules(3, -2, 500)
    for twin in (copy.copy(task), pickle.loads(pickle.dumps(task))):
        assert (twin.retries, twin.time_limit_s, twin.priority) == (3, 0.5, -2)
    task.retries, task.time_limit_s, task.priority = 0, None, 0
    assert task.rules is None


def test_rules_in_columns() -> None:
    plain, twice, also_twice, urgent = (tasks.const(str(i)) for i in range(4))
    twice.retries = also_twice.retries = 2
    urgent.priority, urgent.time_limit_s = 7, 12
    (chunk,) = encode([plain, twice, also_twice, urgent])
    assert chunk.rules == [Rules(), Rules(2), Rules(0, 7, 12_000)]
    assert [row["rules"] for row in rows(chunk)] == [Rules(), Rules(2), Rules(2), Rules(0, 7, 12_000)]
    assert column(EncodedPlan([0], 1, [encode_redirect(twice)]), "rules") == [Rules(2)]


def test_only_chunks_with_rules_have_a_column_of_them() -> None:
    many = [tasks.const("") for _ in range(3 * MAX_CHUNK_TASKS)]
    many[MAX_CHUNK_TASKS].retries = 1
    assert [len(chunk.rules_of) for chunk in encode(many)] == [0, 2 * MAX_CHUNK_TASKS, 0]


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("retries", [-1, MAX_RETRIES + 1, 1.0, True, "2", None]),
        ("time_limit_s", [0, -1, 0.0009, 1e300, 1 << 80, float("inf"), float("nan"), True, "2s"]),
        ("priority", [MAX_PRIORITY + 1, -MAX_PRIORITY - 1, 0.5, False, "high", None]),
    ],
)
def test_bad_rules_are_refused_where_they_are_set(attribute: str, values: list[object]) -> None:
    task = tasks.const("a")
    for value in values:
        with pytest.raises(InvalidPlan, match=rf"^{attribute}=.*: write .* from "):
            setattr(task, attribute, value)
        with pytest.raises(InvalidPlan, match=rf"^{attribute}="):
            tasks.py_task(**{attribute: value})  # type: ignore[arg-type]
    assert task.rules is None


def test_the_smallest_and_the_largest_rules() -> None:
    task = tasks.const("a")
    for limit in (0.001, MAX_TIME_LIMIT_MS / 1000):
        task.time_limit_s = limit
        assert task.time_limit_s == limit
    task.retries, task.priority = MAX_RETRIES, -MAX_PRIORITY
    assert column(encode([task]), "rules") == [Rules(MAX_RETRIES, -MAX_PRIORITY, MAX_TIME_LIMIT_MS)]


def test_a_task_made_by_hand() -> None:
    task = Task()
    task.task_type = "my/count"
    task.inputs = [tasks.const("abc")]
    task.config = "é"
    task.metadata = {"what": "for people"}
    assert column(encode([task]), "config") == [b"abc", "é".encode()]


@pytest.mark.parametrize("size", [1, 2, 50])
def test_a_cycle_is_refused(size: int) -> None:
    ring = [tasks.merge((), str(i)) for i in range(size)]
    for i, task in enumerate(ring):
        task.inputs = (tasks.const("a"), ring[i - 1])
        task.label = f"ring {i}"
    with pytest.raises(InvalidPlan, match=r"task 'ring \d+' depends on itself"):
        encode([tasks.merge(ring)])


@pytest.mark.parametrize("culprit", [5, "text", None, ["unhashable"], {"a": 1}])
def test_an_input_that_is_no_task_is_refused(culprit: object) -> None:
    task = tasks.merge((tasks.const("a"), culprit))  # type: ignore[arg-type]
    task.label = "joins"
    with pytest.raises(InvalidPlan, match="task 'joins': its input 1 is neither a task nor a future"):
        encode([task])


@pytest.mark.parametrize("inputs", [5, "text", {"a"}, (x for x in "a")])
def test_inputs_that_are_no_series_are_refused(inputs: object) -> None:
    task = Task("my/type", inputs)  # type: ignore[arg-type]
    with pytest.raises(InvalidPlan, match=r"task 'my/type': its inputs? "):
        encode([task])


@pytest.mark.parametrize("submitted", [5, "text", None, Future(1)])
def test_only_tasks_are_submitted(submitted: object) -> None:
    with pytest.raises(InvalidPlan, match="position 1 is no task"):
        encode([tasks.const("a"), submitted])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("attribute", "value", "story"),
    [
        ("label", "x" * (MAX_LABEL_CHARS + 1), "its label has 201 characters"),
        ("label", 5, "its label is no str: 5"),
        ("label", [], "its label is no str"),
        ("label", "\ud800", "no valid text"),
        ("task_type", "", "no task type"),
        ("task_type", None, "its type is no str"),
        ("task_type", "x" * 201, "its type has 201 characters"),
        ("config", 5, "neither bytes nor str but int"),
        ("config", "\ud800", "configuration is no valid text"),
        ("config", bytes(MAX_CONFIG_BYTES + 1), "limit"),
        ("resource_request", 4, "no request .*: 4"),
        ("policy", "eager", "its policy is 'eager', not one of"),
        ("policy", "scheduler", "'scheduler'"),
        ("rules", 3, "set its retries, time_limit_s and priority"),
        ("checkpoint_path", "a/b", "is not absolute"),
        ("checkpoint_path", "/a/", "is no file name"),
        ("checkpoint_path", 3, "is no path: 3"),
    ],
)
def test_a_bad_attribute_is_refused(attribute: str, value: object, story: str) -> None:
    task = tasks.const("a")
    setattr(task, attribute, value)
    with pytest.raises(InvalidPlan, match=f"^task .*{story}"):
        encode([tasks.const("good"), tasks.merge((task,))])


def test_too_many_inputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MAX_INPUTS", 3)
    a = tasks.const("a")
    assert encode([tasks.merge((a,) * 3)]).count == 2
    with pytest.raises(InvalidPlan, match="has 4 inputs"):
        encode([a, tasks.merge((a,) * 4)])


def test_the_collector_is_on_again_after_a_plan_and_after_a_refusal() -> None:
    assert gc.isenabled()
    encode([tasks.const("a")])
    assert gc.isenabled()
    with pytest.raises(InvalidPlan):
        encode([Task()])
    assert gc.isenabled()


def test_a_redirection() -> None:
    inner = tasks.merge((InputReference(2), InputReference(0)))
    chunk = encode_redirect(tasks.size(inner))
    assert (chunk.plan_first, chunk.first) == (SERVER_MADE, SERVER_MADE)
    assert [row["inputs"] for row in rows(chunk)] == [[2, 0], [SERVER_MADE]]
    assert [row["symbol"] for row in rows(chunk)] == ["loom/data/merge", "loom/base/size"]


def test_a_redirection_is_one_chunk_of_bounded_tasks() -> None:
    large = encode_redirect(tasks.merge([tasks.const(bytes(CHUNK_TARGET_BYTES)) for _ in range(3)]))
    assert len(large.flags) == 4
    with pytest.raises(TaskError, match=f"limit {MAX_CHUNK_TASKS}"):
        encode_redirect(tasks.merge([tasks.const("") for _ in range(MAX_CHUNK_TASKS)]))


def test_a_redirection_that_is_no_plan_is_the_tasks_failure() -> None:
    with pytest.raises(TaskError, match=r"returned a plan that is invalid: .*no task type"):
        encode_redirect(Task())
    with pytest.raises(TaskError, match="future of a client"):
        encode_redirect(tasks.merge((Future(0),)))


def test_tasks_that_share_their_inputs_and_those_beside_them() -> None:
    a, b = tasks.const("a"), tasks.const("b")
    shared: tuple[Task, ...] = (a,)
    first, second = Task("x", shared), Task("x", shared)
    other, third = Task("x", (b,)), Task("x", shared)
    listed = Task("x", [a, b])
    submitted = [first, second, other, third, listed, Task("x", listed.inputs), Task("x", (Future(7),))]
    assert [row["inputs"] for row in rows(*encode(submitted, first=10)) if row["symbol"] == "x"] == [
        *([10], [10], [13], [10], [10, 13], [10, 13], [7])
    ]


def test_kinds_that_alternate() -> None:
    submitted = [Task(f"t{i % 2}", label=f"l{i % 3}", resource_request=cpus(1 + i % 2)) for i in range(12)]
    found = rows(*encode(submitted))
    assert [(row["symbol"], row["label"]) for row in found] == [(f"t{i % 2}", f"l{i % 3}") for i in range(12)]


def test_the_collector_is_on_again_after_an_interrupt_as_it_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = gc.disable

    def interrupted() -> None:
        pause()
        raise KeyboardInterrupt

    monkeypatch.setattr(gc, "disable", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_plan([tasks.const(b"")], 0, lambda reference: 0)
    assert gc.isenabled()


def test_a_task_without_inputs_is_nothing_for_the_collector() -> None:
    task = tasks.const("a")
    assert not gc.is_tracked(task)
    task.inputs = [task]
    assert gc.is_tracked(task)
