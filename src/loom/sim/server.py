"""The simulated server process: performs what the real ServerCore decides."""

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
    Send,
    ServerEvent,
    Shutdown,
)
from loom.core.server import ServerCore
from loom.messages import Message
from loom.sim.clock import Timer
from loom.sim.network import End

if TYPE_CHECKING:
    from loom.sim.world import World


class SimServer:
    def __init__(self, world: World) -> None:
        self.world = world
        self.core = ServerCore(1, crash_limit=world.crash_limit, lineage_bytes=world.lineage_bytes)
        self.core.relays.window = 1  # objects come in three pieces: each but the last is waited for
        self.stopped = False
        self._ends: dict[int, End] = {}
        self._numbers: dict[End, int] = {}
        self._n_links = 0
        self._events: list[ServerEvent] = []
        self._turn_due = False
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        return "server"

    # -- Links --------------------------------------------------------------------------------------------------------

    def on_link(self, end: End, role: str) -> None:
        self._n_links += 1
        self._ends[self._n_links] = end
        self._numbers[end] = self._n_links
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
        self._add(LinkDown(number))

    def on_full(self, end: End) -> None:
        self._add(LinkFull(self._numbers[end]))

    def on_drained(self, end: End) -> None:
        self._add(LinkDrained(self._numbers[end]))

    # -- The turn -----------------------------------------------------------------------------------------------------

    def _add(self, event: ServerEvent) -> None:
        self._events.append(event)
        if not self._turn_due:
            self._turn_due = True
            self.world.clock.after(self.world.turn_delay_s(), self._turn)

    def _turn(self) -> None:
        """Handle a bounded part of what has come."""
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
                case Send():
                    if effect.link in self._ends:
                        self._ends[effect.link].send(effect.messages)
                case CloseLink():
                    self.world.ledger.on_close_link(effect.reason)
                    if effect.link in self._ends:
                        self._ends[effect.link].close()
                case Shutdown():
                    self.stopped = True
        self._set_timer()

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
