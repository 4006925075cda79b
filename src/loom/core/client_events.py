"""What the client's shell tells its core, and what the core tells the shell to do."""

from msgspec import Struct

from loom.messages import FailedResult, Message, PeerAddress, PlanChunk, ReadyResult

# -- Events -----------------------------------------------------------------------------------------------------------


class Connected(Struct, gc=False):
    """A link to the server is up (the first or another one)."""


class Disconnected(Struct, gc=False):
    """The link broke, or an attempt to connect failed."""

    reason: str


class FromServer(Struct, gc=False):
    messages: list[Message]


class Submit(Struct, gc=False):
    chunk: PlanChunk


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


class StartTrace(Struct, gc=False):
    """Have server and workers write traces below this directory (bytes of an absolute path)."""

    path: bytes


class Close(Struct, gc=False):
    terminate: bool


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
    | StartTrace
    | Close
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


class Connect(Struct, gc=False):
    """Open a new link after this pause."""

    delay_s: float


class Opened(Struct, gc=False):
    session: int


class Closed(Struct, gc=False):
    """The session is over; `reason` is empty when that was asked for."""

    reason: str


ClientEffect = (
    ToServer | Ready | FailedFutures | Fetch | RelayPiece | Undeliverable | StatsCame | Connect | Opened | Closed
)
