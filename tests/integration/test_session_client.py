"""What a client of a named session says, and what it makes of the answers; the server is a script."""

import gc
import logging
import weakref
from collections.abc import Callable

import pytest
from scripted_server import ScriptedServer

from clusters import eventually
from loom.client import Client, LoomError, NamedSession, TaskFailed, tasks
from loom.client.client import _open_clients
from loom.errors import ClientClosed, ConnectError, ConnectionLost, InvalidPlan
from loom.limits import MAX_CHUNK_TASKS, MAX_NAME_CHARS
from loom.messages import (
    Acked,
    CloseSession,
    FailedResult,
    LeaveSession,
    ListSessions,
    OpenSession,
    ReadyResult,
    Release,
    ResultsFailed,
    ResultsReady,
    ResumeSession,
    SessionInfo,
    SessionOpened,
    SessionRefused,
    Sessions,
    SubmitChunk,
)

FRESH = SessionOpened(5, 1, 3600, 0, 0, [], b"ticket")
TAKEN_UP = SessionOpened(5, 1, 3600, 40, 100, [(7, "good"), (9, "bad"), (8, "slow")], b"ticket")
TOLD_AGAIN = (
    ResultsReady([ReadyResult(7, 3, 0, b"\x00abc")], []),
    ResultsFailed([FailedResult(9, 9, "w", "it broke")]),
)
BAD_NAMES = ["", "x" * (MAX_NAME_CHARS + 1), "\ud800", 3, b"x"]


def use(server: ScriptedServer, session: str | None = "night", **options: bool) -> Client:
    return Client("127.0.0.1", server.port, session=session, **options)


# -- Opening ----------------------------------------------------------------------------------------------------------


def test_a_named_session_is_asked_for() -> None:
    with ScriptedServer(FRESH) as server, use(server, take_over=True):
        opening = server.one(OpenSession)
        assert (opening.name, opening.take_over) == ("night", True)
        assert ":" in opening.who


def test_an_unnamed_session_ends_with_its_client() -> None:
    with ScriptedServer(FRESH) as server:
        with use(server, session=None):
            assert server.one(OpenSession).name == ""
        assert server.one(CloseSession).seq == 1


def test_a_session_that_is_in_use_is_refused_with_its_reason() -> None:
    refused = SessionRefused("it is in use by node1:4711")
    with ScriptedServer(refused) as server, pytest.raises(ConnectError, match="in use by node1:4711"):
        use(server)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(LoomError, match="is no name of a session"):
        Client("127.0.0.1", 1, session=name)
    with ScriptedServer(FRESH) as server:
        with use(server) as client:
            with pytest.raises(LoomError, match="is no name of a result"):
                client.submit_one(tasks.const("a"), name=name)
            with pytest.raises(LoomError):
                client.future(name)
        assert not server.all(SubmitChunk)


def test_an_embedded_cluster_ends_with_its_client() -> None:
    with pytest.raises(LoomError, match="does not: start `loom server`"):
        Client(session="night")
    with pytest.raises(LoomError, match="for a named session"):
        Client("127.0.0.1", 1, take_over=True)


NEEDS_A_NAME: list[Callable[[Client], object]] = [
    lambda client: client.submit_one(tasks.const("a"), name="x"),
    lambda client: client.submit([tasks.const("a")], names=[None]),
    lambda client: client.future("x"),
    lambda client: client.future_names(),
    lambda client: client.detach(),
]


@pytest.mark.parametrize("call", NEEDS_A_NAME)
def test_a_session_without_a_name_ends_with_its_client(call: Callable[[Client], object]) -> None:
    needed = pytest.raises(LoomError, match=r"Client\(address, port, session=\.\.\.\)")
    with ScriptedServer(FRESH) as server, use(server, session=None) as client, needed:
        call(client)


# -- Names of results -------------------------------------------------------------------------------------------------


