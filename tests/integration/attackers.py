"""Those who try to get in, on raw sockets; and the server they attack, which says how many it has let in."""

import re
import secrets
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from clusters import Cluster
from loom.client import Client, tasks
from loom.errors import ConnectError
from loom.limits import MIB
from loom.messages import Message, OpenSession, ServerToClient, ServerToWorker
from loom.wire.codec import Decoder, encode
from loom.wire.framing import CONTROL, HEADER_BYTES, FrameReader, put_header
from loom.wire.handshake import NONCE_BYTES, VERSION, Accepting, Connecting, Handshake, Role
from loom.wire.keys import KEY_BYTES, load_key

OTHER_KEY: Final = bytes(range(KEY_BYTES))
PEER_ROLES: Final[tuple[Role, ...]] = ("client", "worker")  # of those whom a server lets in
MAGIC_BYTES: Final = 8  # then the role, one byte
PROOF_BYTES: Final = 32
MOST_GROWTH_BYTES: Final = 10 * MIB
OPEN: Final = OpenSession(b"token of the attacker", 0, "", "attacker", False)
PATIENCE_S: Final = 10.0
_ACCEPTED: Final = re.compile(r"(client|worker|data|server|objects) \S+ connected")


def connecting(role: Role = "client", key: bytes = OTHER_KEY, version: str = VERSION) -> Connecting:
    return Connecting(key, role, secrets.token_bytes(NONCE_BYTES), version)


def encrypting(key: bytes) -> Connecting:
    """Of a client that wants its link to be encrypted."""
    return Connecting(key, "client", secrets.token_bytes(NONCE_BYTES), wish="encryption")


def accepting(role: Role = "server", key: bytes = OTHER_KEY, version: str = VERSION) -> Accepting:
    return Accepting(key, role, secrets.token_bytes(NONCE_BYTES), version)


def _answer() -> bytes:
    one = accepting()
    one.receive(connecting().take_outgoing())
    return one.take_outgoing()


HELLO_BYTES: Final = len(connecting().take_outgoing())
ANSWER_BYTES: Final = len(_answer())  # what an accepting end says to a hello: its own, and at last a proof


def framed(payload: bytes) -> bytes:
    frame = bytearray(HEADER_BYTES) + payload
    put_header(frame, CONTROL)
    return bytes(frame)


