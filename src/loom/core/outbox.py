"""Messages of one turn, gathered into one frame per peer."""

from loom.core.events import Send
from loom.messages import Message


class Outbox:
    def __init__(self) -> None:
        self._frames: dict[int, list[Message]] = {}

    def send(self, link: int, message: Message) -> None:
        frame = self._frames.get(link)
        if frame is None:
            self._frames[link] = [message]
        else:
            frame.append(message)

    def forget(self, link: int) -> None:
        """The link is gone: nothing goes out on it any more."""
        self._frames.pop(link, None)

    def take(self) -> list[Send]:
        """What has been gathered since the last call."""
        frames, self._frames = self._frames, {}
        return [Send(link, messages) for link, messages in frames.items()]
