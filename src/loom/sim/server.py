"""The simulated server process: performs what the real ServerCore decides.

Where it has a journal it may be killed and started again. What it says to clients waits then for what it has given to
the journal before; what it says to workers does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loom.core.check import check_server
from loom.core.events import (
    CloseLink,
    LinkDown,
    LinkDrained,
    LinkFull,
    LinkUp,
    Received,
    Record,
    Send,
    ServerEvent,
    Shutdown,
)
from loom.core.past import Past
from loom.core.server import ServerCore
from loom.messages import Message, RetireWorkers
from loom.sim.clock import Timer
from loom.sim.journal import SimJournal
from loom.sim.network import End

if TYPE_CHECKING:
    from loom.sim.world import World


_SERVER = 4711  # what the journal is called


class SimServer:
    """`journal_s`: how long a commit takes at most; None: there is no journal."""

    def __init__(self, world: World, journal_s: float | None) -> None:
        self.world = world
        self.stopped = False
        self.alive = True
        self.incarnation = 1
        self.journal: SimJournal | None = None
        if journal_s is not None:
            self.journal = SimJournal(world.clock, world.rng, journal_s, self._on_durable)
        self.core = self._new_core(Past() if self.journal is not None else None)
        self._ends: dict[int, End] = {}
        self._numbers: dict[End, int] = {}
        self._clients: set[int] = set()  # links
        self._held: list[tuple[int, Send | CloseLink]] = []  # for clients, until so many records are on disk
        self._n_links = 0
        self._events: list[ServerEvent] = []
        self._turn_due = False
        self._timer: Timer | None = None

    def _new_core(self, past: Past | None) -> ServerCore:
        world = self.world
        core = ServerCore(self.incarnation, 30.0, world.crash_limit, world.lineage_bytes, _SERVER, past)
        core.relays.window = 1  # objects come in three pieces: each but the last is waited for
        return core

    def kill(self) -> None:
        """The process dies. What it has sent may arrive or not."""
        assert self.journal is not None
        self.alive = False
        self.journal.crash()
        for end in list(self._numbers):
            end.abandon()
            end.link.break_off()
        self._ends.clear()
        self._numbers.clear()
        self._clients.clear()
        self._held.clear()
        self._events.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def restart(self) -> None:
        assert self.journal is not None
        self.alive = True
        self.incarnation += 1
        self.core = self._new_core(self.journal.read())
        self.world.ledger.watch(self.core, self.journal.accepted())
        self._turn()

    def __repr__(self) -> str:
        return "server"

    # -- Links --------------------------------------------------------------------------------------------------------

    def on_link(self, end: End, role: str) -> None:
        self._n_links += 1
        self._ends[self._n_links] = end
        self._numbers[end] = self._n_links
        if role == "client":
            self._clients.add(self._n_links)
        self._add(LinkUp(self._n_links, role))

    def on_messages(self, end: End, messages: list[Message]) -> None:
        number = self._numbers[end]
        if self.world.chances.split_frames:
            for message in messages:
                self._add(Received(number, [message]))
        else:
            self._add(Received(number, messages))

    def on_broken(self, end: End) -> None:
        number = self._numbers.pop(end)
        del self._ends[number]
        self._clients.discard(number)
        self._add(LinkDown(number))

    def on_full(self, end: End) -> None:
        self._add(LinkFull(self._numbers[end]))

    def on_drained(self, end: End) -> None:
        self._add(LinkDrained(self._numbers[end]))

    def retire(self, name: str) -> None:
        """Somebody who looks after workers asks for it, on a link of his own."""
        self._n_links += 1
        link = self._n_links
        self._add(LinkUp(link, "client"))
        self._add(Received(link, [RetireWorkers(1, [name])]))
        self._add(LinkDown(link))

    # -- The turn -----------------------------------------------------------------------------------------------------

    def _add(self, event: ServerEvent) -> None:
        self._events.append(event)
        if not self._turn_due:
            self._turn_due = True
            self.world.clock.after(self.world.turn_delay_s(), self._turn)

    def _turn(self) -> None:
        """Handle a bounded part of what has come."""
        if not self.alive:
            self._turn_due = False
            return
        count = self.world.rng.randint(1, 4) if self.world.chances.split_frames else len(self._events)
        events, self._events = self._events[:count], self._events[count:]
        self._turn_due = bool(self._events)
        if self._turn_due:
            self.world.clock.after(0.0, self._turn)
        self.world.trace(self, events)
        effects = self.core.step(events, self.world.clock.now)
        self.world.trace(self, effects)
        check_server(self.core, self.world.complete_sessions())
        for effect in effects:
            match effect:
                case Record():
                    assert self.journal is not None
                    self.journal.append(effect.facts)
                case CloseLink() | Send():
                    self._say(effect)
                case Shutdown():
                    self.stopped = True
        self._set_timer()

    def _say(self, effect: Send | CloseLink) -> None:
        waits = self.journal is not None and self.journal.n_given > self.journal.n_durable
        if self.journal is not None and effect.link in self._clients and (waits or self._held):
            self._held.append((self.journal.n_given, effect))
        else:
            self._perform(effect)

    def _on_durable(self) -> None:
        journal = self.journal
        assert journal is not None
        while self._held and self._held[0][0] <= journal.n_durable:
            self._perform(self._held.pop(0)[1])

    def _perform(self, effect: Send | CloseLink) -> None:
        end = self._ends.get(effect.link)
        if isinstance(effect, Send):
            if end is not None:
                end.send(effect.messages)
        else:
            self.world.ledger.on_close_link(effect.reason)
            if end is not None:
                end.close()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.core.next_deadline()
        if deadline is not None:
            self._timer = self.world.clock.at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        if not self._turn_due:
            self._turn()