def knock(port: int) -> socket.socket:
    """A connection on which nothing has been said."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE_S)


def say(sock: socket.socket, *what: bytes) -> None:
    """As far as the other end takes it."""
    with suppress(ConnectionError):
        for piece in what:
            sock.sendall(piece)


def read(sock: socket.socket, count: int) -> bytes:
    """So many bytes; fewer where the other end closes before."""
    data = b""
    while len(data) < count and (piece := sock.recv(count - len(data))):
        data += piece
    return data


def in_the_role(role: Role, hello: bytes) -> bytes:
    """A hello as somebody on its way changes it."""
    changed = bytearray(hello)
    changed[MAGIC_BYTES] = connecting(role).take_outgoing()[MAGIC_BYTES]
    return bytes(changed)


def hear(sock: socket.socket, shaking: Handshake) -> None:
    """Pass on what comes; ConnectError of the handshake, or where nothing more comes."""
    while reply := sock.recv(shaking.missing):
        shaking.receive(reply)
    raise ConnectError("the other end has left")


def read_to_end(sock: socket.socket) -> bytes:
    """All that comes until the other end closes, or breaks the connection. TimeoutError where it does neither."""
    data = b""
    while True:
        try:
            piece = sock.recv(1 << 16)
        except ConnectionError:
            return data
        if not piece:
            return data
        data += piece


def assert_refused(sock: socket.socket) -> bytes:
    """The other end has closed, without the word that the key is proven and without a message. Returns what it said."""
    said = read_to_end(sock)
    sock.close()
    assert said[ANSWER_BYTES:] in (b"", b"\x02")
    return said


def shake(sock: socket.socket, shaking: Handshake) -> bytes:
    """Go through a handshake; returns what was said. Raises ConnectError."""
    said = b""
    while True:
        outgoing = shaking.take_outgoing()
        said += outgoing
        sock.sendall(outgoing)
        if shaking.established:
            return said
        received = sock.recv(shaking.missing)
        if not received:
            raise ConnectError("closed")
        try:
            shaking.receive(received)
        except ConnectError:
            say(sock, shaking.take_outgoing())
            raise


class Insider:
    """Somebody who has the key, and speaks as they like; remembers what they have said."""

    def __init__(self, port: int, role: Role = "client") -> None:
        self.sock = knock(port)
        self.said = shake(self.sock, connecting(role, load_key()))
        self._reader = FrameReader()
        self._decoder = Decoder(ServerToClient if role == "client" else ServerToWorker)

    def __enter__(self) -> "Insider":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *messages: Message) -> None:
        self.say(bytes(encode(messages)))

    def say(self, data: bytes) -> None:
        self.said += data
        say(self.sock, data)

    def messages(self) -> Iterator[Message]:
        """What comes, until the connection ends."""
        while True:
            while (frame := self._reader.next_frame()) is not None:
                yield from self._decoder.decode(frame)
            count = self.sock.recv_into(self._reader.buffer())
            if not count:
                return
            self._reader.received(count)


class Impostor:
    """Listens in the place of a server, for one connection."""

    def __init__(self, key: bytes, version: str = VERSION) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.shaking = accepting("server", key, version)
        self.error: ConnectError | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        sock, _ = self._listening.accept()
        with sock, suppress(OSError):
            sock.settimeout(PATIENCE_S)
            try:
                shake(sock, self.shaking)
            except ConnectError as error:
                self.error = error
            sock.shutdown(socket.SHUT_WR)
            read_to_end(sock)

    def leave(self) -> None:
        self._thread.join(PATIENCE_S)
        self._listening.close()


class Relay:
    """Sits between a client and a server, passes on what they say, and keeps it. For one connection."""

    def __init__(self, port: int) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.from_client = bytearray()
        self.from_server = bytearray()
        self._target = port
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listening.accept()
        server = socket.create_connection(("127.0.0.1", self._target))
        back = threading.Thread(target=self._pass, args=(server, client, self.from_server), daemon=True)
        back.start()
        self._pass(client, server, self.from_client)
        back.join()
        for sock in (client, server, self._listening):
            sock.close()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket, kept: bytearray) -> None:
        with suppress(OSError):
            while piece := one.recv(1 << 16):
                kept += piece
                other.sendall(piece)
            other.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        """When both ends have closed it, which they have to do by themselves."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "a closed client has left its socket open"


@contextmanager
def impostor(key: bytes, version: str = VERSION) -> Iterator[Impostor]:
    one = Impostor(key, version)
    yield one
    one.leave()


def client_hello_of_tls() -> bytes:
    """The first that a browser says where it is told https."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


class Door:
    """A server and a worker, and how many they have let in who are not from here."""

    def __init__(self, directory: Path) -> None:
        self.cluster = Cluster(directory, n_workers=1, server_options=("--log-level", "debug"))
        self.port = self.cluster.port
        self.n_own = 1  # the worker
        worker = self.cluster.workers[0].itself()
        self.objects_port = next(one.laddr.port for one in worker.net_connections("tcp") if one.status == "LISTEN")
        self._pids = {self.cluster.server.pid, worker.pid}
        for tls in (True, True, False):  # what is loaded once is loaded
            self.serve(tls)
        self._server = psutil.Process(self.cluster.server.pid)
        self._rss_before = self._server.memory_info().rss

    def log(self) -> str:
        return self.cluster.server_log.read_text(errors="replace")

    def n_accepted(self) -> int:
        """Attackers whom the server has taken for one of its own."""
        return len(_ACCEPTED.findall(self.log())) - self.n_own

    def n_crashes(self) -> int:
        alive = {pid for pid in self._pids if psutil.pid_exists(pid)}
        said = self.cluster.log()
        return len(self._pids - alive) + said.count("Traceback") + said.count("internal error")

    def growth_bytes(self) -> int:
        return self._server.memory_info().rss - self._rss_before

    def peak_growth_bytes(self) -> int:
        """Of the time since it was first asked for, and of what came before unless it is lower."""
        status = Path(f"/proc/{self._server.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return 1024 * int(found[1]) - self._rss_before

    def insider(self, role: Role = "client") -> Insider:
        self.n_own += 1
        return Insider(self.port, role)

    def serve(self, tls: bool = False) -> None:
        """A good client gets an answer."""
        self.n_own += 1
        with Client("127.0.0.1", self.port, tls=tls) as client:
            assert client.get_stats()["n_workers"] == 1
            assert client.submit_one(tasks.const("good")).gather() == b"good"

    def ports(self) -> Iterable[int]:
        return (self.port, self.objects_port)
