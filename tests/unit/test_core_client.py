"""The client's brain: commands that arrive once, results, and fetching with retries."""

from __future__ import annotations

from typing import TypeVar

import pytest
from core_builders import Row, chunk_of, listed

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
    LinkAway,
    LinkBack,
    Opened,
    Ready,
    RelayPiece,
    ReleaseResults,
    SessionsCame,
    Stalled,
    StartTrace,
    StatsCame,
    Submit,
    Tick,
    ToServer,
    Undeliverable,
)
from loom.limits import RECONNECT_PAUSE_MAX_S
from loom.messages import (
    Acked,
    CancelResults,
    CloseSession,
    FailedResult,
    GetStats,
    JournalStalled,
    LeaveSession,
    ListSessions,
    LocateResult,
    Message,
    OpenSession,
    PeerAddress,
    ReadyResult,
    RelayedObject,
    RelayFetch,
    Release,
    ResultsFailed,
    ResultsReady,
    ResumeSession,
    SessionInfo,
    SessionOpened,
    SessionRefused,
    Sessions,
    SetTrace,
    Stats,
    StopWorker,
    SubmitChunk,
    Terminate,
)

E = TypeVar("E")
M = TypeVar("M", bound=Message)

CREDIT = 1000
PATIENCE_S = 5
PEER = PeerAddress(7, "w7", "h", 7, "")
OTHER_PEER = PeerAddress(8, "w8", "h", 8, "")


