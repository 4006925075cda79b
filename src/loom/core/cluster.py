"""What the server knows of a worker: what it has, what it was given."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from loom.core.columns import is_plain_text
from loom.core.kinds import WORKER_WINDOW_US
from loom.errors import ProtocolError
from loom.limits import LAST_PORT, LIGHT_PROGRAMS, MAX_EXTRA, MAX_EXTRAS, MAX_KINDS, MAX_LABEL_CHARS, MAX_TIME_LIMIT_MS
from loom.messages import PeerAddress, RegisterWorker

if TYPE_CHECKING:
    from loom.core.kinds import Kind
    from loom.core.node import Node
    from loom.core.session import Session

LIGHT_WINDOW_TASKS: Final = 4096  # most light tasks ahead at one worker, however short


def check_registration(register: RegisterWorker) -> None:
    """ProtocolError where a worker says of itself what cannot be."""
    if not register.name or not all(map(is_plain_text, (register.name, register.host, register.handover))):
        raise ProtocolError(f"a worker calls itself {register.name!r:.100}, or has an address that is none")
    if register.port > LAST_PORT or register.time_left_ms > MAX_TIME_LIMIT_MS:
        raise ProtocolError(f"a worker has port {register.port}, and {register.time_left_ms} ms left")
    names = {name for name, _ in register.extras}
    if not len(names) == len(register.extras) <= MAX_EXTRAS:
        raise ProtocolError("a worker names something that it has twice, or too many things")
    for name, amount in register.extras:
        if not name or len(name) > MAX_LABEL_CHARS or amount > MAX_EXTRA:
            raise ProtocolError(f"a worker has {amount} {name!r:.100}")
    if len(register.symbols) > MAX_KINDS:
        raise ProtocolError(f"a worker has {len(register.symbols)} types of tasks")


class Worker:
    """A registered worker. `loads` counts what is assigned to it; the figures below are derived by `refresh`."""

    __slots__ = (
        "address",
        "ahead",
        "ask_after",
        "asked",
        "attaching",
        "backlog_us",
        "busy_cpus",
        "cpus",
        "disk_full",
        "ends_at",
        "extras",
        "extras_backlog_us",
        "extras_busy",
        "full",
        "id",
        "kept_for",
        "kinds_told",
        "leaving",
        "left_us",
        "light_us",
        "link",
        "loads",
        "n_given",
        "n_light",
        "n_queued",
        "n_tasks",
        "name",
        "nothing_to_give",
        "over_budget",
        "peers_told",
        "queued_us",
        "shut",
        "symbols",
        "trial",
    )

    def __init__(self, id: int, link: int, register: RegisterWorker, now: float) -> None:
        self.id = id
        self.link = link
        self.name = register.name
        self.cpus = register.cpus
        self.extras = dict(register.extras)
        self.symbols = frozenset(register.symbols)
        self.address = PeerAddress(id, register.name, register.host, register.port, register.handover)
        self.loads: dict[Session, dict[Kind, int]] = {}
        self.ahead: deque[Node] = deque()  # waiting tasks whose missing inputs were all given to this worker
        self.full = False  # its link is above the high-water mark
        self.attaching = False  # it has come back, and has not said yet with what
        self.leaving = False  # it has said that it goes
        self.disk_full = False  # it has said that it can store nothing
        self.over_budget = False  # it has said that its objects take too much memory
        self.kept_for: Node | None = None  # nothing else goes there until this task has a core (`crashes`)
        self.shut = False  # for one of these reasons nothing is sent there
        self.trial: Node | None = None  # the task last sent there on its last chance (`crashes`)
        self.ends_at = now + register.time_left_ms / 1000 if register.time_left_ms else None
        self.left_us: float | None = None  # of the time until then
        self.kinds_told: set[int] = set()
        self.peers_told: set[int] = set()
        self.asked = False  # it was asked to give work back and has not answered
        self.ask_after = 0.0
        self.nothing_to_give = 0  # how often in a row it had nothing
        self.backlog_us = 0
        self.busy_cpus = 0
        self.extras_busy: dict[str, int] = {}  # amounts that the assigned tasks ask for,
        self.extras_backlog_us: dict[str, int] = {}  # each times what its task is taken for
        self.light_us = 0
        self.n_given = 0  # tasks, since it is here
        self.n_light = 0
        self.n_tasks = 0
        self.n_queued = 0  # of them, those that wait for something else than cores,
        self.queued_us = 0  # and what these are taken for

    def __repr__(self) -> str:
        return f"<worker {self.id} {self.name}>"

    def look(self, now: float) -> None:
        """Take note of the time."""
        if self.ends_at is not None:
            self.left_us = (self.ends_at - now) * 1e6

    def set_shut(self) -> None:
        """Derive `shut`."""
        self.shut = self.full or self.leaving or self.disk_full or self.attaching or self.kept_for is not None

    def ends_too_soon(self, kind: Kind) -> bool:
        """Whether a task of this kind would not be done there in time, as far as is known."""
        if self.left_us is None:
            return False
        return kind.needs_us() + self.backlog_us / self.cpus > self.left_us

    def refresh(self) -> None:
        """Derive the figures from `loads`; O(kinds)."""
        backlog_us = light_us = busy_cpus = n_light = n_tasks = 0
        self.n_queued = self.queued_us = 0
        if self.extras_busy:
            self.extras_busy, self.extras_backlog_us = {}, {}
        special: dict[Kind, int] = {}
        for load in self.loads.values():
            for kind, count in load.items():
                if kind.extras:
                    special[kind] = special.get(kind, 0) + count
                elif kind.cpus:
                    n_tasks += count
                    busy_cpus += kind.cpus * count
                    backlog_us += kind.estimate_us * kind.cpus * count
                else:
                    n_light += count
                    light_us += kind.estimate_us * count
        self.backlog_us, self.light_us, self.busy_cpus = backlog_us, light_us, busy_cpus
        self.n_light, self.n_tasks = n_light, n_tasks
        if special:
            self._refresh_special(special)

    def _refresh_special(self, special: dict[Kind, int]) -> None:
        """Of tasks that ask for more than cores only so many can have cores as there is of the rest."""
        left = dict(self.extras)
        for kind, count in special.items():
            running = min(count, *(left.get(name, 0) // amount for name, amount in kind.extras))
            for name, amount in kind.extras:
                left[name] = left.get(name, 0) - running * amount
            self.n_tasks += count
            self.n_queued += count - running
            self.queued_us += kind.estimate_us * (count - running)
            self.busy_cpus += kind.cpus * running
            self.backlog_us += kind.estimate_us * kind.cpus * running
            self._add_extras(kind, count)

    def add(self, session: Session, kind: Kind) -> None:
        load = self.loads.get(session)
        if load is None:
            load = self.loads[session] = {}
        load[kind] = load.get(kind, 0) + 1
        if kind.extras:
            self.refresh()
        elif kind.cpus:
            self.n_tasks += 1
            self.busy_cpus += kind.cpus
            self.backlog_us += kind.estimate_us * kind.cpus
        else:
            self.n_light += 1
            self.light_us += kind.estimate_us

    def _add_extras(self, kind: Kind, count: int) -> None:
        busy, backlog_us = self.extras_busy, self.extras_backlog_us
        for name, amount in kind.extras:
            busy[name] = busy.get(name, 0) + amount * count
            backlog_us[name] = backlog_us.get(name, 0) + kind.estimate_us * amount * count

    def remove(self, session: Session, kind: Kind) -> None:
        load = self.loads[session]
        count = load[kind] - 1
        if count:
            load[kind] = count
        else:
            del load[kind]
            if not load:
                del self.loads[session]

    def suits(self, kind: Kind) -> bool:
        """Whether it could ever run a task of this kind: it has the type, and as much as the task asks for."""
        if kind.cpus > self.cpus or (kind.is_own and kind.symbol not in self.symbols):
            return False
        if self.leaving or (self.left_us is not None and kind.needs_us() > self.left_us):
            return False
        return all(amount <= self.extras.get(name, 0) for name, amount in kind.extras)

    def is_free_for(self, kind: Kind) -> bool:
        """Whether one more task of this kind would start at once, as far as the server knows."""
        if self.shut or not self.suits(kind) or self.ends_too_soon(kind):
            return False
        return self.has_free(kind)

    def has_free(self, kind: Kind) -> bool:
        """Whether as much is free there as one more task of this kind asks for."""
        if not kind.cpus:
            return self.n_light < kind.n_at_once
        return self.busy_cpus + kind.cpus <= self.cpus and all(
            self.extras_busy.get(name, 0) + amount <= self.extras[name] for name, amount in kind.extras
        )

    def can_take(self, kind: Kind) -> bool:
        """Whether one more task of this kind may be sent now: a free core, or room in the window of time."""
        if self.shut or (kind.is_own and kind.symbol not in self.symbols):
            return False
        if self.left_us is not None and self.ends_too_soon(kind):
            return False
        if not kind.cpus:
            return self.n_light < kind.n_at_once or (
                self.n_light < LIGHT_WINDOW_TASKS and self.light_us + kind.estimate_us <= WORKER_WINDOW_US
            )
        if kind.cpus > self.cpus or (kind.extras and not self._has_extras(kind)):
            return False
        return (
            self.busy_cpus + kind.cpus <= self.cpus
            or self.backlog_us + kind.estimate_us * kind.cpus <= WORKER_WINDOW_US * self.cpus
        )

    def _has_extras(self, kind: Kind) -> bool:
        """The same for what it asks for besides cores: enough free, or room in the window of what there is."""
        for name, amount in kind.extras:
            there = self.extras.get(name, 0)
            if amount > there:
                return False
            if self.extras_busy.get(name, 0) + amount > there:
                ahead_us = self.extras_backlog_us.get(name, 0) + kind.estimate_us * amount
                if ahead_us > WORKER_WINDOW_US * there:
                    return False
        return True

    def figures(self) -> tuple[object, ...]:
        """Everything that `refresh` derives, estimates of times aside."""
        return self.n_light, self.n_tasks, self.n_queued, self.busy_cpus, dict(self.extras_busy)

    def n_waiting(self) -> int:
        """How many of the tasks assigned here cannot run now, about; light ones aside."""
        for_cores = self.n_tasks - self.n_queued - self.cpus
        return self.n_queued + max(for_cores, int(self.busy_cpus > self.cpus))  # of wide ones it is at least one

    def is_overcommitted(self) -> bool:
        """Whether more is assigned here than can run now."""
        return self.busy_cpus > self.cpus or any(busy > self.extras[name] for name, busy in self.extras_busy.items())

    def kinds(self) -> Iterator[Kind]:
        """Of the tasks assigned here, light ones aside."""
        return (kind for load in self.loads.values() for kind in load if kind.cpus)

    @property
    def open(self) -> bool:
        """Whether it may take some task at all."""
        return not self.shut and (
            self.busy_cpus < self.cpus
            or self.backlog_us < WORKER_WINDOW_US * self.cpus
            or (self.n_light < LIGHT_WINDOW_TASKS and self.light_us < WORKER_WINDOW_US)
            or self.n_light < LIGHT_PROGRAMS
        )

    @property
    def idle(self) -> bool:
        """Whether some core has nothing to do, as far as the server knows."""
        return not self.shut and self.busy_cpus < self.cpus
