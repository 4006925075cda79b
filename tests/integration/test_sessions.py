"""Sessions that outlive their scripts, with real servers; each script is a process of its own."""

import asyncio
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from link_peers import Record

from clusters import SCRIPTS, Cluster, assert_no_objects, eventually, run_script
from loom.client import Client, TaskFailed, tasks
from loom.errors import ConnectError, ConnectionLost
from loom.limits import CONNECT_TIMEOUT_S, MAX_CHUNK_TASKS, SESSION_GRACE_S
from loom.messages import Acked, OpenSession, ServerToClient, SubmitChunk
from loom.net.link import connect
from loom.net.trust import find_trust
from loom.tasktypes.plan import encode_plan
from loom.tasktypes.task import Reference, Task
from loom.wire.codec import Decoder
from proxy import Proxy

BEGIN = """
import sys
from loom.client import Client, tasks
client = Client("127.0.0.1", int(sys.argv[1]), session="night")
"""
SUBMIT = (
    BEGIN
    + """
ab = client.submit_one(tasks.merge((tasks.const("a"), tasks.const("b"))), name="ab")
unnamed = client.submit_one(tasks.const("nobody asks for this again"))
failing = client.submit_one(tasks.run("ls /no/such/file"), name="failing")
waiting = client.submit_one(tasks.run(("sh", "-c", sys.argv[2])), name="waiting")
ab.wait()
"""
)
KILLED = """
client.sessions()  # when it is answered, all that was said before is acknowledged
print("said", flush=True)
sys.stdin.read()
"""
GATHER = (
    BEGIN
    + """
print(client.future_names())
print(client.future("ab").gather(), client.future("waiting").gather())
client.end_session()
"""
)


