"""The key is in its file and nowhere else: not in what is logged, shown, written down or raised."""

import base64
import io
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from traceback import TracebackException

import psutil
import pytest
from attackers import OTHER_KEY, PEER_ROLES, connecting, impostor, knock, read_to_end, say, shake
from rich.console import Console
from rich.pretty import pretty_repr
from rich.traceback import Traceback

from clusters import Cluster, eventually
from loom.client import Client, LoomException, TaskFailed, tasks
from loom.errors import ConnectError
from loom.messages import GetStats, OpenSession
from loom.net.trust import find_trust
from loom.server.shell import ServerShell
from loom.wire.codec import encode
from loom.wire.keys import load_key, new_key


def forms(key: bytes) -> list[bytes]:
    """How the key, or a half of it, may look somewhere."""
    found = []
    for part in (key[:16], key[16:]):
        hexadecimal = part.hex()
        found += [part, hexadecimal.encode(), hexadecimal.upper().encode(), repr(part)[2:-1].encode()]
        found.append(" ".join(hexadecimal[i : i + 2] for i in range(0, 32, 2)).encode())
        found.append(", ".join(map(str, part)).encode())
        for shift in range(3):  # where it stands in what is encoded
            text = base64.b64encode(bytes(shift) + part + bytes(2))[4:-4]
            found += [text, text.replace(b"+", b"-").replace(b"/", b"_")]
    return found


def shows(data: bytes, key: bytes) -> list[bytes]:
    return [form for form in forms(key) if form in data]


@dataclass
class Scene:
    """All that was written and said while much went well and much went wrong."""

    directory: Path
    key_file: Path
    said: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, text: str | bytes) -> None:
        self.said[name] = self.said.get(name, b"") + (text.encode() if isinstance(text, str) else text)

    def add_error(self, name: str, error: BaseException) -> None:
        """With what tracebacks show that show local variables, of Loom's own functions."""
        trace = error.__traceback__
        assert trace is not None
        below = trace.tb_next  # without the function of this test
        self.add(f"error: {name}", f"{error!r} {error}")
        lines = TracebackException(type(error), error, below, capture_locals=True).format()
        self.add(f"traceback: {name}", "".join(lines))
        rich = Traceback.from_exception(type(error), error, below, show_locals=True, locals_max_string=None)
        console = Console(width=1000, file=io.StringIO())
        console.print(rich)
        assert isinstance(console.file, io.StringIO)
        self.add(f"rich traceback: {name}", console.file.getvalue())

    def run(self, *command: str | Path) -> None:
        """A command to its end, whatever that is."""
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, cwd=self.directory, timeout=50)
        assert done.stdout or done.stderr
        self.add(f"command {command[0]} {command[1]}", done.stdout + done.stderr)