def test_names_travel_with_the_chunk_that_has_their_number() -> None:
    with ScriptedServer(FRESH) as server, use(server) as client:
        many = [tasks.const(str(i)) for i in range(MAX_CHUNK_TASKS + 2)]
        names = [f"n{i}" if i in (0, MAX_CHUNK_TASKS - 1, MAX_CHUNK_TASKS) else None for i in range(len(many))]
        futures = client.submit(many, names=names)
        eventually(lambda: len(server.all(SubmitChunk)) == 2)
        first, second = (submit.names for submit in server.all(SubmitChunk))
        assert [name for _, name in first] == ["n0", f"n{MAX_CHUNK_TASKS - 1}"]
        assert second == [(MAX_CHUNK_TASKS, f"n{MAX_CHUNK_TASKS}")]
        assert futures[0].name == "n0"
        assert futures[1].name is None
        assert repr(futures[0]) == "<Future 'n0' of task 0: running>"


def test_a_name_is_given_once() -> None:
    with ScriptedServer(FRESH) as server:
        with use(server) as client:
            future = client.submit_one(tasks.const("a"), name="x")
            with pytest.raises(LoomError, match=r"client\.future\('x'\)"):
                client.submit_one(tasks.const("b"), name="x")
            with pytest.raises(LoomError, match="two results"):
                client.submit([tasks.const("a"), tasks.const("b")], names=["y", "y"])
            task = tasks.const("c")
            with pytest.raises(LoomError, match="one task is to have the names 'y' and 'z'"):
                client.submit([task, task], names=["y", "z"])
            future.release()
            assert client.submit_one(tasks.const("b"), name="x").task_id == 1
            assert client.future_names() == ["x"]
        assert [message.names for message in server.all(SubmitChunk)] == [[(0, "x")], [(1, "x")]]


def test_as_many_names_as_tasks() -> None:
    with ScriptedServer(FRESH) as server:
        with use(server) as client:
            for names in ("x", 3, ["x", "y"], []):
                with pytest.raises(LoomError, match="None"):
                    client.submit([tasks.const("a")], names=names)  # type: ignore[arg-type]
            with pytest.raises(InvalidPlan, match="becomes several results"):
                client.submit_one(tasks.dslice(tasks.split(tasks.const("a"))), name="x")
        assert not server.all(SubmitChunk)


def test_a_future_with_a_name_may_be_let_go() -> None:
    with ScriptedServer(FRESH) as server, use(server) as client:
        gone = weakref.ref(client.submit_one(tasks.const("a"), name="x"))
        client.submit_one(tasks.const("b"))
        gc.collect()
        assert gone() is None
        released = server.one(Release)  # once it is there, the other one would be, too
        assert released.numbers == (1).to_bytes(8, "little")
        assert client.future("x") is client.future("x")
        assert client.future("x").task_id == 0


def test_a_name_that_is_none_of_them() -> None:
    listed = pytest.raises(LoomError, match=r"no result is named 'x' .*; there are: 'bad', 'good', 'slow'")
    with ScriptedServer(TAKEN_UP) as server, use(server) as client, listed:
        client.future("x")


# -- Taking up --------------------------------------------------------------------------------------------------------


def test_what_was_in_the_session_is_there_again() -> None:
    with ScriptedServer(TAKEN_UP, TOLD_AGAIN) as server:
        with use(server) as client:
            assert client.future_names() == ["bad", "good", "slow"]
            slow = client.future("slow")
            assert slow.running()
            assert client.future("good").gather() == b"abc"
            with pytest.raises(TaskFailed, match="it broke"):
                client.future("bad").gather()
            server.say(ResultsReady([ReadyResult(8, 3, 0, b"\x00def")], []))
            assert slow.gather() == b"def"
            assert client.future_names() == ["bad"]
        assert [message.seq for message in server.all(Release)] == [41, 42]


def test_plans_go_on_after_the_numbers_in_use() -> None:
    with ScriptedServer(TAKEN_UP, TOLD_AGAIN) as server, use(server) as client:
        merged = client.submit_one(tasks.merge((client.future("good"), client.future("slow"))))
        submit = server.one(SubmitChunk)
        assert (submit.seq, submit.chunk.first, merged.task_id) == (41, 100, 100)


# -- Going ------------------------------------------------------------------------------------------------------------


