"""Every invariant of the three cores, derived again from scratch. AssertionError tells the story of the task at fault.

Meant for tests and the simulator, after any step: O(everything). How the parts of the state are meant to hang together
is best read here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

from loom.core import states
from loom.core import worker_states as ws
from loom.core.client import ClientCore
from loom.core.cluster import Worker
from loom.core.kinds import Kind
from loom.core.node import CANCELLED, HAS_LENGTH, INLINED, RECALLED, WANTED, WRITING, Node
from loom.core.ready import is_root
from loom.core.server import ServerCore
from loom.core.session import Session
from loom.core.worker import WorkerCore
from loom.core.worker_amounts import Amounts
from loom.core.worker_queues import Queues
from loom.core.worker_tasks import INLINE, PROGRAM, Task
from loom.messages import RegisterWorker
from loom.resources import GPU_PARTS, GPUS

_Loads = dict[Worker, dict[Session, Counter[Kind]]]


# -- Server -----------------------------------------------------------------------------------------------------------


def check_server(core: ServerCore, complete: Container[int] = ()) -> None:
    """`complete`: sessions all of whose plans the server has in whole, so that counts of consumers must be exact."""
    loads: _Loads = {}
    n_finished = 0
    for session in core.graph.sessions.values():
        n_finished += _check_session(core, session, session.id in complete, loads)
    for session in core.clients.dying:
        assert session.id not in core.graph.sessions, f"{session} is closed and open"
        n_finished += sum(node.state == states.FINISHED for node in session.nodes())
    assert core.graph.n_finished == n_finished, f"n_finished is {core.graph.n_finished}, not {n_finished}"
    _check_workers(core, loads)
    _check_links(core)
    graph, scheduler = core.graph, core.scheduler
    left = (graph.to_drop, graph.to_cancel, graph.to_recall, graph.to_write, scheduler.assigned, graph.journal)
    assert not any(left), f"a step has left something unsaid: {left}"
    assert not scheduler.unmet, f"a step has left something unsaid: {scheduler.unmet}"
    assert core.attaching.settling or not scheduler.to_ask, f"a step has left something unsaid: {scheduler.to_ask}"
    if core.attaching.settling:
        return
    assert not graph.touched, f"a step has left something unsaid: {graph.touched}"
    assert all(n.session.plan_open for n in graph.to_expand), f"these could be expanded: {graph.to_expand}"


def _check_session(core: ServerCore, session: Session, complete: bool, loads: _Loads) -> int:
    nodes = list(session.nodes())
    assert len(nodes) == session.n_nodes, f"{session} has {len(nodes)} tasks"
    children: Counter[Node] = Counter()
    pending: Counter[Node] = Counter()
    waiting: dict[Node, list[Node]] = {}  # by input: unfinished tasks that miss it
    for node in nodes:
        children.update(node.inputs)
        if node.state in states.UNFINISHED:
            pending.update(node.inputs)
            for source in node.inputs:
                if source.state != states.FINISHED:
                    waiting.setdefault(source, []).append(node)
    ready = {node for queue in session.ready.values() for node in queue.nodes()}
    ready.update(session.on_trial)
    n_finished = 0
    for node in nodes:
        assert session.find(node.number) is node, f"{node} is not where its number says"
        unborn = node.n_children - children[node] - bool(node.flags & CANCELLED)
        assert unborn == node.n_pending - pending[node], (
            f"{node} has {children[node]} consumers, {pending[node]} of them unfinished: "
            f"{[str(n) for n in nodes if node in n.inputs]}"
        )
        assert unborn == 0 if complete else unborn >= 0, f"{node} waits for {unborn} consumers more"
        assert len(set(node.inputs)) == len(node.inputs), f"{node} has an input twice"
        for source in node.inputs:
            assert session.find(source.number) is source, f"{source}, an input of {node}, is gone"
        _check_node(core, node, ready, loads)
        listed = Counter(node.consumers or ())
        for consumer in waiting.get(node, ()):
            assert listed[consumer] == 1, f"{consumer} misses {node}, which knows of it {listed[consumer]} times"
        n_finished += node.state == states.FINISHED
    with_length = {node.number for node in nodes if node.flags & HAS_LENGTH}
    spec_bytes = sum(chunk.size_bytes for chunk in {node.chunk: None for node in nodes})
    assert session.spec_bytes == spec_bytes, f"{session} counts {session.spec_bytes} bytes of specs, not {spec_bytes}"
    for chunk, n_live in Counter(node.chunk for node in nodes).items():
        assert chunk.n_live == n_live, f"a chunk counts {chunk.n_live} tasks, it has {n_live}"
    assert session.lengths.keys() == with_length, f"{session} knows the lengths of {set(session.lengths)}"
    failed = {node.number for node in nodes if node.state == states.FAILED}
    assert set(session.failures) == failed, f"{session} has failures {set(session.failures)}, not {failed}"
    if session.link is not None and not session.full:
        if not core.attaching.settling:
            assert not session.results_to_tell, f"{session} has not been told all"
            assert core.untold or not session.failures_to_tell, f"{session} has not been told all"
        assert not session.unacked, f"{session} waits for an acknowledgement"
    return n_finished


def _check_node(core: ServerCore, node: Node, ready: set[Node], loads: _Loads) -> None:
    needed = node.flags & (WANTED | WRITING) or node.n_pending
    unmet = [source for source in node.inputs if source.state != states.FINISHED]
    if node.state in states.UNFINISHED:
        assert node.n_unmet == len(unmet), f"{node} misses {unmet}"
        assert all(source.state in states.UNFINISHED for source in unmet), f"{node} can never run: {unmet}"
    if node.state != states.ASSIGNED:
        assert not node.flags & RECALLED, f"{node} is recalled from nobody"
    if node.state != states.FINISHED:
        assert not node.flags & WRITING, f"{node} is not there to be saved"
        assert node.replicas is None, f"{node} has replicas {node.replicas}"
    match node.state:
        case states.WAITING:
            assert unmet or node.is_held(), f"{node} waits for nothing"
            assert needed, f"{node} is nobody's"
            assert node.worker is None, f"{node} is nobody's"
        case states.READY:
            assert not unmet, f"{node} is not ready: {unmet}"
            assert node in ready, f"{node} is in no ready queue"
            assert needed, f"{node} is nobody's"
            assert node.worker is None, f"{node} is nobody's"
            free = [w for w in core.workers.values() if w.is_free_for(node.kind) and w.left_us is None]
            if node.number in node.session.tries or core.attaching.settling:  # it waits for another worker than these
                free = []
            if is_root(node):
                free = [w for w in free if not w.over_budget or not (w.n_tasks or w.n_light)]
            assert not free or node in node.session.on_trial, f"{node} could run now at {free}"
        case states.ASSIGNED:
            assert needed, f"{node} is nobody's"
            _check_assigned(core, node, unmet, loads)
        case states.FINISHED:
            holders = node.holders()
            assert holders, f"{node} is nowhere"
            assert node.worker is not None, f"{node} is nowhere"
            assert len(set(holders)) == len(holders), f"{node} has the holders {holders}"
            there = [w for w in holders if w is not core.attaching.ghost or not core.attaching.settling]
            assert all(core.workers.get(w.id) is w for w in there), f"{node} is at a lost worker: {holders}"
            assert needed, f"{node} is nobody's"
            assert node.consumers is None, f"{node} still has consumers to tell"
        case states.DROPPED:
            assert node.worker is None, f"{node} is somewhere"
            assert not node.n_pending, f"{node} is needed"
            assert not node.flags & WANTED or node.flags & INLINED, f"{node} is wanted"
            assert node.n_children or node.flags & WANTED, f"{node} should be forgotten"
        case states.FAILED:
            assert node.worker is None, f"{node} is somewhere"
            assert node.n_children or node.flags & WANTED, f"{node} should be forgotten"
        case _:
            raise AssertionError(f"{node} is still in its session")


def _check_assigned(core: ServerCore, node: Node, unmet: list[Node], loads: _Loads) -> None:
    worker = node.worker
    assert worker is not None, f"{node} is assigned to nobody"
    assert core.workers.get(worker.id) is worker, f"{node} is assigned to nobody"
    loads.setdefault(worker, {}).setdefault(node.session, Counter())[node.kind] += 1
    if not node.flags & RECALLED:
        for source in unmet:
            assert source.state == states.ASSIGNED, f"{node} waits there for {source}"
            assert source.worker is worker, f"{node} waits there for {source}"


def _check_workers(core: ServerCore, loads: _Loads) -> None:
    assert core.scheduler.workers == core.workers, "the scheduler knows other workers"
    for worker in core.workers.values():
        mine = {session: dict(load) for session, load in loads.get(worker, {}).items()}
        assert worker.loads == mine, f"{worker} is charged with {worker.loads}, it has {mine}"
        if worker in core.graph.touched:  # the scheduler, which waits, has still to look at it
            continue
        if any(kind.extras for load in mine.values() for kind in load):
            offer = RegisterWorker(worker.name, worker.cpus, list(worker.extras.items()), "", 0, "", [], 0, (0, 0, 0))
            fresh = Worker(worker.id, worker.link, offer, 0.0)
            fresh.loads = worker.loads
            fresh.refresh()
            assert worker.figures() == fresh.figures(), f"{worker} counts {worker.figures()}, not {fresh.figures()}"
            continue
        counts = worker.n_light, worker.n_tasks, worker.busy_cpus
        light = sum(count for load in mine.values() for kind, count in load.items() if not kind.cpus)
        total = sum(sum(load.values()) for load in mine.values())
        busy_cpus = sum(kind.cpus * count for load in mine.values() for kind, count in load.items())
        assert counts == (light, total - light, busy_cpus), f"{worker} counts {counts}, it has {mine}"
        assert all(n.session.id in core.graph.sessions for n in worker.ahead), f"{worker} is kept for a closed session"
    for worker in core.workers.values():
        shut = worker.shut
        worker.set_shut()
        assert worker.shut == shut, f"{worker} is shut: {shut}"
        kept_for = worker.kept_for
        assert kept_for is None or kept_for in kept_for.session.on_trial, f"{worker} is kept for {kept_for}"
    for worker in core.scheduler.room:
        assert core.workers.get(worker.id) is worker, f"{worker}, which is gone, is offered"
        assert worker.open, f"{worker} is offered without having room: {worker.figures()}"


def _check_links(core: ServerCore) -> None:
    for link, peer in core.peers.items():
        if isinstance(peer, Session):
            assert peer.link == link, f"link {link} is not {peer}'s"
            assert core.graph.sessions.get(peer.id) is peer, f"link {link} is not {peer}'s"
        elif isinstance(peer, Worker):
            assert peer.link == link, f"link {link} is not {peer}'s"
            assert core.workers.get(peer.id) is peer, f"link {link} is not {peer}'s"
    for session in core.graph.sessions.values():
        if session.link is not None:
            assert core.peers.get(session.link) is session, f"{session} has lost its link {session.link}"
            assert session.ends_at is None, f"{session} is attached and detached"
        else:
            assert session.ends_at is not None or session.name, f"{session} would never end"
        assert {number: name for name, number in session.names.items()} == session.named, f"{session}: names differ"
    for worker in core.workers.values():
        assert core.peers.get(worker.link) is worker, f"{worker} has lost its link"


# -- Worker -----------------------------------------------------------------------------------------------------------


def check_worker(core: WorkerCore) -> None:
    lines = (core.queues.ready, core.queues.light, *core.queues.special.values())
    waiting = [task for line in lines for task in line]
    ready = Counter(task for task in waiting if task.state == ws.READY)
    awaited = {object_id: Counter(tasks) for object_id, tasks in core.awaited.items()}
    for task_id, task in core.tasks.items():
        assert task.id == task_id, f"{task} stands for {task_id:#x}"
        _check_task(core, task, ready, awaited)
    for task in ready:
        assert core.tasks.get(task.id) is task, f"{task} is ready and unknown"
    for object_id in core.awaited:
        assert object_id not in core.held, f"object {object_id:#x} is here, and awaited"
        coming = object_id in core.fetching or object_id in core.tasks
        assert coming, f"object {object_id:#x} never comes; waiting: {core.awaited[object_id]}"
    for several, name in ((core.fetching, "fetched"), (core.tasks, "made"), (core.copies, "a copy")):
        for object_id in several:
            assert object_id not in core.held, f"object {object_id:#x} is held, and {name}"
    for object_id in core.copies:
        assert object_id in core.tasks, f"the copy {object_id:#x} is nobody's"
    _check_attachment(core)
    _check_queues(core.queues)
    left = core.unsaid()
    assert not any(left), f"a step has left something unsaid: {left}"


def _check_attachment(core: WorkerCore) -> None:
    objects = core.objects
    attempts = core.held.keys() if core.patience_s and (core.attached or core.keeps_until is not None) else set()
    assert objects.attempts.keys() == attempts, f"attempts are known of {set(objects.attempts)}, not of {set(attempts)}"
    assert objects.lengths.keys() <= objects.attempts.keys(), f"lengths are known of {set(objects.lengths)}"
    failures = core.reports.failures
    if core.attached:
        assert core.keeps_until is None, "the server is here, and waited for"
        assert not failures, f"the server has not heard of {list(failures)}"
        return
    assert not core.fetching, f"without a server these are fetched: {list(core.fetching)}"
    assert not core.saving, f"without a server these are saved: {core.saving}"
    if core.keeps_until is None:
        kept = core.held or core.tasks or failures
        assert not kept, f"these are kept for nobody: {kept}"


def _check_task(core: WorkerCore, task: Task, ready: Counter[Task], awaited: dict[int, Counter[Task]]) -> None:
    missing = {i for i in task.inputs if i not in core.held}
    run = task.id, task.attempt
    if task.state in (ws.WAITING, ws.READY):
        assert run not in core.queues.placed, f"{task} is placed"
        assert task.executor is None, f"{task} is placed"
    match task.state:
        case ws.WAITING:
            assert task.n_missing == len(missing) > 0, f"{task} misses {missing}"
            for object_id in missing:
                assert awaited.get(object_id, Counter())[task] == 1, f"{task} does not await {object_id:#x}"
        case ws.READY:
            assert not missing, f"{task} misses {missing}"
            assert ready[task] == 1, f"{task} is ready {ready[task]} times"
        case ws.QUEUED:
            assert core.queues.placed.get(run) is task, f"{task} is not placed"
            assert task.executor is not None, f"{task} is in no queue"
            assert task in task.executor.queue, f"{task} is in no queue"
            if task.n_missing:
                assert task.n_missing == len(missing), f"{task} misses {missing}"
            for object_id in missing if task.n_missing else ():
                assert awaited.get(object_id, Counter())[task] == 1, f"{task} does not await {object_id:#x}"
        case ws.RUNNING if task.kind.place == INLINE:
            assert run not in core.queues.placed, f"{task} runs in the loop and elsewhere"
        case ws.RUNNING:
            assert core.queues.placed.get(run) is task, f"{task} does not run"
            assert task.executor is None, f"{task} does not run"
        case _:
            raise AssertionError(f"{task} is over")


def _check_queues(queues: Queues) -> None:
    in_queues = [task for executor in queues.executors for task in executor.queue]
    programs = [task for task in queues.placed.values() if task.executor is None]
    runs = Counter((task.id, task.attempt) for task in in_queues + programs)
    assert runs == Counter(queues.placed.keys()), f"placed are {list(queues.placed)}, found {list(runs)}"
    used = sum(executor.cpus for executor in queues.executors) + sum(task.cpus for task in programs)
    assert queues.free_cpus == queues.cpus - used >= 0, f"{queues.free_cpus} cpus are free, {used} used"
    _check_amounts(queues)
    for executor in queues.executors:
        tasks = list(executor.queue)
        story = f"executor {executor.index} with {executor.cpus} cpus and {tasks}"
        assert executor.backlog_us == sum(task.estimate_us for task in tasks), f"{story}: {executor.backlog_us} us"
        assert all(task.executor is executor for task in tasks), story
        assert executor.cpus >= max((task.cpus for task in tasks), default=0), story
        assert tasks or not executor.cpus, story
        assert len(tasks) < 2 or executor.cpus <= 1, story
        assert tasks or executor.cancelled_at is None, story
        assert tasks or not executor.full, story
        assert executor.alive or not tasks, story
    n_light = sum(not task.cpus for task in programs)
    assert queues.n_light_programs == n_light, f"{queues.n_light_programs} light programs, found {n_light}"
    assert all(task.cpus for task in queues.ready), f"light tasks wait with the others: {queues.ready}"
    assert all(task.kind.extras for line in queues.special.values() for task in line), f"{queues.special}"
    first = next((task for task in queues.ready if task.state == ws.READY), None)
    waits = [t for line in queues.special.values() for t in line if t.state == ws.READY and t.blocked_since is not None]
    if waits:
        pass  # cores may be kept for one of them
    elif first is not None and first.kind.place == PROGRAM:
        assert first.cpus > queues.free_cpus, f"{first} could start"
    elif first is not None:
        assert queues.executor_for(first) is None, f"{first} could start"


def _check_amounts(queues: Queues) -> None:
    """No core and no amount is given twice, none is lost."""
    placed = queues.placed.values()
    cores = [core for executor in queues.executors for core in executor.cores]
    cores += [core for task in placed if task.executor is None for core in task.cores]
    assert sorted([*cores, *queues.free_cores]) == list(range(queues.cpus)), f"cores {cores}, free {queues.free_cores}"
    free, free_gpus = dict(queues.amounts.free), list(queues.amounts.free_gpus)
    for task in placed:
        for name, amount in task.kind.extras:
            if name != GPUS:
                free[name] += amount
            for gpu in task.gpus if name == GPUS else ():
                free_gpus[gpu] += min(amount, GPU_PARTS)
            if name == GPUS:
                assert len(set(task.gpus)) * min(amount, GPU_PARTS) == amount, f"{task} has the gpus {task.gpus}"
    assert min([*queues.amounts.free.values(), *queues.amounts.free_gpus], default=0) >= 0, f"{queues.amounts.free}"
    offered = Amounts(queues.extras)
    assert free == offered.free, f"{free} of {offered.free}"
    assert free_gpus == offered.free_gpus, f"{free_gpus}"


# -- Client -----------------------------------------------------------------------------------------------------------


def check_client(core: ClientCore) -> None:
    seqs = [command.seq for command in core.unacked]  # type: ignore[attr-defined]  # every command has one
    assert seqs == list(range(core.next_seq - len(seqs), core.next_seq)), f"commands {seqs} of {core.next_seq - 1}"
    assert not core.holders.keys() & core.inlined.keys(), "a result is here and elsewhere"
    for number in core.void:
        here = number in core.holders or number in core.inlined or number in core.fetching
        assert not here, f"result {number} was released or cancelled and is not forgotten"
    for number, worker in core.holders.items():
        assert worker in core.peers, f"result {number} is at worker {worker}, whose address is unknown"
    for number in core.fetching:
        assert number in core.holders, f"result {number} is fetched from nowhere"
    left = core.unsaid()
    assert core.closed or not any(left), f"a step has left something unsaid: {left}"
