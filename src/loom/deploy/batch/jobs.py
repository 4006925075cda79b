"""The jobs of one queue, as nodes for its keeper."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Final

from loom.deploy.batch.options import QueueOptions
from loom.deploy.batch.system import BatchSystem, Job, job_log
from loom.deploy.nodes import Node, Offer
from loom.deploy.saying import Says
from loom.errors import DeployError

_MISSING: Final = 2  # so often in a row the batch system does not know a job before it is taken to be gone
_NEWS_S: Final = 1.0  # after a submit the batch system is asked sooner: whether the job runs, or why it waits
_END_S: Final = 10.0  # how long is waited for jobs that were cancelled
_LOOK_S: Final = 0.25  # how often is looked meanwhile
_LOG_BYTES: Final = 2048  # the end of a log, in which the last word is looked for
_SAID_CHARS: Final = 300
_NO_REASON: Final = re.compile(r"\S+ \S+ (DEBUG|INFO) ")  # a worker's log, when all was well
_LAUNCHER: Final = re.compile(r"^(srun|slurmstepd): ")  # says that a worker has failed, which is known, and not why


class Jobs:
    """A provider. `known` are those that wait or run, as of the last `look`. `changed` is called when there are others,
    before anything else is done.
    """

    what = "job"

    def __init__(
        self, options: QueueOptions, system: BatchSystem, script: str, says: Says, changed: Callable[[], None]
    ) -> None:
        self.known: dict[str, Job] = {}
        self.n_submitted = 0
        self._options = options
        self._system = system
        self._script = script
        self._says = says
        self._changed = changed
        self._missing: dict[str, int] = {}
        self._running_since: dict[str, float] = {}
        self._ended: list[Job] = []
        self._look_at = 0.0
        self._now = 0.0

    @property
    def offer(self) -> Offer:
        return self._options.offer

    @property
    def n_running(self) -> int:
        return sum(job.state == "running" for job in self.known.values())

    def workers(self, job: str) -> tuple[str, ...]:
        return self._system.workers(job, self._options.n_workers)

    def take_up(self, ids: Iterable[str]) -> None:
        """They were submitted by an earlier server."""
        for id in ids:
            self.known.setdefault(id, Job(id, "waiting"))
        self._look_at = 0.0

    def are_here(self, workers: Set[str]) -> None:
        """The server knows these workers: jobs that have one of them run, whatever was said last."""
        for id, job in self.known.items():
            if job.state == "waiting" and not workers.isdisjoint(self.workers(id)):
                self.known[id] = Job(id, "running")
                self._running_since.setdefault(id, self._now)

    def look(self, now: float) -> None:
        """Ask the batch system, where it is time to. DeployError where it does not answer."""
        self._now = now
        if now < self._look_at or not self.known:
            return
        self._look_at = now + self._options.poll_s
        found = self._system.jobs(self.known)
        for id in list(self.known):
            job = found.get(id)
            if job is None:
                job = self._look_for_missing(id)
            else:
                self._missing.pop(id, None)
            if job.state == "running":
                self._running_since.setdefault(id, now)
            if job.state == "ended":
                del self.known[id]
                self._ended.append(self._with_last_word(job))
                self._changed()
            else:
                self.known[id] = job

    def _look_for_missing(self, id: str) -> Job:
        self._missing[id] = self._missing.get(id, 0) + 1
        if self._missing[id] < _MISSING:
            return self.known[id]
        del self._missing[id]
        limit_s = self._options.time_limit_s
        began = self._running_since.get(id)
        if limit_s is not None and began is not None:
            before_s = self._options.drain_s + (_MISSING + 1) * self._options.poll_s
            if self._now - began >= limit_s - before_s:
                return Job(id, "ended")  # its time was over, and where ended jobs are forgotten at once nobody says so
        return Job(id, "ended", story=f"is gone: {self._system.title} does not know it any more")

    def _with_last_word(self, job: Job) -> Job:
        """Why it has failed stands in its log, which may be gone when somebody wants to know."""
        if not job.story:
            return job
        try:
            with open(job_log(self._system, os.path.dirname(self._script), job.id), "rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:  # it did not come to that, or it is not seen from here yet
            return job
        said = [line.strip() for line in lines if line.strip() and not _LAUNCHER.match(line)]
        if not said or _NO_REASON.match(said[-1]):
            return job
        return job._replace(story=f"{job.story}; its log ends with: {said[-1][:_SAID_CHARS]}")

    # -- For the keeper -----------------------------------------------------------------------------------------------

    def launch(self, count: int) -> None:
        for _ in range(count):
            id = self._system.submit(self._options, self._script)
            self.known[id] = Job(id, "waiting")
            self.n_submitted += 1
            self._look_at = min(self._look_at, self._now + _NEWS_S)
            self._changed()
            self._says.say(f"job {id} is submitted")

    def nodes(self) -> list[Node]:
        ended, self._ended = self._ended, []
        for job in ended:
            self._running_since.pop(job.id, None)
        return [Node(j.id, j.state, self.workers(j.id), j.story) for j in (*ended, *self.known.values())]

    def end(self, nodes: Sequence[Node]) -> None:
        try:
            self._system.cancel([node.id for node in nodes])
        except DeployError as error:  # the keeper comes back to it
            self._says.complain(str(error))
        self._look_at = 0.0

    def close(self, at_once: bool = False) -> None:
        """Cancel all, and wait a little until they are over. DeployError where the batch system does not do it."""
        if self.known:
            self._system.cancel(self.known, at_once)
            until = time.monotonic() + _END_S
            while any(job.state != "ended" for job in self._system.jobs(self.known).values()):
                if time.monotonic() > until:
                    break  # it was told, and will do it
                time.sleep(_LOOK_S)
            self.known.clear()
            self._changed()