def test_detaching_waits_until_all_is_acknowledged() -> None:
    with ScriptedServer(FRESH) as server:
        client = use(server)
        future = client.submit_one(tasks.const("a"), name="x")
        client.detach()
        assert [type(message) for message in server.heard[1:]] == [SubmitChunk, LeaveSession]
        with pytest.raises(ClientClosed):
            client.get_stats()
        with pytest.raises(ClientClosed):
            future.release()
        client.close()
        assert not server.all(CloseSession)


def test_a_journal_that_cannot_be_written_is_why_detaching_takes_too_long(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedServer(FRESH) as server:
        client = use(server)
        server.stall("the journal's disk is full")
        eventually(lambda: client._engine._stalled)
        with pytest.raises(LoomError, match=r"'night' may not have all .*: the journal's disk is full"):
            client.detach(timeout_s=0.01)
        with pytest.raises(ClientClosed):
            client.detach()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "acknowledges nothing: the journal's disk is full" in warnings[0]


def test_detaching_waits_for_a_journal_that_can_be_written_again() -> None:
    with ScriptedServer(FRESH) as server:
        client = use(server)
        server.stall("the journal's disk is full")
        client.submit_one(tasks.const("a"), name="x")
        server.one(SubmitChunk)
        server.stall("")
        client.detach(timeout_s=10)


def test_detaching_from_a_session_that_was_taken_over() -> None:
    with ScriptedServer(FRESH) as server:
        client = use(server)
        future = client.submit_one(tasks.const("a"), name="x")
        server.say(SessionRefused("taken over by node1:4711"))
        with pytest.raises(ConnectionLost, match="taken over by node1:4711"):
            future.wait()
        with pytest.raises(LoomError, match="taken over by node1:4711"):
            client.detach()


def test_a_client_that_is_closed_or_collected_leaves_its_named_session() -> None:
    with ScriptedServer(FRESH) as server:
        with use(server):
            pass
        assert server.one(LeaveSession)
        client = use(server)
        reference = weakref.ref(client)
        thread = client._engine._thread
        _open_clients.discard(client)
        del client
        gc.collect()
        assert reference() is None
        thread.join(10)
        assert len(server.all(LeaveSession)) == 2
        assert not server.all(CloseSession)


def test_a_named_session_can_be_ended() -> None:
    with ScriptedServer(FRESH) as server:
        client = use(server)
        client.end_session()
        assert server.one(CloseSession)
        with pytest.raises(ClientClosed):
            client.end_session()


def test_what_was_not_acknowledged_is_said_again_over_a_new_link(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedServer(FRESH) as server, use(server) as client:
        client.submit_one(tasks.const("a"), name="x")
        server.one(SubmitChunk)
        eventually(lambda: not client._engine._core.unacked)
        server.acknowledges = False
        client.submit_one(tasks.const("b"), name="y")
        eventually(lambda: len(server.all(SubmitChunk)) == 2)
        server.cut()
        assert server.one(ResumeSession).acked_seq == 1
        eventually(lambda: len(server.all(SubmitChunk)) == 3)
        assert server.all(SubmitChunk)[1] == server.all(SubmitChunk)[2]
        server.acknowledges = True
        server.say(Acked(2))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_server_that_is_away_is_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with ScriptedServer(FRESH) as server, use(server) as client:
        port, server.greeting = server.port, FRESH
        server.refuses = True
        server.cut()
        eventually(lambda: "trying again for up to 60 min" in caplog.text)
        assert f"127.0.0.1:{port} is lost" in caplog.text
        server.refuses = False
        eventually(lambda: "is back after" in caplog.text)
        client.detach(timeout_s=10)


# -- The list ---------------------------------------------------------------------------------------------------------


def test_sessions_are_listed_and_ended_by_name() -> None:
    with ScriptedServer(FRESH) as server, use(server, session=None) as client:
        infos = [SessionInfo(6, "b", "", 3, 1, ["y", "x"]), SessionInfo(5, "a", "me", 0, 0, [])]
        server.answers = {ListSessions: lambda asked: Sessions(asked.seq, infos, asked.end == "b")}
        assert client.sessions() == [NamedSession("a", "me", 0, 0, []), NamedSession("b", "", 3, 1, ["x", "y"])]
        client.end_session("b")
        with pytest.raises(LoomError, match="there is no session named 'c'"):
            client.end_session("c")
