"""The graph of all tasks in the server: what is needed, what can run, what can go.

Decides nothing about where tasks run and knows no messages but the plan's; what others must do about a change stands
in its outboxes (`to_drop`, `to_cancel`, `to_recall`, the sessions' lists of news), which the server core empties each
turn. Tasks that are to be looked at because of dynamic ones stand in `to_expand`. Nothing here recurses: plans are
deeper than the stack.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from loom.core import states
from loom.core.cluster import Worker
from loom.core.columns import column, ids_column
from loom.core.events import Fact, InputsChanged, PlanGrew, TaskFailed
from loom.core.kinds import Kind
from loom.core.lineage import Lineage
from loom.core.node import (
    ALIAS,
    CANCELLED,
    COPIED,
    CUT,
    DYNAMIC,
    EXPANDED,
    GATHERED,
    HAS_LENGTH,
    INLINED,
    KEPT,
    LISTED,
    NO_RULES,
    RECALLED,
    REPEATS,
    SUSPECT,
    WANTED,
    WRITING,
    Chunk,
    MadeChunk,
    Node,
)
from loom.core.plan_checks import check_shape, count_inputs
from loom.core.session import Failure, Session, Tries
from loom.errors import ProtocolError
from loom.facts import AnyFact, PlanAdded, TaskBecame, TaskMarked, TasksFailed, TasksFinished
from loom.limits import LINEAGE_BYTES
from loom.messages import CANCELLED_TEXT, RESULT, FailedResult, FinishedTask, PlanChunk
from loom.resources import Request

KindOf = Callable[[str, str, Request, int], Kind]

_NO_RULES: Final = [NO_RULES]
_AHEAD_UNMET: Final = 8  # tasks with more missing inputs than this are not looked at for sending ahead,
_AHEAD_INPUTS: Final = 32  # nor those with more inputs,
_AHEAD_CONSUMERS: Final = 64  # nor more consumers of one task than these: each look costs O(inputs)


class Graph:
    def __init__(self, lineage_bytes: int = LINEAGE_BYTES) -> None:
        self.sessions: dict[int, Session] = {}
        self.lineage = Lineage(self, lineage_bytes)
        self.to_drop: list[tuple[Worker, int]] = []
        self.to_cancel: list[tuple[Worker, int]] = []
        self.to_recall: list[tuple[Worker, int]] = []
        self.to_write: list[tuple[Worker, int, bytes]] = []  # objects to save, and where
        self.to_expand: dict[Node, None] = {}
        self.facts: list[Fact] | None = None  # for the trace, while there is one
        self.journal: list[AnyFact] | None = None  # facts of this turn, where they are written down
        self.touched: dict[Worker, None] = {}  # workers whose loads have changed
        self.witness: Callable[[Node], None] | None = None  # is told of every finish: for tests
        self.n_finished = 0  # tasks whose object is held somewhere

    # -- Plans --------------------------------------------------------------------------------------------------------

    def add_chunk(
        self,
        session: Session,
        plan: PlanChunk,
        kind_of: KindOf,
        stands_for: int | None = None,
        seq: int = 0,
        names: list[tuple[int, str]] | None = None,
    ) -> Node:
        """Take a chunk in and return its last task; ProtocolError, before anything has changed, where it is no plan.

        `seq` and `names` are for the journal.
        """
        n_facts = len(self.journal) if self.journal is not None else 0
        check_shape(plan)
        chunk = Chunk(plan, stands_for)
        rows = len(chunk)
        columns = [column(c, "H").tolist() for c in (plan.symbol_of, plan.label_of, plan.request_of)]
        columns.append(column(plan.rules_of, "H").tolist() if plan.rules_of else [0] * rows)
        rules = plan.rules if plan.rules_of else _NO_RULES
        consumers = column(plan.consumers, "I").tolist()
        flags = plan.flags
        try:
            kinds = {
                key: kind_of(
                    plan.symbols[key[0]], plan.labels[key[1]], plan.requests[key[2]], rules[key[3]].time_limit_ms
                )
                for key in dict.fromkeys(zip(*columns, strict=True))
            }
        except IndexError:
            raise ProtocolError("a plan chunk refers past one of its tables") from None
        ends, numbers = chunk.input_ends.tolist(), chunk.inputs.tolist()
        count_inputs(session, plan, chunk, session.unborn if stands_for is None else {})
        session.chunks[chunk.first] = chunk
        session.enter_chunk(chunk)
        if any(kind.is_dynamic for kind in kinds.values()):
            session.has_dynamic = True
        if any(rule.priority for rule in rules):
            session.has_priorities = True
        number, start = plan.first, 0
        last_inputs: list[int] | None = None
        inputs: tuple[Node, ...] = ()
        for row, key in enumerate(zip(*columns, strict=True)):
            own = numbers[start : ends[row]]
            if own != last_inputs:
                inputs = self._find_inputs(session, own, number)
                last_inputs = own
            start = ends[row]
            node = Node(session, number, chunk, kinds[key], inputs, consumers[row])
            if flags[row] & RESULT:
                node.flags = WANTED
            if len(inputs) != len(own):
                node.flags |= REPEATS
            session.put(node)
            if session.has_dynamic:
                self._mark(node)
            self.connect(node, plan.plan_first)
            number += 1
        self.lineage.limit()
        if self.facts is not None:
            self.facts.append(PlanGrew(session.id, plan))
        if self.journal is not None:  # before what came of it
            self.journal.insert(n_facts, PlanAdded(session.id, seq, plan, stands_for, names or []))
        return node

    def _mark(self, node: Node) -> None:
        """See whether a new task is dynamic, or becomes others because of an input that is."""
        if node.kind.is_dynamic:
            node.flags |= DYNAMIC
        for source in node.inputs:
            if source.flags & DYNAMIC and not node.flags & DYNAMIC:
                node.flags |= COPIED
            if source.flags & EXPANDED:
                self.to_expand[node] = None

    def _find_inputs(self, session: Session, numbers: list[int], below: int) -> tuple[Node, ...]:
        found = []
        for number in dict.fromkeys(numbers) if len(numbers) > 1 else numbers:
            node = session.find(number) if number < below else None
            if node is None:
                raise ProtocolError(f"task {below} has an input {number} that is not there")
            found.append(node)
        return tuple(found)

    def connect(self, node: Node, plan_first: int) -> None:
        """Make a new task known to its inputs and find its first state.

        Inputs from `plan_first` on have counted it already.
        """
        failure: Failure | None = None
        unmet = 0
        lost: list[Node] = []
        for source in node.inputs:
            if source.number < plan_first:
                source.n_pending += 1
                source.n_children += 1
                if source.flags & CANCELLED and node.chunk.stands_for is None:
                    failure = failure or Failure(source.users_number, "", CANCELLED_TEXT)
            state = source.state
            if state == states.FINISHED:
                continue
            if state == states.FAILED:
                failure = failure or source.session.failures[source.number]
                continue
            unmet += 1
            if source.consumers is None:
                source.consumers = [node]
            else:
                source.consumers.append(node)
            if state == states.DROPPED:
                lost.append(source)
        node.n_unmet = unmet
        if failure is not None:
            self.fail(node, failure)
            return
        for source in lost:
            self.need(source)
        if unmet == 0:
            self.make_ready(node)
        elif node.state == states.WAITING:
            self.look_ahead(node)

    def redirect(self, node: Node, plan: PlanChunk, kind_of: KindOf, alias: Kind) -> None:
        """Put `plan` in the place of `node`, which becomes an alias of the plan's last task.

        ProtocolError, before anything has changed, where it is no plan.
        """
        for number in set(column(plan.inputs, "Q")):
            if number < plan.first and node.session.find(number) is None:
                raise ProtocolError(f"its input {number} is not there any more")
        for source in node.inputs:
            if source.state == states.FAILED:  # it has failed in this turn, after all: its checkpoint cannot be written
                self.fail(node, source.session.failures[source.number])
                return
        target = self.add_chunk(node.session, plan, kind_of, node.users_number)
        self.mark(target, GATHERED)
        node.flags |= ALIAS
        self._take_back(node)
        node.move(states.WAITING)
        self._consumers_come_back(node)
        self.become(node, alias, b"", [target])

    def become(self, node: Node, kind: Kind, config: bytes, inputs: list[Node]) -> None:
        """Give a task that waits another spec, with `inputs` by position; its state follows from them."""
        old_inputs = node.inputs
        for source in old_inputs:  # where it was sent ahead, or had begun before one of them was lost, it is listed too
            if source.consumers is not None and node in source.consumers:
                source.consumers.remove(node)
        numbers = [source.number for source in inputs]
        old = node.chunk
        made = MadeChunk(
            node.number, node.level(), [config], [numbers], old.stands_for, node.rules(), node.checkpoint()
        )
        node.session.leave_chunk(node)
        node.session.enter_chunk(made)
        node.chunk = made
        node.kind = kind
        node.inputs = tuple(dict.fromkeys(inputs))
        node.flags = node.flags & ~REPEATS | (REPEATS if len(node.inputs) < len(inputs) else 0)
        if node.state == states.READY:
            node.move(states.WAITING)
        for source in node.inputs:
            source.n_pending += 1
            source.n_children += 1
        for source in old_inputs:
            source.n_pending -= 1
            source.n_children -= 1
        if self.facts is not None:
            symbol = "" if node.is_held() else kind.symbol
            self.facts.append(InputsChanged(node.session.id, node.number, symbol, numbers))
        if self.journal is not None:
            self.journal.append(
                TaskBecame(
                    node.session.id,
                    node.number,
                    kind.symbol,
                    kind.label,
                    kind.request,
                    kind.time_limit_ms,
                    config,
                    ids_column(numbers),
                    node.flags & KEPT,
                )
            )
        lost = self._await_inputs(node)
        for source in old_inputs:
            self.let_go(source)
        for source in lost:
            self.need(source)

    def mark(self, node: Node, flag: int) -> None:
        """Set a flag that is kept (`node.KEPT`)."""
        node.flags |= flag
        if self.journal is not None:
            self.journal.append(TaskMarked(node.session.id, node.number, node.flags & KEPT))

    def abandon_plan(self, session: Session) -> None:
        """The rest of a plan that was under way never comes; O(all tasks of the session)."""
        session.plan_open = False
        session.unborn.clear()
        nodes = list(session.nodes())
        children: dict[Node, int] = {}
        for node in nodes:
            for source in node.inputs:
                children[source] = children.get(source, 0) + 1
        for node in nodes:
            unborn = node.n_children - children.get(node, 0) - (1 if node.flags & CANCELLED else 0)
            if unborn:
                node.n_children -= unborn
                node.n_pending -= unborn
        for node in nodes:
            if node.state != states.FORGOTTEN:
                self.let_go(node)

    # -- Progress -----------------------------------------------------------------------------------------------------

    def make_ready(self, node: Node) -> None:
        if node.flags & (DYNAMIC | COPIED) and node.is_held():
            if not node.flags & EXPANDED:
                self.to_expand[node] = None
            return
        node.move(states.READY)
        node.session.push_ready(node)

    def assign(self, node: Node, worker: Worker) -> None:
        node.move(states.ASSIGNED)
        node.worker = worker
        node.attempt += 1
        worker.add(node.session, node.kind)
        node.session.used_us += node.kind.estimate_us * node.kind.cpus
        consumers = node.consumers
        if consumers is not None:
            for consumer in consumers[:_AHEAD_CONSUMERS]:
                self.look_ahead(consumer)

    def look_ahead(self, node: Node) -> None:
        """Queue a waiting task at the worker that makes all its missing inputs, if there is one."""
        if node.state != states.WAITING or node.n_unmet > _AHEAD_UNMET or len(node.inputs) > _AHEAD_INPUTS:
            return
        if node.flags & (DYNAMIC | COPIED) and node.is_held():
            return
        worker = self.maker_of_missing(node)
        if worker is not None and worker.suits(node.kind):
            worker.ahead.append(node)
            self.touched[worker] = None

    @staticmethod
    def maker_of_missing(node: Node) -> Worker | None:
        """The one worker to which all missing inputs are assigned, if the task may be sent there ahead of them."""
        worker = None
        if node.flags & SUSPECT:
            return None
        for source in node.inputs:
            if source.state == states.FINISHED:
                continue
            if source.state != states.ASSIGNED or source.flags & RECALLED or worker not in (None, source.worker):
                return None
            worker = source.worker
        return worker

    def finish(self, node: Node, size_bytes: int, length: int, packed: bytes | None) -> None:
        """The worker that `node` is assigned to has made its object.

        A recalled task may have had all its inputs although one has been lost since.
        """
        node.move(states.FINISHED)
        node.size_bytes = size_bytes
        session = node.session
        if session.tries or session.crashes or session.doubts:
            session.forget_troubles(node)
        self.n_finished += 1
        if self.witness is not None:
            self.witness(node)
        worker = node.worker
        assert worker is not None
        worker.remove(node.session, node.kind)
        self.touched[worker] = None
        consumers, node.consumers = node.consumers, None
        if consumers is not None:
            for consumer in consumers:
                if consumer.state > states.ASSIGNED:
                    continue
                consumer.n_unmet -= 1
                if consumer.state == states.WAITING:
                    if consumer.n_unmet == 0:
                        self.make_ready(consumer)
                    else:
                        self.look_ahead(consumer)
        flags = node.flags
        if flags & RECALLED:
            node.flags = flags & ~RECALLED | (LISTED if node.n_unmet else 0)
        if length:
            node.flags |= HAS_LENGTH
            node.session.lengths[node.number] = length
        elif node.flags & HAS_LENGTH:  # it has been made again, and is another one
            node.flags &= ~HAS_LENGTH
            del node.session.lengths[node.number]
        if node.checkpoint():
            self.save(node, worker)
        elif flags & (WANTED | INLINED) == WANTED:
            session = node.session
            keep = session.link is not None and not session.full  # else the client fetches it later
            session.results_to_tell.append((node, packed if keep else None))
        for source in node.inputs:
            source.n_pending -= 1
            if not source.n_pending:
                self.let_go(source)
        if not node.n_pending:
            self.let_go(node)

    def _take_back(self, node: Node) -> None:
        """Undo an assignment in the books; the state is the caller's to set."""
        worker = node.worker
        assert worker is not None
        assert node.state == states.ASSIGNED
        worker.remove(node.session, node.kind)
        self.touched[worker] = None
        node.worker = None
        node.flags &= ~RECALLED
        node.outlive_attempts()

    def give_back(self, node: Node) -> None:
        """The task was not started by its worker and is no longer that worker's."""
        self._take_back(node)
        self._consumers_come_back(node)
        if node.n_unmet:
            node.move(states.WAITING)
            self.look_ahead(node)
        else:
            node.move(states.WAITING)
            self.make_ready(node)

    @staticmethod
    def _consumers_come_back(node: Node) -> None:
        """Mark what was sent ahead on `node`, which its worker will not make: unasked, the worker gives it back."""
        for consumer in node.consumers or ():
            if consumer.state == states.ASSIGNED:
                consumer.flags |= RECALLED

    def save(self, node: Node, worker: Worker) -> None:
        """Have a finished task's object saved; until then it is kept, and its client hears nothing of it."""
        node.flags |= WRITING
        self.to_write.append((worker, node.id, node.checkpoint()))

    # -- Failure ------------------------------------------------------------------------------------------------------

    def fail_or_retry(self, node: Node, failure: Failure) -> None:
        """An attempt has failed by itself: run the task again if it may be."""
        tries = node.session.tries
        count = tries[node.number].n_failed + 1 if node.number in tries else 1
        if count <= node.rules().retries:
            tries[node.number] = Tries(count, node.worker)
            self.give_back(node)
            return
        if count > 1:
            failure = failure._replace(error=f"{failure.error}\n(the last of {count} attempts; the others failed, too)")
        self.fail(node, failure)

    def fail(self, node: Node, failure: Failure) -> None:
        """Fail a task and everything that depends on it."""
        if self.facts is not None:
            self.facts.append(TaskFailed(node.session.id, node.number, failure.worker, failure.error))
        stack = [node]
        settled: list[Node] = []
        while stack:
            node = stack.pop()
            if node.state > states.ASSIGNED:
                continue
            if node.state == states.ASSIGNED:
                if settled and node.worker is not None:  # the first one's worker said so itself
                    self.to_cancel.append((node.worker, node.id))
                self._take_back(node)
            node.move(states.FAILED)
            node.session.failures[node.number] = failure
            if node.flags & (WANTED | INLINED) == WANTED:
                self.tell_failure(node, failure)
            if node.consumers is not None:
                stack.extend(node.consumers)
                node.consumers = None
            settled.append(node)
        if settled and self.journal is not None:
            numbers = ids_column(node.number for node in settled)
            session = settled[0].session.id
            self.journal.append(TasksFailed(session, numbers, failure.task, failure.worker, failure.error))
        for node in settled:
            for source in node.inputs:
                source.n_pending -= 1
        for node in settled:
            for source in node.inputs:
                self.let_go(source)
            self.let_go(node)

    def fail_unknown(self, node: Node) -> None:
        """No worker has the task's type."""
        symbol = node.kind.symbol
        error = f"unknown task type {symbol!r}: no worker has it (own types are loaded with loom-worker --load)"
        self.fail(node, Failure(node.users_number, "", error))

    @staticmethod
    def tell_failure(node: Node, failure: Failure) -> None:
        """Have the client told that a result of its has failed."""
        node.session.failures_to_tell.append(FailedResult(node.number, failure.task, failure.worker, failure.error))

    # -- Letting go ---------------------------------------------------------------------------------------------------

    def release(self, node: Node) -> None:
        """The client has given the result up."""
        if node.flags & CANCELLED:
            node.n_children -= 1
        node.flags &= ~(WANTED | INLINED | CANCELLED)
        self.let_go(node)

    def cancel(self, node: Node) -> None:
        """A result counts as failed until it is released; its task is stopped where nobody else needs it."""
        if node.flags & WANTED and node.state != states.FAILED:
            node.flags = node.flags & ~(WANTED | INLINED) | CANCELLED
            node.n_children += 1  # its client may still name it
            self.let_go(node)

    def let_go(self, node: Node) -> None:
        """Drop, cancel and forget what nobody needs any more, from `node` upwards; O(what goes)."""
        if node.flags & (WANTED | WRITING) or node.n_pending:
            return
        stack = [node]
        while stack:
            node = stack.pop()
            if node.flags & (WANTED | WRITING) or node.n_pending:
                continue
            state = node.state
            if state == states.FINISHED:
                self._drop_object(node)
            elif state <= states.ASSIGNED:  # unfinished, and nobody waits for it: cancel
                self._cancel(node)
                for source in node.inputs:
                    source.n_pending -= 1
                    stack.append(source)
            if not node.n_children and node.state != states.FORGOTTEN:
                node.session.failures.pop(node.number, None)
                if node.flags & HAS_LENGTH:
                    del node.session.lengths[node.number]
                node.move(states.FORGOTTEN)
                node.session.remove(node)
                node.consumers = None
                for source in node.inputs:
                    source.n_children -= 1
                    stack.append(source)
                node.inputs = ()

    def _drop_object(self, node: Node) -> None:
        task = node.id
        for holder in node.holders():
            self.to_drop.append((holder, task))
        self.object_gone(node)

    def object_gone(self, node: Node) -> None:
        """The object of a finished task is nowhere any more."""
        node.flags &= ~WRITING
        node.worker = node.replicas = None
        node.outlive_attempts()
        node.move(states.DROPPED)
        self.n_finished -= 1

    def _cancel(self, node: Node) -> None:
        if node.state == states.ASSIGNED:
            assert node.worker is not None
            self.to_cancel.append((node.worker, node.id))
            self._take_back(node)
        if node.n_unmet:
            node.flags |= LISTED
        node.move(states.DROPPED)

    # -- Recomputing --------------------------------------------------------------------------------------------------

    def need(self, node: Node) -> None:
        """Compute the object of a dropped task again, and whatever that needs."""
        stack = [node]
        while stack:
            node = stack.pop()
            if node.state != states.DROPPED or not (node.n_pending or node.flags & WANTED):
                continue  # who needed it may have failed meanwhile, over another input
            node.move(states.WAITING)
            if node.flags & CUT:
                self.fail(node, Failure(node.users_number, "", self.lineage.story()))
                continue
            for source in node.inputs:
                source.n_pending += 1
            stack.extend(self._await_inputs(node))

    def _await_inputs(self, node: Node) -> list[Node]:
        """Find what a waiting task waits for; returns inputs that are dropped and must be made again."""
        unmet = 0
        dropped = []
        failure = None
        for source in node.inputs:
            if source.state == states.FINISHED:
                continue
            if source.state == states.FAILED:
                failure = source.session.failures[source.number]
                continue
            unmet += 1
            if source.consumers is None:
                source.consumers = [node]
            elif not node.flags & LISTED or node not in source.consumers:
                source.consumers.append(node)
            if source.state == states.DROPPED:
                dropped.append(source)
        node.n_unmet = unmet
        node.flags &= ~LISTED
        if failure is not None:
            self.fail(node, failure)
            return []
        if not unmet:
            self.make_ready(node)
        return dropped

    # -- Sessions -----------------------------------------------------------------------------------------------------

    def close(self, session: Session) -> None:
        """Take a session out; its tasks are taken apart by `dismantle`."""
        del self.sessions[session.id]

    @staticmethod
    def forget_at(worker: Worker, session: Session) -> None:
        """Nothing of a closed session is this worker's any more."""
        worker.loads.pop(session, None)
        if any(node.session is session for node in worker.ahead):
            worker.ahead = deque(node for node in worker.ahead if node.session is not session)

    def dismantle(self, session: Session) -> bool:
        """Take one page of a closed session's tasks apart; False when there is nothing left."""
        page = session.take_page()
        if page is None:
            return False
        for node in page:
            if node is not None:
                if node.state == states.FINISHED:
                    self.n_finished -= 1
                node.inputs = ()
                node.consumers = node.replicas = node.worker = None
                node.state = states.FORGOTTEN
                session.leave_chunk(node)
        return True


def finished_fact(accepted: list[FinishedTask]) -> TasksFinished:
    """Of results that were accepted, for the journal."""
    return TasksFinished(
        ids_column([done.task for done in accepted]),
        ids_column([done.attempt for done in accepted]),
        ids_column([done.size_bytes for done in accepted]),
        [(row, done.length) for row, done in enumerate(accepted) if done.length],
    )
