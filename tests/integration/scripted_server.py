"""A server that a test tells what to say: for what clients do when a real one would have to be broken first."""

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from clusters import eventually
from loom.messages import (
    Acked,
    ClientToServer,
    JournalStalled,
    Message,
    OpenSession,
    ResumeSession,
    SessionOpened,
    SessionRefused,
)
from loom.net.link import Link
from loom.net.listener import listen
from loom.net.trust import find_trust
from loom.wire.codec import Decoder
from loom.wire.handshake import Role


class ScriptedServer:
    """Answers OpenSession and ResumeSession with `greeting`, and acknowledges commands while `acknowledges`.

    `heard` has everything that any client said. A context manager; it runs in a thread of its own.
    """

    def __init__(self, greeting: SessionOpened | SessionRefused, follow: tuple[Message, ...] = ()) -> None:
        self.greeting = greeting
        self.follow = follow  # said right behind the greeting
        self.acknowledges = True
        self.refuses = False  # links are closed as soon as they are there
        self.answers: dict[type[Message], Callable[[Any], Message]] = {}
        self.heard: list[Message] = []
        self._links: list[Link] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted-server", daemon=True)
        self._thread.start()
        listener = asyncio.run_coroutine_threadsafe(listen("127.0.0.1", 0, find_trust(), self), self._loop)
        self._listener = listener.result(10)
        self.port = self._listener.port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._listener.close)
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def say(self, *messages: Message) -> None:
        self._do(lambda: self._links[-1].send(messages))

    def stall(self, reason: str) -> None:
        """As if the journal's disk were full; without a reason it goes on, and acknowledges everything so far."""
        self.acknowledges = not reason
        seqs = [message.seq for message in self.heard if hasattr(message, "seq")]
        self.say(JournalStalled(reason), *([] if reason else [Acked(max(seqs, default=0))]))

    def cut(self) -> None:
        self._do(lambda: [link.abort("cut by the test") for link in self._links])

    def all(self, kind: type[Message]) -> list[Any]:
        return [message for message in list(self.heard) if isinstance(message, kind)]

    def one(self, kind: type[Message]) -> Any:
        """The only message of that kind, once it is there."""
        (message,) = eventually(lambda: self.all(kind), what=f"{kind.__name__}")
        return message

    def _do(self, call: Callable[[], object]) -> None:
        done = threading.Event()

        def do() -> None:
            call()
            done.set()

        self._loop.call_soon_threadsafe(do)
        assert done.wait(10)

    # -- In the thread -------------------------------------------------------------------------------------------------

    def on_link(self, link: Link, role: Role) -> tuple[Decoder, Self]:
        self._links.append(link)
        if self.refuses:
            self._loop.call_soon(link.abort, "refused by the test")
        return Decoder(ClientToServer), self

    def on_messages(self, link: Link, messages: list[Message]) -> None:
        self.heard += messages
        for message in messages:
            if type(message) in self.answers:
                link.send([self.answers[type(message)](message)])
            if isinstance(message, OpenSession | ResumeSession):
                link.send([self.greeting, *self.follow])
            elif self.acknowledges and hasattr(message, "seq"):
                link.send([Acked(message.seq)])

    def on_closed(self, link: Link, reason: str) -> None:
        self._links.remove(link)

    def on_full(self, link: Link) -> None:
        """It says little."""

    def on_drained(self, link: Link) -> None:
        """See on_full."""