class Bench:
    """A client core; every step is checked, and its effects are kept until asked for."""

    def __init__(self, name: str = "") -> None:
        self.core = ClientCore(b"secret", CREDIT, name, "me" if name else "")
        self.now = 10.0
        self.effects: list[ClientEffect] = []

    def step(self, *events: ClientEvent, after_s: float = 0.0) -> Bench:
        self.now += after_s
        self.effects = self.core.step(list(events), self.now)
        check_client(self.core)
        return self

    def hear(self, *messages: Message) -> Bench:
        return self.step(FromServer(list(messages)))

    def reconnect(self) -> Bench:
        self.step(Disconnected("broken"))
        self.step(Connected())
        return self

    def all(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def one(self, kind: type[E]) -> E:
        (effect,) = self.all(kind)
        return effect

    def said(self) -> list[Message]:
        return [message for effect in self.all(ToServer) for message in effect.messages]

    def told(self, kind: type[M]) -> M:
        (message,) = [m for m in self.said() if isinstance(m, kind)]
        return message


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.step(Connected())
    bench.hear(opened())
    return bench


@pytest.fixture
def named() -> Bench:
    """Of a session in which 40 commands were applied before."""
    bench = Bench("night")
    bench.step(Connected())
    bench.hear(opened(40, 100, [(7, "model")]))
    return bench


def opened(applied_seq: int = 0, next_number: int = 0, names: list[tuple[int, str]] | None = None) -> SessionOpened:
    return SessionOpened(5, 1, PATIENCE_S, applied_seq, next_number, names or [], b"ticket")


def ready(number: int, packed: bytes | None = None, peer: PeerAddress = PEER) -> ResultsReady:
    return ResultsReady([ReadyResult(number, 10, peer.worker, packed)], [peer])


# -- Commands ---------------------------------------------------------------------------------------------------------


def test_a_session_is_opened_and_early_commands_follow() -> None:
    bench = Bench()
    assert bench.step(Connected(), Submit(chunk_of([Row()]))).said() == [OpenSession(b"secret", CREDIT, "", "", False)]
    bench.hear(opened())
    assert bench.one(Opened).session == 5
    assert bench.told(SubmitChunk).seq == 1


def test_what_is_not_acknowledged_is_said_again_after_a_reconnect(bench: Bench) -> None:
    bench.step(Submit(chunk_of([Row()])))
    bench.step(Submit(chunk_of([Row()], first=1)))
    bench.hear(Acked(1))
    bench.step(Disconnected("broken"))
    assert bench.step(ReleaseResults([0])).said() == []
    assert bench.step(Connected()).said() == [ResumeSession(5, b"secret", CREDIT, 1)]
    assert bench.step(Submit(chunk_of([Row()], first=2))).said() == []  # nothing before the session is open again
    bench.hear(opened())
    assert [m.seq for m in bench.said()] == [2, 3, 4]  # type: ignore[attr-defined]
    bench.hear(Acked(4))
    assert not bench.core.unacked


def test_a_trace_goes_on_at_a_server_that_was_started_again(bench: Bench) -> None:
    bench.step(StartTrace(b"/there"))
    bench.hear(Acked(1))
    for incarnation, again in ((1, []), (2, [SetTrace(2, b"/there")])):
        bench.step(Disconnected("broken"))
        bench.step(Connected())
        bench.hear(SessionOpened(5, incarnation, PATIENCE_S, 0, 0, [], b"ticket"))
        assert bench.said() == again


def test_credit_is_granted_again_with_a_release_and_counted_once(bench: Bench) -> None:
    bench.hear(ready(0, b"x" * 100), ready(1, b"y" * 200))
    assert bench.step(ReleaseResults([0])).told(Release).credit_bytes == 100
    bench.step(Disconnected("broken"))
    bench.step(ReleaseResults([1]))
    assert bench.step(Connected()).told(ResumeSession).credit_bytes == CREDIT
    bench.hear(opened())
    assert [m.credit_bytes for m in bench.said() if isinstance(m, Release)] == [0, 0]


def test_news_that_cross_a_release_are_not_news(bench: Bench) -> None:
    bench.step(ReleaseResults([0, 1]))
    bench.hear(ready(0, b"x" * 100), ResultsFailed([FailedResult(1, 1, "w", "broken")]))
    assert [effect.results for effect in bench.all(Ready)] == [[]]
    assert [effect.results for effect in bench.all(FailedFutures)] == [[]]
    assert bench.told(Release).credit_bytes == 100
    assert not bench.core.inlined
    bench.hear(Acked(2))
    assert not bench.core.void


def test_a_cancelled_result_has_failed_at_once(bench: Bench) -> None:
    bench.step(CancelFutures([2, 0]))
    assert bench.one(FailedFutures).results == [FailedResult(n, n, "", "cancelled") for n in (2, 0)]
    assert listed(bench.told(CancelResults).numbers) == [2, 0]
    assert not [m for m in bench.said() if isinstance(m, Release)]


def test_news_that_cross_a_cancel_are_not_news(bench: Bench) -> None:
    bench.step(CancelFutures([0, 1, 2]))
    bench.hear(ready(0, b"x" * 100), ready(1), ResultsFailed([FailedResult(2, 2, "w", "broken")]), ready(3))
    assert [[r.number for r in effect.results] for effect in bench.all(Ready)] == [[], [], [3]]
    assert [effect.results for effect in bench.all(FailedFutures)] == [[]]
    assert (bench.told(Release).numbers, bench.told(Release).credit_bytes) == (b"", 100)
    bench.hear(Acked(2))
    assert not bench.core.void
    assert bench.step(FetchResults([1])).one(Undeliverable).number == 1


def test_a_result_that_came_unseen_before_its_cancel_is_void_too(bench: Bench) -> None:
    """The shell cancels what it has not been told of."""
    bench.hear(ready(0, b"x" * 100), ready(1), ready(2))
    bench.step(FetchResults([1]))
    bench.step(CancelFutures([0, 1, 2]))
    assert bench.told(Release).credit_bytes == 100
    assert bench.one(Undeliverable) == Undeliverable(1, "cancelled")
    assert bench.core.inlined == bench.core.holders == bench.core.fetching == {}
    assert bench.step(ReleaseResults([0])).told(Release).credit_bytes == 0


def test_a_cancel_is_said_again_after_a_reconnect(bench: Bench) -> None:
    bench.step(CancelFutures([0]))
    bench.reconnect()
    assert bench.hear(opened()).told(CancelResults).seq == 1
    bench.hear(ready(0), Acked(1))
    assert [effect.results for effect in bench.all(Ready)] == [[]]
    bench.reconnect()
    assert bench.hear(opened()).said() == []


def test_a_release_outlives_the_acknowledgement_of_a_cancel(bench: Bench) -> None:
    bench.step(CancelFutures([0]), ReleaseResults([0]))
    bench.hear(Acked(1), ready(0, b"x" * 100))
    assert bench.one(Ready).results == []
    bench.hear(Acked(2))
    assert not bench.core.void


def test_statistics_are_answered_once_even_if_said_twice(bench: Bench) -> None:
    bench.step(AskStats())
    bench.reconnect()
    assert bench.hear(opened()).told(GetStats).seq == 1
    assert bench.hear(Stats(1, {"n": 1})).one(StatsCame).values == {"n": 1}
    assert bench.hear(Stats(1, {"n": 2})).effects == []


def test_an_answer_lost_with_its_link_is_asked_for_again(bench: Bench) -> None:
    bench.step(AskStats())
    bench.reconnect()
    bench.hear(opened(), Acked(1))  # the server knew the question; its answer gets lost once more
    bench.reconnect()
    assert bench.hear(opened()).told(GetStats).seq == 2
    assert bench.hear(Stats(2, {"n": 2})).one(StatsCame).values == {"n": 2}


# -- The link ---------------------------------------------------------------------------------------------------------


def test_no_session_without_a_first_connection() -> None:
    bench = Bench()
    assert bench.step(Disconnected("nobody listens")).one(Closed).reason == "nobody listens"


def test_reconnecting_backs_off_and_ends(bench: Bench) -> None:
    pauses = []
    while not bench.step(Disconnected("refused")).all(Closed):
        pauses.append(bench.one(Connect).delay_s)
        bench.now += pauses[-1]
    assert pauses[:3] == [0.1, 0.2, 0.4]
    assert max(pauses) <= RECONNECT_PAUSE_MAX_S
    assert sum(pauses) > PATIENCE_S
    assert "did not come back within 5 s: refused" in bench.one(Closed).reason
    assert bench.step(Submit(chunk_of([Row()]))).effects == []


def test_a_refused_session_is_over(bench: Bench) -> None:
    assert bench.hear(SessionRefused("it is over")).one(Closed).reason == "it is over"


@pytest.mark.parametrize(("terminate", "message"), [(False, CloseSession(1)), (True, Terminate(1))])
def test_closing_ends_when_it_is_acknowledged(bench: Bench, terminate: bool, message: Message) -> None:
    assert bench.step(Close(terminate)).said() == [message]
    assert bench.hear(Acked(1)).one(Closed).reason == ""


def test_closing_without_a_link_ends_at_once(bench: Bench) -> None:
    bench.step(Disconnected("broken"))
    assert bench.step(Close(False)).one(Closed).reason == ""


def test_time_alone_changes_nothing(bench: Bench) -> None:
    assert bench.step(Tick(), after_s=100).effects == []


def test_the_server_says_how_long_to_try(bench: Bench) -> None:
    bench.reconnect().hear(SessionOpened(5, 1, 3600, 0, 0, [], b"ticket"))
    for _ in range(1000):
        bench.step(Disconnected("refused"), after_s=3.5)
        assert bench.one(Connect)
    assert "within 3600 s: refused" in bench.step(Disconnected("refused"), after_s=104).one(Closed).reason


def test_an_absence_of_more_than_a_moment_is_told_once_and_its_end_too(bench: Bench) -> None:
    assert not bench.step(Disconnected("broken")).all(LinkAway)
    assert not bench.step(Tick(), after_s=0.5).all(LinkAway)
    assert bench.step(Tick(), after_s=0.5).one(LinkAway) == LinkAway("broken", PATIENCE_S)
    assert not bench.step(Disconnected("refused"), after_s=0.5).all(LinkAway)
    assert not bench.step(Connected()).all(LinkBack)
    assert bench.hear(opened()).one(LinkBack) == LinkBack(1.5)
    bench.step(Disconnected("broken again"), after_s=1)
    bench.step(Connected())
    assert not bench.hear(opened()).all(LinkBack)
    assert bench.step(Tick(), after_s=2).effects == []


def test_a_server_says_what_was_acknowledged_before(bench: Bench) -> None:
    bench.step(ReleaseResults([0]), ReleaseResults([1]), ReleaseResults([2]))
    bench.hear(Acked(2))
    bench.step(Disconnected("broken"))
    assert bench.step(Connected()).told(ResumeSession).acked_seq == 2
    bench.hear(opened(), Acked(3))
    bench.step(Disconnected("broken"))
    assert bench.step(Connected()).told(ResumeSession).acked_seq == 3


def test_a_journal_that_cannot_be_written_is_told_once(bench: Bench) -> None:
    assert bench.hear(JournalStalled("No space")).one(Stalled) == Stalled("No space")
    assert bench.hear(JournalStalled("still no space")).effects == []
    assert bench.hear(JournalStalled("")).one(Stalled) == Stalled("")
    assert bench.hear(JournalStalled("")).effects == []
    bench.hear(JournalStalled("No space"))
    bench.reconnect()
    assert bench.hear(opened()).one(Stalled) == Stalled("")


# -- Named sessions ---------------------------------------------------------------------------------------------------


def test_a_named_session_says_who_opens_it() -> None:
    core = ClientCore(b"secret", CREDIT, "night", "me", take_over=True)
    assert core.step([Connected()], 0.0) == [ToServer([OpenSession(b"secret", CREDIT, "night", "me", True)])]


def test_commands_go_on_where_the_session_is(named: Bench) -> None:
    assert named.one(Opened) == Opened(5, 100, [(7, "model")], b"ticket")
    submit = named.step(Submit(chunk_of([Row(result=True)], first=100), [(100, "x")])).told(SubmitChunk)
    assert (submit.seq, submit.names) == (41, [(100, "x")])
    named.step(Disconnected("broken"))
    assert named.step(Connected()).told(ResumeSession).acked_seq == 40


def test_commands_from_before_the_session_was_open_follow_those_that_were_applied() -> None:
    bench = Bench("night")
    bench.step(Connected(), ReleaseResults([7]), AskStats(), AskSessions(1))
    bench.step(Leave())
    bench.hear(opened(40, 100, [(7, "model")]))
    assert [m.seq for m in bench.said()] == [41, 42, 43, 44]  # type: ignore[attr-defined]
    assert bench.hear(ready(7, b"x")).one(Ready).results == []
    assert bench.hear(Stats(42, {"n": 1}), Acked(43)).one(StatsCame)
    assert not bench.core.void
    assert bench.hear(Acked(44)).one(Closed).reason == ""


def test_leaving_is_over_when_it_is_acknowledged(named: Bench) -> None:
    said = named.step(ReleaseResults([7]), Leave()).said()
    assert [type(m) for m in said] == [Release, LeaveSession]
    assert not named.hear(Acked(41)).all(Closed)
    assert named.hear(Acked(42)).one(Closed).reason == ""


@pytest.mark.parametrize(("event", "message"), [(Leave(), LeaveSession(41)), (Close(False), CloseSession(41))])
def test_the_end_of_a_named_session_survives_a_lost_link(named: Bench, event: ClientEvent, message: Message) -> None:
    named.step(Disconnected("broken"))
    assert not named.step(event).all(Closed)
    assert named.step(Disconnected("refused")).one(Connect)
    named.step(Connected())
    assert named.hear(opened()).said() == [message]
    assert named.step(Disconnected("broken")).one(Connect)
    named.step(Connected())
    assert named.hear(opened(), Acked(41)).one(Closed).reason == ""


def test_a_named_session_whose_end_was_not_heard_is_over(named: Bench) -> None:
    named.step(Close(False))
    named.reconnect()
    assert named.hear(SessionRefused("it is over")).one(Closed).reason == ""


def test_a_session_that_another_client_has_taken_over_is_over(named: Bench) -> None:
    named.step(Leave())
    named.reconnect()
    assert named.hear(SessionRefused("taken over by x")).one(Closed).reason == "taken over by x"


def test_a_server_that_is_to_end_is_not_waited_for(named: Bench) -> None:
    named.step(Close(True))
    assert named.step(Disconnected("gone")).one(Closed).reason == ""


def test_sessions_are_listed_and_ended(bench: Bench) -> None:
    night = SessionInfo(5, "night", "me", 3, 1, ["model"])
    assert bench.step(AskSessions(1), AskSessions(2, "day")).said() == [ListSessions(1, ""), ListSessions(2, "day")]
    bench.hear(Sessions(2, [night], False), Sessions(1, [night], False))
    assert bench.all(SessionsCame) == [SessionsCame(2, [night], False), SessionsCame(1, [night], True)]
    assert bench.hear(Sessions(1, [], False)).effects == []


def test_a_session_is_ended_once_even_if_the_answer_was_lost(bench: Bench) -> None:
    bench.step(AskSessions(1, "day"))
    bench.reconnect()
    assert bench.hear(opened()).said() == [ListSessions(1, "day")]  # not acknowledged: it may not have arrived
    bench.hear(Acked(1))
    bench.reconnect()
    assert bench.hear(opened()).said() == [ListSessions(2, "")]  # it has: only the answer is missing
    assert bench.hear(Sessions(2, [], False)).one(SessionsCame) == SessionsCame(1, [], True)


# -- Results ----------------------------------------------------------------------------------------------------------


def test_a_result_is_fetched_from_its_holder(bench: Bench) -> None:
    assert bench.hear(ready(0)).one(Ready).results[0].number == 0
    assert bench.step(FetchResults([0])).one(Fetch) == Fetch(PEER, [0])
    assert bench.step(FetchResults([0])).effects == []  # under way
    bench.step(FetchedDirectly(0))
    assert not bench.core.fetching


def test_what_is_not_there_cannot_be_fetched(bench: Bench) -> None:
    assert bench.step(FetchResults([3])).one(Undeliverable).number == 3


def test_a_result_that_its_holder_lost_is_found_again(bench: Bench) -> None:
    bench.hear(ready(0))
    bench.step(FetchResults([0]))
    assert bench.step(FetchFailed(0, "gone")).told(LocateResult).number == 0
    assert bench.hear(ready(0, peer=OTHER_PEER)).one(Fetch) == Fetch(OTHER_PEER, [0])


def test_a_result_that_cannot_be_reached_is_relayed(bench: Bench) -> None:
    bench.hear(ready(0))
    bench.step(FetchResults([0]))
    for _ in range(2):
        bench.step(FetchFailed(0, "unreachable"))
        bench.hear(ready(0))
    assert bench.told(RelayFetch).number == 0
    assert bench.hear(RelayedObject(0, b"h", b"1", False, "")).one(RelayPiece) == RelayPiece(0, b"h", b"1", False, True)
    bench.hear(RelayedObject(0, b"", b"", True, "a worker was lost"))
    assert not bench.all(RelayPiece)
    assert bench.told(LocateResult)
    assert bench.hear(ready(0)).told(RelayFetch)
    bench.hear(RelayedObject(0, b"h", b"12", True, ""))
    assert bench.one(RelayPiece) == RelayPiece(0, b"h", b"12", True, True)  # begins anew
    assert bench.hear(RelayedObject(0, b"", b"", True, "")).effects == []


def test_a_relay_that_never_works_ends(bench: Bench) -> None:
    bench.hear(ready(0))
    bench.step(FetchResults([0]))
    for _ in range(1000):
        bench.step(FetchFailed(0, "unreachable"))
        if bench.all(Undeliverable):
            break
        bench.hear(ready(0))
    assert bench.one(Undeliverable) == Undeliverable(0, "unreachable")


def test_a_relay_begins_anew_after_a_reconnect(bench: Bench) -> None:
    test_a_result_that_cannot_be_reached_is_relayed(bench)
    bench.hear(ready(1))
    bench.step(FetchResults([1]))
    for _ in range(2):
        bench.step(FetchFailed(1, "unreachable"))
        bench.hear(ready(1))
    bench.hear(RelayedObject(1, b"", b"1", False, ""))
    bench.reconnect()
    located = [m.number for m in bench.hear(opened()).said() if isinstance(m, LocateResult)]
    assert located[-1] == 1
    bench.hear(ready(1))
    assert bench.hear(RelayedObject(1, b"", b"12", True, "")).one(RelayPiece).first


def test_a_result_that_comes_inline_while_it_is_fetched_is_delivered(bench: Bench) -> None:
    bench.hear(ready(0))
    bench.step(FetchResults([0]))
    bench.step(FetchFailed(0, "gone"))
    assert bench.hear(ready(0, b"packed")).one(RelayPiece) == RelayPiece(0, b"", b"packed", True, True)
    assert not bench.core.fetching


def test_a_fetch_is_answered_when_the_result_fails_or_is_released(bench: Bench) -> None:
    bench.hear(ready(0), ready(1))
    bench.step(FetchResults([0, 1]))
    bench.hear(ResultsFailed([FailedResult(0, 0, "w", "it broke")]))
    assert bench.one(Undeliverable) == Undeliverable(0, "it broke")
    assert bench.step(ReleaseResults([1])).one(Undeliverable).number == 1
    assert bench.step(FetchFailed(1, "late")).effects == []


def test_a_result_that_is_here_stays_good(bench: Bench) -> None:
    bench.hear(ready(0, b"packed"))
    bench.hear(ResultsFailed([FailedResult(0, 0, "w", "made again, and it broke")]))
    assert bench.one(FailedFutures).results == []
    bench.hear(ready(0))
    assert 0 not in bench.core.holders


def test_a_result_that_is_here_and_is_told_again_is_no_news(bench: Bench) -> None:
    """The server does not know after a reconnect what has arrived."""
    bench.hear(ready(0, b"packed"))
    bench.reconnect()
    bench.hear(opened(), ready(0), ready(1))
    assert [r.number for effect in bench.all(Ready) for r in effect.results] == [1]


def test_releases_name_their_results(bench: Bench) -> None:
    assert listed(bench.step(ReleaseResults([3, 1])).told(Release).numbers) == [3, 1]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (StopWorker(), "StopWorker"),
        (ResultsReady([ReadyResult(0, 1, 99, None)], []), "without its address"),
        (ResultsReady([], [PeerAddress(9, "w9", "h", 70_000, "")]), "port 70000"),
        (Acked(77), "never said"),
        (SessionOpened(5, 1, 5, 0, 0, [], b"ticket"), "opened"),
    ],
)
def test_a_server_that_breaks_the_protocol(bench: Bench, message: Message, reason: str) -> None:
    bench.hear(message, Acked(0))
    assert reason in bench.one(Closed).reason
    assert bench.core.closed


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (ResultsReady([], []), "before the session was open"),
        (SessionOpened(6, 1, 5, 0, 0, [], b"ticket"), "session 6"),
        (SessionOpened(1 << 24, 1, 5, 0, 0, [], b"ticket"), "session"),
    ],
)
def test_a_server_that_takes_one_session_for_another(bench: Bench, message: Message, reason: str) -> None:
    bench.reconnect().hear(message)
    assert reason in bench.one(Closed).reason


def test_a_server_that_opens_what_cannot_be() -> None:
    for opened in (
        SessionOpened(1 << 24, 1, 5, 0, 0, [], b"ticket"),
        SessionOpened(5, 1, 5, 0, 1 << 40, [], b"ticket"),
        SessionOpened(5, 1, 5, 0, 3, [(3, "x")], b"ticket"),
    ):
        bench = Bench("night")
        bench.step(Connected())
        assert bench.hear(opened).one(Closed)
        assert not bench.all(Opened)
