"""A simulated client: performs what the real ClientCore decides, and lives the life of a user's script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from loom.core.check import check_client
from loom.core.client import ClientCore
from loom.core.client_events import (
    AskSessions,
    AskStats,
    CancelFutures,
    ClientEffect,
    ClientEvent,
    Close,
    Closed,
    Connect,
    Connected,
    Disconnected,
    FailedFutures,
    Fetch,
    FetchedDirectly,
    FetchFailed,
    FetchResults,
    FromServer,
    Leave,
    Opened,
    Ready,
    RelayPiece,
    ReleaseResults,
    SessionsCame,
    StatsCame,
    Submit,
    ToServer,
    Undeliverable,
)
from loom.ids import SERVER_MADE, number_of, session_of, task_id
from loom.limits import CLIENT_CREDIT_BYTES, LINEAGE_BYTES, SESSION_GRACE_S
from loom.messages import CANCELLED_TEXT, FailedResult, Message, ReadyResult
from loom.sim.network import End
from loom.sim.plans import Reckoning, cut_chunk
from loom.sim.tasks import NO_ELEMENTS, UNKNOWN, SimObject, unpack
from loom.sim.workloads import WORKLOADS
from loom.tasktypes.plan import Reference
from loom.tasktypes.task import is_dynamic

if TYPE_CHECKING:
    from loom.sim.world import World

_LOOK_S: Final = 0.02  # how often a script looks whether it can go on
_SLOWLY: Final = 50  # tasks that may be submitted one by one, with pauses
_MOST_SUCCESSORS: Final = 100  # clients are numbered

_SETTLE_S: Final = 80.0  # virtual: the largest object on the slowest link takes 20 s

Wish = float | Callable[[], bool]  # what a script waits for: some time, or a condition


class SimFuture(Reference):
    __slots__ = ("__weakref__", "error", "inlined", "is_dynamic", "n_parts", "ready", "task_id", "value")

    def __init__(self, number: int, is_dynamic: bool, n_parts: int) -> None:
        self.task_id = number
        self.is_dynamic = is_dynamic
        self.n_parts = n_parts  # at most: what it, or a copied consumer of such, is expanded to
        self.ready = False
        self.inlined = False
        self.value: SimObject | None = None
        self.error = ""

    @property
    def over(self) -> bool:
        return self.ready or bool(self.error)


class SimClient:
    """With a `name` its session outlives it: another client takes it up, which knows what `before` has submitted."""

    def __init__(self, world: World, number: int, name: str = "", before: SimClient | None = None) -> None:
        self.world = world
        self.number = number
        self.name = name
        self.before = before
        credit_bytes = world.rng.choice((0, 50, CLIENT_CREDIT_BYTES))
        self.core = ClientCore(b"token %d" % number, credit_bytes, name, repr(self), take_over=True)
        self.reckoning = Reckoning()
        self.names: dict[str, int] = {}  # of futures that are not released
        self.futures: dict[int, SimFuture] = {}  # live ones
        self.session: int | None = None
        self.end: End | None = None
        self.over = False
        self.may_lose_session = False
        self.succeeded = False  # another client takes its session up, or will
        self.is_last = True  # nobody has taken it up yet
        self._reaches_workers = world.rng.random() < 0.7
        self._broken_at = -1e9
        self.ever_named: dict[str, int] = {}
        self.known: dict[int, SimFuture] = {}  # all futures that had a name
        self._said_until = 0  # number of the last task that was submitted
        self._closing = False
        self._ending = False  # and the session with it
        self._fetching: set[int] = set()
        self._pieces: dict[int, bytes] = {}
        self._stats_asked = 0
        self._events: list[ClientEvent] = []
        self._turn_due = False
        self._script = self._live()
        self._wish: Wish = 0.0
        self._connect()
        self._look()

    def __repr__(self) -> str:
        return f"client {self.number}"

    # -- The link -----------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self.over:
            return
        if self.session is None and not self.world.server.alive:  # whoever begins is told so, and tries again
            self.world.clock.after(self.world.rng.random(), self._connect)
        elif self.world.refuses(self):
            self._add(Disconnected("refused"))
        else:
            self.end = self.world.connect("client", self)
            self._add(Connected())

    def on_messages(self, end: End, messages: list[Message]) -> None:
        self._add(FromServer(messages))

    def on_broken(self, end: End) -> None:
        self.end = None
        self._add(Disconnected("the link broke"))

    def on_full(self, end: End) -> None:
        """Plans are in memory already."""

    def on_drained(self, end: End) -> None:
        """See on_full."""

    def break_link(self) -> None:
        """Once; several times in a row, or before the session is there, may cost the session."""
        now = self.world.clock.now
        self.may_lose_session |= self.session is None or now - self._broken_at < 2 * SESSION_GRACE_S
        self._broken_at = now
        if self.end is not None:
            self.end.link.break_off()

    def end_session_of(self, other: SimClient) -> None:
        """Of that client, or of whoever has the name when it comes to that."""
        self.world.may_be_ended.add(other.name)
        self._stats_asked += 1
        self._add(AskSessions(0, other.name))

    def vanish(self) -> None:
        """The process is killed."""
        self.over = True
        if self.end is not None:
            self.end.abandon()
            self.end.link.break_off()
        if self.name:
            self.world.continue_session(self)

    # -- The turn -----------------------------------------------------------------------------------------------------

    def _add(self, event: ClientEvent) -> None:
        self._events.append(event)
        if not self._turn_due:
            self._turn_due = True
            self.world.clock.after(self.world.turn_delay_s(), self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self.over:
            return
        events, self._events = self._events, []
        self.world.trace(self, events)
        effects = self.core.step(events, self.world.clock.now)
        self.world.trace(self, effects)
        check_client(self.core)
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: ClientEffect) -> None:
        match effect:
            case ToServer():
                if self.end is not None:
                    self.end.send(effect.messages)
            case Ready():
                for result in effect.results:
                    self._on_ready(result)
            case FailedFutures():
                for failed in effect.results:
                    self._on_failed(failed)
            case Fetch():
                for number in effect.numbers:
                    self._fetch(effect, number)
            case RelayPiece():
                before = b"" if effect.first else self._pieces.pop(effect.number)
                self._pieces[effect.number] = before + effect.piece
                if effect.last:
                    self._delivered(effect.number, unpack(self._pieces.pop(effect.number)))
            case Undeliverable():
                self._on_undeliverable(effect)
            case StatsCame() | SessionsCame():
                self._stats_asked -= 1
                assert self._stats_asked >= 0, f"{self} was told statistics unasked"
            case Connect():
                self.world.clock.after(effect.delay_s, self._connect)
            case Opened():
                self._on_opened(effect)
            case Closed():
                self._on_closed(effect.reason)

    def _on_opened(self, opened: Opened) -> None:
        """What another client has left in the session under a name is there, unless the session is a new one."""
        self.session = opened.session
        names = {name: number for number, name in opened.names}
        before = self.before
        if before is None or before.session != opened.session:
            assert not opened.next_number, f"{self} was given a used session"
            lost = before is None or before.may_lose_session or before._ending or self.name in self.world.may_be_ended
            assert lost, f"{self} found nothing of {before}"
            return
        before.is_last = False
        said = {name: number for name, number in before.names.items() if number < before._said_until}
        surely = {} if before.core.unacked or before._events else said
        assert surely.items() <= names.items(), f"{self} misses {surely.items() - names.items()}"
        assert names.items() <= before.ever_named.items(), f"{self} has {names}, {before} had {before.ever_named}"
        self.reckoning = before.reckoning.until(opened.next_number)
        self.names = names
        self.ever_named.update(names)
        for name, number in names.items():
            known = before.known[number]
            self.known[number] = self.futures[number] = SimFuture(number, known.is_dynamic, known.n_parts)
            assert number in self.reckoning.expected, f"{self} does not know {name}"

    def _on_closed(self, reason: str) -> None:
        self.over = True
        may_lose_session = self.may_lose_session or self.name in self.world.may_be_ended
        assert self._closing or may_lose_session, f"{self} lost its session: {reason}"
        if self.end is not None:
            self.end.abandon()
            self.end.link.break_off()
        if self.name and (reason or not self._ending):
            self.world.continue_session(self)

    # -- Results ------------------------------------------------------------------------------------------------------

    def _on_ready(self, result: ReadyResult) -> None:
        future = self.futures.get(result.number)
        if future is None or future.error == CANCELLED_TEXT:
            return
        expected = self.reckoning.expected[result.number]
        assert expected.value is not None, f"{self} got result {result.number}, which must fail: {expected.errors}"
        assert not future.error, f"{self} got result {result.number} after it had failed"
        checkpoint = self.reckoning.checkpoints.get(result.number)
        assert checkpoint in (None, *self.world.saved), f"{self} got result {result.number}, which is not saved"
        future.ready = True
        future.inlined = result.packed is not None
        future.value = None  # to be fetched, even if it was here
        if result.packed is not None:
            self._keep(future, unpack(result.packed))

    def _on_failed(self, failed: FailedResult) -> None:
        future = self.futures.get(failed.number)
        if future is None or future.error == CANCELLED_TEXT:
            return
        assert not future.inlined, f"{self} has result {failed.number}, which failed later: {failed.error}"
        assert self._may_fail(failed), f"{self} was told that result {failed.number} failed: {failed}"
        future.ready = False
        future.value = None  # fetched, lost at its worker, and not to be had again
        future.error = failed.error

    def _may_fail(self, failed: FailedResult) -> bool:
        expected = self.reckoning.expected[failed.number]
        error = failed.error.partition("\n(the last of ")[0]
        if self.world.ledger.killed and f"unless it is killed: {error}" in expected.errors:
            return True
        if error in expected.errors or (NO_ELEMENTS in expected.errors and error.startswith(NO_ELEMENTS)):
            return True
        if error.startswith("its object was lost and cannot be made again"):
            return self.world.lineage_bytes < LINEAGE_BYTES and self.reckoning.descends_from(failed.number, failed.task)
        if " workers were lost while they had this task" in error:
            assert self.session is not None
            n_lost = self.world.ledger.n_lost_with.get(task_id(self.session, failed.task), 0)
            return n_lost >= self.world.crash_limit > 0 and self.reckoning.descends_from(failed.number, failed.task)
        if failed.error.startswith("unknown") and UNKNOWN in expected.errors:
            return True
        killed = self.world.ledger.killed.get(error)
        if killed is None or session_of(killed) != self.session:
            return False
        if number_of(killed) != failed.task and number_of(killed) < SERVER_MADE:
            return False
        return self.reckoning.descends_from(failed.number, failed.task)

    def _keep(self, future: SimFuture, value: SimObject) -> None:
        expected = self.reckoning.expected[future.task_id].value
        assert value == expected, f"{self}: result {future.task_id} is {value}, not {expected}"
        future.value = value

    def _fetch(self, fetch: Fetch, number: int) -> None:
        assert self.session is not None

        def came(found: SimObject | None, _unreachable: bool) -> None:
            if self.over:
                return
            if found is None or not self._reaches_workers:
                self._add(FetchFailed(number, "not there"))
            else:
                self._delivered(number, found)
                self._add(FetchedDirectly(number))

        self.world.transfer(fetch.peer, task_id(self.session, number), came)

    def _delivered(self, number: int, value: SimObject) -> None:
        self._fetching.discard(number)
        future = self.futures.get(number)
        if future is not None and not future.error:
            self._keep(future, value)

    def _on_undeliverable(self, effect: Undeliverable) -> None:
        self._fetching.discard(effect.number)
        future = self.futures.get(effect.number)
        lost = future is not None and future.ready and future.value is None
        if lost and effect.number in self.core.holders:  # else its failure, or its holder, is still to be told
            self.world.ledger.on_undeliverable(self, effect)

    # -- The script ---------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Go on in the script as far as possible."""
        if self.over:
            return
        delay_s = _LOOK_S
        while isinstance(self._wish, float) or self._wish():
            try:
                self._wish = next(self._script)
            except StopIteration:
                return
            if isinstance(self._wish, float):
                delay_s = self._wish
                break
        self.world.clock.after(delay_s, self._look)

    def _live(self) -> Iterator[Wish]:
        rng = self.world.rng
        if self.name:
            yield lambda: self.session is not None
        yield rng.random() * 0.2
        yield from self._submit()
        for _ in range(rng.choice((1, 3, 8))):
            yield rng.choice((0.0, 0.001, 0.05, 0.5))
            match rng.choice(("submit", "release", "fetch", "wait", "ask", "cancel")):
                case "submit":
                    yield from self._submit()
                case "release":
                    self._release(rng.sample(sorted(self.futures), rng.randint(0, len(self.futures))))
                case "fetch":
                    self._fetch_some(rng.random())
                case "wait":
                    yield self._all_over
                case "cancel":
                    self._cancel_some(rng.random() ** 2)
                case "ask":
                    self._stats_asked += 1
                    self._add(AskStats())
        if self.name and rng.random() < 0.5 and self.number < _MOST_SUCCESSORS:
            yield rng.random()
            if rng.random() < 0.5:
                self.vanish()
            else:
                self._closing = True
                self._add(Leave())
            return
        if rng.random() < 0.15 and not self.name:
            yield rng.random()
            if rng.random() < 0.5:
                self.vanish()
                return
        else:
            yield from self._see_it_through()
        self._closing = self._ending = True
        self._add(Close(False))

    def _see_it_through(self) -> Iterator[Wish]:
        yield self._all_over
        while any(f.ready and f.value is None for f in self.futures.values()):
            self._fetch_some(1.0)
            yield self._nothing_comes
            yield 0.01
        yield lambda: not self._stats_asked
        if self.world.rng.random() < 0.7:
            self._release(sorted(self.futures))
            yield lambda: not self.core.unacked
            yield _SETTLE_S
            yield self.world.is_settled
            yield _SETTLE_S
            assert self.session is not None
            if self.is_last:
                self.world.ledger.check_session_empty(self.session, self.world.workers)

    def _all_over(self) -> bool:
        return all(future.over for future in self.futures.values())

    def _nothing_comes(self) -> bool:
        return not self._fetching and self._all_over()

    def _submit(self) -> Iterator[Wish]:
        rng = self.world.rng
        maker = self.world.maker
        live = [self.futures[n] for n in sorted(self.futures)]
        given = rng.sample(live, min(len(live), rng.choice((0, 1, 3))))
        tasks = rng.choice(WORKLOADS)(maker, given, self.world.chances.plan_size(rng))
        plan = self.reckoning.encode(tasks)
        for task, number in zip(tasks, plan.numbers, strict=True):
            self.futures[number] = SimFuture(number, is_dynamic(task), maker.n_parts(task))
        names: list[tuple[int, str]] = []
        if self.name:
            named = [n for n in dict.fromkeys(plan.numbers) if rng.random() < 0.6 and not self.futures[n].is_dynamic]
            names = [(number, f"{self.number}/{number}") for number in named]
            self.names.update({name: number for number, name in names})
            self.ever_named.update(self.names)
            self.known.update({number: self.futures[number] for number in named})
        rows = rng.choice((1, 7, 2048))
        pause_s = rng.choice((0.0, 0.0, 0.01, 0.1)) if rows > 1 or plan.count < _SLOWLY else 0.0
        for whole in plan:
            for chunk in cut_chunk(whole, rows):
                own = range(chunk.first, chunk.first + len(chunk.flags))
                self._said_until = own.stop
                self._add(Submit(chunk, [(number, name) for number, name in names if number in own]))
                if pause_s:
                    yield pause_s

    def _cancel_some(self, share: float) -> None:
        unfinished = [n for n, future in sorted(self.futures.items()) if not future.over]
        named = set(self.names.values())  # whether it was in time another client would not know
        numbers = [n for n in unfinished if self.world.rng.random() < share and n not in named]
        if numbers:
            self._add(CancelFutures(numbers))
            for number in numbers:
                self.futures[number].error = CANCELLED_TEXT
                self.reckoning.cancel(number)

    def _release(self, numbers: list[int]) -> None:
        for number in numbers:
            del self.futures[number]
        self.names = {name: number for name, number in self.names.items() if number in self.futures}
        if numbers:
            self._add(ReleaseResults(numbers))

    def _fetch_some(self, share: float) -> None:
        absent = [n for n in sorted(self.futures) if self.futures[n].ready and self.futures[n].value is None]
        numbers = absent[: max(1, round(len(absent) * share))]
        if numbers:
            self._fetching.update(numbers)
            self._add(FetchResults(numbers))
