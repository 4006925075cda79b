"""What the client's shell tells its core, and what the core tells the shell to do."""

from msgspec import Struct

from loom.messages import FailedResult, Message, PeerAddress, PlanChunk, ReadyResult, SessionInfo

# -- Events -----------------------------------------------------------------------------------------------------------


class Connected(Struct, gc=False):
    """A link to the server is up (the first or another one)."""


class Disconnected(Struct, gc=False):
    """The link broke, or an attempt to connect failed."""

    reason: str


class FromServer(Struct, gc=False):
    messages: list[Message]


class Submit(Struct, gc=False):
    """`names`: results of this chunk by number, and under which names a named session is to have them."""

    chunk: PlanChunk
    names: list[tuple[int, str]] = []


class ReleaseResults(Struct, gc=False):
    numbers: list[int]


class CancelFutures(Struct, gc=False):
    """These results count as failed from now on, whatever comes of them; they are still to be released."""

    numbers: list[int]


class FetchResults(Struct, gc=False):
    """Bring the objects of finished results here; each is answered once by Delivered or Undeliverable."""

    numbers: list[int]


class AskStats(Struct, gc=False):
    pass


class AskSessions(Struct, gc=False):
    """List the named sessions; `end`: one to end before that, or empty. `question` comes back with the answer."""

    question: int
    end: str = ""


class StartTrace(Struct, gc=False):
    """Have server and workers write traces below this directory (bytes of an absolute path)."""

    path: bytes


class Close(Struct, gc=False):
    """End the session, and with `terminate` its server. Nothing may be said after it, nor after Leave."""

    terminate: bool


class Leave(Struct, gc=False):
    """Go, and leave the named session with what has a name in it to whoever takes it up."""


class FetchedDirectly(Struct, gc=False):
    """The shell has the object of a Fetch effect."""

    number: int


class FetchFailed(Struct, gc=False):
    number: int
    reason: str


class Tick(Struct, gc=False):
    pass


ClientEvent = (
    Connected
    | Disconnected
    | FromServer
    | Submit
    | ReleaseResults
    | CancelFutures
    | FetchResults
    | AskStats
    | AskSessions
    | StartTrace
    | Close
    | Leave
    | FetchedDirectly
    | FetchFailed
    | Tick
)


# -- Effects ----------------------------------------------------------------------------------------------------------


class ToServer(Struct, gc=False):
    messages: list[Message]


class Ready(Struct, gc=False):
    """These results are finished (again: at another worker, where they were before)."""

    results: list[ReadyResult]


class FailedFutures(Struct, gc=False):
    results: list[FailedResult]


class Fetch(Struct, gc=False):
    peer: PeerAddress
    numbers: list[int]


class RelayPiece(Struct, gc=False):
    """Part of an object that comes through the server; the last one completes it. Without a header it is packed.

    `first`: what came before of this object is void (its relay was broken off).
    """

    number: int
    header: bytes
    piece: bytes
    last: bool
    first: bool


class Undeliverable(Struct, gc=False):
    number: int
    reason: str


class StatsCame(Struct, gc=False):
    values: dict[str, int]


class SessionsCame(Struct, gc=False):
    """`ended` is False where there was no session of the name that was to be ended."""

    question: int
    sessions: list[SessionInfo]
    ended: bool


class Connect(Struct, gc=False):
    """Open a new link after this pause."""

    delay_s: float


class Opened(Struct, gc=False):
    """`names` are of results that were in the session before, `next_number` is the first one free for new tasks.
    `ticket` lets this client fetch the session's objects from workers.
    """

    session: int
    next_number: int
    names: list[tuple[int, str]]
    ticket: bytes


class LinkAway(Struct, gc=False):
    """The link has been away for more than a moment; it is tried for `patience_s` in all, then the session is over."""

    reason: str
    patience_s: int


class LinkBack(Struct, gc=False):
    """After LinkAway: the session goes on."""

    away_s: float


class Stalled(Struct, gc=False):
    """The server acknowledges nothing, because it cannot write its journal; without a reason: it can again."""

    reason: str


class Closed(Struct, gc=False):
    """The session is over for this client; `reason` is empty when that was asked for."""

    reason: str


ClientEffect = (
    ToServer
    | Ready
    | FailedFutures
    | Fetch
    | RelayPiece
    | Undeliverable
    | StatsCame
    | SessionsCame
    | Connect
    | Opened
    | LinkAway
    | LinkBack
    | Stalled
    | Closed
)
