"""A result that is being made, or waits at a worker to be fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from msgspec import Struct

from loom.tasktypes.task import Reference

if TYPE_CHECKING:
    from loom.client.client import Client


class Future(Reference, Struct, eq=False, weakref=True):
    """Stands for a submitted task; `Client.submit` makes them.

    The result is kept on the workers as long as the future lives, and can be an input of later plans. It is given up
    by `release`, `gather`, or when Python collects the future; a result with a name only by the first two.
    """

    _client: Client
    task_id: int
    _released: bool = False
    is_dynamic: bool = False
    name: str | None = None
    """Under which its session keeps the result; None for most."""

    def wait(self) -> None:
        """Block until the task is finished. Raises TaskFailed if it failed."""
        self._client.wait_one(self)

    def fetch(self) -> object:
        """Wait, then bring the result here; it stays on the workers too."""
        return self._client.fetch_one(self)

    def gather(self) -> object:
        """`fetch`, then `release`."""
        return self._client.gather_one(self)

    def release(self) -> None:
        """Give the result up; an unfinished task is stopped unless somebody else needs it. Twice is once."""
        self._client.release_one(self)

    def cancel(self) -> bool:
        """Stop the task, unless something else needs it: at once the future has failed with "cancelled".

        Returns False, and nothing happens, where the task is over or the future released.
        """
        return self._client.cancel((self,)) == 1

    def finished(self) -> bool:
        """Whether the task is over, well or not."""
        return not self._released and self._client._results.is_over(self.task_id)

    def running(self) -> bool:
        """Whether the task is still to be finished."""
        return not self._released and not self._client._results.is_over(self.task_id)

    def released(self) -> bool:
        return self._released

    def active(self) -> bool:
        """Whether it has or will have a result: neither failed nor released."""
        return not self._released and self._client._results.failure(self.task_id) is None

    def __del__(self) -> None:
        # Only an append: this may run in any thread, between any two instructions, at interpreter exit.
        if not getattr(self, "_released", True) and self.name is None:
            self._client._collected.append(self.task_id)

    def __copy__(self) -> Future:
        return self  # a second one, when it is collected, would release what this one stands for

    def __deepcopy__(self, _memo: object) -> Future:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Future cannot be pickled; make it an input of the task that needs its result")

    def __repr__(self) -> str:
        if self._released:
            state = "released"
        elif self._client._results.failure(self.task_id) is not None:
            state = "failed"
        else:
            state = "finished" if self.finished() else "running"
        name = "" if self.name is None else f"{self.name!r} "
        return f"<Future {name}of task {self.task_id}: {state}>"