@pytest.fixture(scope="module", params=["journal", "memory"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With a journal and without: sessions outlive their clients with both."""
    directory = tmp_path_factory.mktemp("cluster")
    options = ("--journal", str(directory / "journal")) if request.param == "journal" else ()
    cluster = Cluster(directory, server_options=options)
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def _nothing_left(cluster: Cluster) -> Iterator[None]:
    yield
    with cluster.client() as client:
        left = client.sessions()
        for session in left:  # else they would be the next test's trouble, too
            client.end_session(session.name)
        assert left == []
        assert_no_objects(client)
        eventually(lambda: client.get_stats()["n_sessions"] == 1, what="the end of all other sessions")


def use(cluster: Cluster, session: str = "night", take_over: bool = False) -> Client:
    return Client("127.0.0.1", cluster.port, session=session, take_over=take_over)


def until(path: Path) -> str:
    """A shell's command that waits for a file."""
    return f"until test -e {shlex.quote(str(path))}; do sleep 0.01; done; echo it came"


def waiting(path: Path) -> Task:
    return tasks.run(("sh", "-c", until(path)))


def test_one_script_submits_and_another_one_gathers(cluster: Cluster, tmp_path: Path) -> None:
    first = run_script(SUBMIT + "client.detach()\nprint('detached')", str(cluster.port), until(tmp_path / "go"))
    assert first.communicate(timeout=30)[0] == "detached\n"
    second = run_script(GATHER, str(cluster.port))
    assert second.stdout is not None
    assert second.stdout.readline() == "['ab', 'failing', 'waiting']\n"
    (tmp_path / "go").touch()
    assert second.communicate(timeout=30)[0] == "b'ab' b'it came\\n'\n"


@pytest.mark.parametrize("end", ["", "client.close()", KILLED])
def test_however_a_script_ends_its_named_session_stays(cluster: Cluster, tmp_path: Path, end: str) -> None:
    first = run_script(SUBMIT + end, str(cluster.port), until(tmp_path / "go"))
    if end == KILLED:
        assert first.stdout is not None
        assert first.stdout.readline() == "said\n"
        first.kill()
    assert first.communicate(timeout=30)[0] == ""
    with cluster.client() as other:
        eventually(lambda: not other.sessions()[0].used_by)
    client = use(cluster)
    eventually(lambda: client.sessions()[0].n_tasks == 5, what="the release of what has no name")
    assert client.future("ab").fetch() == b"ab"
    with pytest.raises(TaskFailed, match="/no/such/file"):
        client.future("failing").gather()
    assert client.future("waiting").running()
    (tmp_path / "go").touch()
    both = tasks.merge((client.future("ab"), client.future("waiting")))
    assert client.submit_one(both).gather() == b"abit came\n"
    client.end_session()


def test_what_is_released_or_cancelled_is_so_for_the_next_one(cluster: Cluster, tmp_path: Path) -> None:
    with use(cluster) as client:
        gone, cancelled, _ = client.submit(
            [tasks.const("a"), waiting(tmp_path / "never"), waiting(tmp_path / "go")], names=["x", "cancelled", "slow"]
        )
        assert gone.gather() == b"a"
        client.submit_one(tasks.const("b"), name="x")
        assert cancelled.cancel()
    client = use(cluster)
    assert client.future_names() == ["cancelled", "slow", "x"]
    assert client.future("x").fetch() == b"b"
    with pytest.raises(TaskFailed, match="cancelled"):
        client.future("cancelled").gather()
    client.release([client.future("cancelled"), client.future("slow")])
    client.detach()
    client = use(cluster)
    assert client.future_names() == ["x"]
    client.end_session()


def test_a_session_has_one_user(cluster: Cluster, tmp_path: Path) -> None:
    first = use(cluster)
    slow = first.submit_one(waiting(tmp_path / "go"), name="slow")
    with pytest.raises(ConnectError, match="take_over=True"):
        use(cluster)
    second = use(cluster, take_over=True)
    with pytest.raises(ConnectionLost, match="taken"):
        slow.wait()
    first.close()
    (tmp_path / "go").touch()
    assert second.future("slow").gather() == b"it came\n"
    second.end_session()


def test_of_a_plan_that_was_half_sent_what_has_a_name_is_kept(cluster: Cluster) -> None:
    many: list[Task] = [tasks.const(str(number)) for number in range(MAX_CHUNK_TASKS)]
    plan = encode_plan([*many, tasks.merge(many[:2])], 0, _no_reference)

    async def say_half() -> None:
        record = Record()
        decoder = Decoder(ServerToClient)
        link = await connect("127.0.0.1", cluster.port, "client", find_trust(), decoder, record, CONNECT_TIMEOUT_S)
        link.send([OpenSession(b"token", 0, "night", "who is cut off", False)])
        link.send([SubmitChunk(1, plan.chunks[0], [(plan.numbers[0], "first")])])
        await record.until(lambda: Acked(1) in record.messages)
        link.abort("cut off")

    assert [chunk.more for chunk in plan.chunks] == [True, False]
    asyncio.run(say_half())
    client = use(cluster, take_over=True)
    eventually(lambda: client.sessions()[0].n_tasks == 1, what="the release of what has no name")
    assert client.future_names() == ["first"]
    assert client.submit_one(tasks.merge((client.future("first"), tasks.const("x")))).gather() == b"0x"
    client.end_session()


def _no_reference(reference: Reference) -> int:
    raise AssertionError(reference)


def test_a_session_without_a_name_ends_at_once(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.client() as other:
        client = cluster.client()
        future = client.submit_one(waiting(tmp_path / "never"))
        eventually(future.running)
        assert other.get_stats()["n_sessions"] == 2
        client.close()
        assert other.get_stats()["n_sessions"] == 1


@pytest.mark.parametrize("name", [None, "night"])
def test_a_lost_link_comes_back_to_its_session(cluster: Cluster, tmp_path: Path, name: str | None) -> None:
    with Proxy(("127.0.0.1", cluster.port)) as proxy:
        client = Client("127.0.0.1", proxy.port, session=name)
        future = client.submit_one(waiting(tmp_path / "go"))
        client.get_stats()
        proxy.cut()
        (tmp_path / "go").touch()
        assert future.fetch() == b"it came\n"
        proxy.cut()
        if name is None:  # it would end without a link, and its session some seconds later
            client.get_stats()
        client.end_session()


def test_a_named_session_waits_for_ever(cluster: Cluster) -> None:
    """Its client's link breaks, and the grace of others passes."""
    with Proxy(("127.0.0.1", cluster.port)) as proxy, cluster.client() as other:
        client = Client("127.0.0.1", proxy.port, session="night")
        client.submit_one(tasks.const("a"), name="a").wait()
        nameless = Client("127.0.0.1", proxy.port)
        nameless.get_stats()
        proxy.refuse()
        proxy.cut()
        eventually(lambda: other.get_stats()["n_sessions"] == 2, 4 * SESSION_GRACE_S, "the end of one session")
        assert [session.results for session in other.sessions()] == [["a"]]
        for one in (client, nameless):
            one._engine.close(one._farewell, timeout_s=0.0)
            one._closed = True
    other = use(cluster)
    assert other.future("a").fetch() == b"a"
    other.end_session()


def test_documentation(cluster: Cluster, tmp_path: Path) -> None:
    """The scripts of docs/sessions.md, one after the other."""
    text = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        script = run_script(block.replace("9010", str(cluster.port)))
        assert script.communicate(timeout=30)[0].splitlines() == re.findall(r"print\(.*\)  # (.*)", block)


def test_sessions_are_ended_from_outside(cluster: Cluster) -> None:
    def command(*options: str) -> subprocess.CompletedProcess[str]:
        arguments = [SCRIPTS / "loom", "sessions", "127.0.0.1", str(cluster.port), *options]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=30)

    assert command().stdout == "There are no named sessions.\n"
    day, night = use(cluster, "day"), use(cluster, "night")
    for name in "abcdefg":
        day.submit_one(tasks.const(name), name=name).wait()
    night.close()
    eventually(lambda: not day.sessions()[1].used_by)
    header, of_day, of_night = command().stdout.splitlines()
    assert header.split() == ["name", "used", "by", "tasks", "unfinished", "results"]
    assert of_day.startswith("day") and of_day.endswith("7      0           a, b, c, d, e and 2 more")  # noqa: PT018
    assert of_night.split() == ["night", "-", "0", "0", "-"]
    assert command("--end", "evening").stderr == "Error: there is no session named 'evening'\n"
    lines = command("--end", "day").stdout.splitlines()
    assert [line.split() for line in lines[1:]] == [of_night.split()]
    eventually(day._engine.closed.is_set)
    with pytest.raises(ConnectionLost, match="ended from outside"):
        day.submit_one(tasks.const("x"))
    day.close()
    assert command("--end", "night").stdout == "There are no named sessions.\n"
