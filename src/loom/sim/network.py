"""Links between simulated processes: ordered, delayed, and breaking as TCP does.

Each direction delivers its frames in order; between links anything goes. A broken link has delivered any prefix of what
was sent, and its two ends learn of it at different times. Every message passes through the real encoding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, Protocol

from loom.messages import ClientToServer, Message, ServerToClient, ServerToWorker, WorkerToServer
from loom.sim.clock import Clock, Timer
from loom.wire.codec import Decoder, encode_payload

_DECODERS = {
    ("client", "server"): Decoder(ClientToServer),
    ("server", "client"): Decoder(ServerToClient),
    ("worker", "server"): Decoder(WorkerToServer),
    ("server", "worker"): Decoder(ServerToWorker),
}


class Speeds(NamedTuple):
    """Latency is drawn anew for each frame up to `jitter_s` above `latency_s`."""

    latency_s: float
    jitter_s: float
    bytes_per_s: float
    high_water_bytes: int
    notice_s: float  # how long an end may not notice that the link is broken


class Owner(Protocol):
    """Who has an end of a link."""

    def on_messages(self, end: End, messages: list[Message]) -> None: ...
    def on_broken(self, end: End) -> None: ...
    def on_full(self, end: End) -> None: ...
    def on_drained(self, end: End) -> None: ...


class _Way:
    """One direction."""

    def __init__(self, clock: Clock, rng: Random, speeds: Speeds, decoder: Decoder) -> None:
        self._clock = clock
        self._rng = rng
        self._speeds = speeds
        self._decoder = decoder
        self._frames: deque[tuple[float, bytes]] = deque()  # arrival, payload
        self._sent_until = 0.0
        self._arrival = 0.0
        self._stalled_until = 0.0
        self._timer: Timer | None = None
        self._n_bytes = 0
        self._full = False
        self.closed = False
        self.sender: End
        self.receiver: End

    def send(self, messages: Sequence[Message]) -> None:
        if self.closed:
            return
        payload = encode_payload(messages)
        speeds = self._speeds
        self._sent_until = max(self._clock.now, self._sent_until) + len(payload) / speeds.bytes_per_s
        arrival = self._sent_until + speeds.latency_s + self._rng.random() * speeds.jitter_s
        self._arrival = max(self._arrival, arrival)
        self._frames.append((self._arrival, payload))
        self._n_bytes += len(payload)
        if not self._full and self._n_bytes > speeds.high_water_bytes:
            self._full = True
            self.sender.tell(lambda owner, end: owner.on_full(end))
        self._wait()

    def stall(self, until: float) -> None:
        self._stalled_until = max(self._stalled_until, until)

    def cut(self) -> None:
        """Nothing more is sent, and of what is on its way only some prefix arrives; then the receiver is told."""
        keep = self._rng.randint(0, len(self._frames))
        while len(self._frames) > keep:
            self._frames.pop()
        self.finish(self._rng.random() ** 3 * self._speeds.notice_s)

    def finish(self, notice_s: float = 0.0) -> None:
        """Nothing more is sent; the receiver is told once everything has arrived."""
        if not self.closed:
            self.closed = True
            last = self._frames[-1][0] if self._frames else self._clock.now
            self._clock.at(max(last, self._stalled_until) + notice_s, self._end)

    def _end(self) -> None:
        if self._frames:  # stalled since
            self._clock.after(0.01, self._end)
        else:
            self.receiver.ended()

    def _wait(self) -> None:
        if self._frames and self._timer is None:
            self._timer = self._clock.at(max(self._frames[0][0], self._stalled_until), self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        now = self._clock.now
        if self._frames and now >= self._frames[0][0] and now >= self._stalled_until:
            _, payload = self._frames.popleft()
            self._n_bytes -= len(payload)
            if self._full and self._n_bytes < self._speeds.high_water_bytes // 4:
                self._full = False
                self.sender.tell(lambda owner, end: owner.on_drained(end))
            messages = self._decoder.decode(payload)
            self.receiver.tell(lambda owner, end: owner.on_messages(end, messages))
        self._wait()


class End:
    """One end of a link; silent after `on_broken` or `abandon`."""

    def __init__(self, name: str, owner: Owner, out: _Way) -> None:
        self.name = name
        self._owner: Owner | None = owner
        self._out = out
        self.link: Link

    def __repr__(self) -> str:
        return self.name

    def send(self, messages: Sequence[Message]) -> None:
        self._out.send(messages)

    def close(self) -> None:
        """Send what was given, then end; the owner is told as if the link had broken."""
        self._out.finish()
        self.link.clock.after(0.0, self.ended)

    def abandon(self) -> None:
        """The owner is gone or does not care any more."""
        self._owner = None

    def tell(self, what: Callable[[Owner, End], None]) -> None:
        if self._owner is not None:
            what(self._owner, self)

    def ended(self) -> None:
        owner, self._owner = self._owner, None
        self._out.closed = True
        if owner is not None:
            owner.on_broken(self)


class Link:
    """`near` is the end of whoever connected."""

    def __init__(
        self, clock: Clock, rng: Random, speeds: Speeds, name: str, role: str, near: Owner, far: Owner
    ) -> None:
        self.clock = clock
        self.name = name
        self._ways = (
            _Way(clock, rng, speeds, _DECODERS[role, "server"]),
            _Way(clock, rng, speeds, _DECODERS["server", role]),
        )
        out, back = self._ways
        self.near = End(f"{name}>", near, out)
        self.far = End(f"<{name}", far, back)
        out.sender, out.receiver = self.near, self.far
        back.sender, back.receiver = self.far, self.near
        self.near.link = self.far.link = self

    def break_off(self) -> None:
        for way in self._ways:
            way.cut()

    def stall(self, duration_s: float, both: bool) -> None:
        for way in self._ways if both else self._ways[:1]:
            way.stall(self.clock.now + duration_s)