def look_at_processes(scene: Scene, of: list[int]) -> None:
    """What everybody on the machine can see of them, and what their owner can."""
    everybody = [one for pid in of for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    assert len(everybody) >= 4  # server, supervisor, worker, an executor
    for process in everybody:
        for what in ("cmdline", "environ"):
            with suppress(FileNotFoundError, ProcessLookupError):  # a program of a task that has ended meanwhile
                scene.add(f"{what} of processes", Path(f"/proc/{process.pid}/{what}").read_bytes() + b"\n")


def work(scene: Scene, cluster: Cluster, key_file: Path) -> None:
    """Tasks that succeed and fail, a trace, all that a client can be asked; the processes while they run."""

    @tasks.py_task()
    def environment() -> bytes:
        import os

        return repr(os.environ).encode() + open("/proc/self/cmdline", "rb").read()

    @tasks.py_task()
    def fails() -> bytes:
        raise ValueError("on purpose")

    client = Client("127.0.0.1", cluster.port, session="night", key_file=key_file)
    client.set_trace(scene.directory / "trace")
    go = scene.directory / "go"
    program = f"while ! test -e {go}; do sleep 0.01; done; env; cat /proc/$$/cmdline"
    running = client.submit([tasks.run(("sh", "-c", program)), environment()], names=("program", "function"))
    failing = client.submit([fails(), tasks.run(("sh", "-c", "env >&2; false"))])
    running[1].wait()
    eventually(lambda: running[0].running())
    look_at_processes(scene, [cluster.server.pid, *(worker.pid for worker in cluster.workers)])
    go.touch()
    for value in client.fetch(running):
        assert isinstance(value, bytes)
        scene.add("what tasks see", value)
    for number, future in enumerate(failing):
        with pytest.raises(TaskFailed) as failed:
            future.wait()
        scene.add_error(f"failed task {number}", failed.value)
    trust = find_trust(key_file)
    shown = [client, client._engine, client._engine._trust, running[0], running, trust, load_key(key_file)]
    shown.append(ServerShell(trust))
    for one in shown:
        scene.add("repr", f"{one!r} {one} {pretty_repr(one)} {vars(one) if hasattr(one, '__dict__') else ''}\n")
    for command in ("sessions", "stats"):
        scene.run("loom.cli.main", command, "127.0.0.1", str(cluster.port), "--key-file", key_file)
    client.detach()


def go_wrong(scene: Scene, cluster: Cluster, key_file: Path) -> None:
    """Other keys, other versions, strangers: at both ends."""
    other = scene.directory / "other-key"
    for name, arguments in (
        ("another key", {"port": cluster.port, "key_file": other}),
        ("another key, encrypted", {"port": cluster.port, "key_file": other, "tls": True}),
        ("no server", {"port": 1, "key_file": key_file}),
        ("session in use", {"port": cluster.port, "key_file": key_file, "session": "used"}),
    ):
        with Client("127.0.0.1", cluster.port, key_file=key_file, session="used", take_over=True):
            with pytest.raises(LoomException) as raised:
                Client("127.0.0.1", **arguments)  # type: ignore[arg-type]
            scene.add_error(name, raised.value)
    for name, version in (("server without the key", ""), ("server of another version", "0.0.1+old")):
        with impostor(OTHER_KEY, *filter(None, [version])) as fake, pytest.raises(ConnectError) as refused:
            Client("127.0.0.1", fake.port, key_file=key_file)
        scene.add_error(name, refused.value)
    for role in PEER_ROLES:
        with knock(cluster.port) as sock, pytest.raises(ConnectError) as skewed:
            shake(sock, connecting(role, load_key(key_file), "0.0.1+old"))
        scene.add_error(f"{role} of another version", skewed.value)
        with knock(cluster.port) as sock:
            say(sock, connecting(role, load_key(key_file)).take_outgoing(), bytes(100))
            scene.add("what strangers are told", read_to_end(sock))
        with knock(cluster.port) as sock:
            shake(sock, connecting(role, load_key(key_file)))
            say(sock, bytes(encode([OpenSession(b"", 0, "", "", False), GetStats(1)])), b"\xff" * 1000)
            scene.add("what the broken are told", read_to_end(sock))
    bad = scene.directory / "bad-key"
    for name, text in (("half a key", load_key(key_file).hex()[:60]), ("key and more", load_key(key_file).hex() * 2)):
        bad.write_text(text)
        bad.chmod(0o600)
        with pytest.raises(LoomException) as damaged:
            Client("127.0.0.1", cluster.port, key_file=bad)
        scene.add_error(name, damaged.value)
        bad.unlink()


def embedded(scene: Scene, key_file: Path) -> None:
    """A client that brings its server and worker; encrypted, so that a certificate is made."""
    with Client(cpus=1, key_file=key_file, tls=True) as client:
        assert client.submit_one(tasks.run("env")).gather()
        own = psutil.Process().children()
        look_at_processes(scene, [one.pid for one in own if b"loom.cli" in " ".join(one.cmdline()).encode()])
        for one in (client, client._cluster, client._engine):
            scene.add("repr", f"{one!r} {vars(one)}")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    directory = tmp_path_factory.mktemp("secret")
    key_file = tmp_path_factory.mktemp("config") / "key"
    scene = Scene(directory, key_file)
    new_key(key_file)
    environment = {"LOOM_KEY_FILE": str(key_file)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOM_KEY_FILE", str(tmp_path_factory.mktemp("unused") / "key"))
        options = ("--journal", str(directory / "journal"), "--log-level", "debug")
        cluster = Cluster(
            directory, 1, 2, environment=environment, server_options=options, worker_options=("--log-level", "debug")
        )
        try:
            work(scene, cluster, key_file)
            go_wrong(scene, cluster, key_file)
            embedded(scene, key_file)
        finally:
            cluster.stop()
        for verb in ("new", "show-path"):
            scene.run("loom.cli.main", "key", verb, "--key-file", key_file)
        for option in ((), ("--json",)):
            scene.run("loom.cli.main", "journal", "show", *option, directory / "journal")
        scene.run("loom.lore", directory / "trace", "-o", directory / "report.html")
        assert not Path(os.environ["LOOM_KEY_FILE"]).exists(), "everybody has used the file that was named"
    scene.add("log", cluster.log())
    return scene


def test_the_search_would_find_it(scene: Scene) -> None:
    key = load_key(scene.key_file)
    for text in (bytes(key), key.hex().encode(), base64.b64encode(b"x" + key), repr(bytes(key)).encode()):
        assert shows(b"before" + text + b"after", key)
    assert shows(scene.key_file.read_bytes(), key)


def test_what_is_said_does_not_show_the_key(scene: Scene) -> None:
    key = load_key(scene.key_file)
    for name in ("cmdline of processes", "environ of processes", "log", "repr", "what tasks see", "error: another key"):
        assert scene.said[name], name
    assert str(scene.key_file).encode() in scene.said["environ of processes"]
    assert b"do not have the same key" in scene.said["log"]
    assert b"_trust" in scene.said["rich traceback: another key"] or b"trust" in scene.said["traceback: another key"]
    assert {name: form for name, data in scene.said.items() if (form := shows(data, key))} == {}


def test_no_file_but_the_key_file_holds_the_key(scene: Scene) -> None:
    """Logs, journal, traces, reports, what is beside the key."""
    key = load_key(scene.key_file)
    folders = (scene.directory, scene.key_file.parent)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {"journal", "report.html"} <= {path.name for path in files}
    assert any("trace" in str(path) for path in files)
    assert [path for path in files if path != scene.key_file and shows(path.read_bytes(), key)] == []


def test_what_is_kept_beside_the_key_is_for_its_owner_alone(scene: Scene) -> None:
    beside = list(scene.key_file.parent.iterdir())
    assert {path.name for path in beside} == {"key", "key.pem"}
    assert {path.stat().st_mode & 0o777 for path in beside} == {0o600}


def test_the_certificate_shows_itself_nowhere_else(scene: Scene) -> None:
    """It lets nobody in without the key; still it is a secret."""
    text = scene.key_file.with_name("key.pem").read_text()
    private = text[text.index("BEGIN PRIVATE KEY") : text.index("END PRIVATE KEY")].splitlines()[1].encode()
    assert len(private) >= 40
    assert [name for name, data in scene.said.items() if private in data] == []
    files = [path for path in scene.directory.rglob("*") if path.is_file()]
    assert [path for path in files if private in path.read_bytes()] == []
