"""What shells tell the cores, and what cores tell the shells to do. Links are numbered by the shell."""

from msgspec import Struct

from loom.messages import Message


class LinkUp(Struct, gc=False):
    """A peer has proven the key; `role` is "client" or "worker"."""

    link: int
    role: str


class LinkDown(Struct, gc=False):
    link: int


class LinkFull(Struct, gc=False):
    """More is waiting on this link than its high-water mark: stop feeding it."""

    link: int


class LinkDrained(Struct, gc=False):
    link: int


class Received(Struct, gc=False):
    link: int
    messages: list[Message]


ServerEvent = LinkUp | LinkDown | LinkFull | LinkDrained | Received


class Send(Struct, gc=False):
    """One frame for one peer: everything this turn has to say to it, in order."""

    link: int
    messages: list[Message]


class CloseLink(Struct, gc=False):
    """The peer said goodbye, or is at fault (it broke the protocol); sent messages go out first."""

    link: int
    reason: str
    at_fault: bool = False


class Shutdown(Struct, gc=False):
    """Leave once everything is sent."""


ServerEffect = Send | CloseLink | Shutdown
