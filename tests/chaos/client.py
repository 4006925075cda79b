"""A client process: works through a plan, compares, and reports. `python -m chaos.client SPEC.json`.

It writes a line to standard output at each step (`ready`, `submitted`, `delivered`, `empty`), and reads one from
standard input before it goes on from `ready`, `delivered` and `empty`; its findings go into the report file. With
`again` it begins anew after that, with another plan, until its standard input is closed.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec

from chaos import bodies, misbehaving, plans
from chaos.plans import Made, Maker
from loom.client import Client, Future, TaskFailed
from loom.errors import ConnectError
from loom.tasktypes.task import Source, Task

_STILL_S = 60.0  # without a new result: longer than any stop, partition or chain of tasks takes
_EMPTY_S = 60.0  # after the last release, until the server has nothing any more, of dead clients either


@dataclass
class Spec:
    """What a client is to do. `misbehaving` names kinds of tasks, each with how many."""

    host: str
    port: int
    seed: int
    name: str
    directory: str  # where its report goes, and what its tasks remember
    cost_s: float = 10.0
    n_rounds: int = 3
    n_small: int = 0
    shapes: list[str] = field(default_factory=lambda: list(plans.SHAPES))
    misbehaving: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    cancel_share: float = 0.0  # of the futures, at some moment
    release_share: float = 0.0  # likewise, whether they are finished or not
    largest_bytes: int = 20_000_000
    session: str = ""  # its name; then all results but a few have a name, too, that of their task
    taken_up: bool = False  # the plan was submitted by another client with the same seed and `prefix`
    prefix: str = ""  # of the names of tasks, `name` where it is empty
    again: bool = False
    links: str = ""  # as in the cluster's setup


@dataclass
class Report:
    """What a client found. `lost`: neither result nor error when the time was up."""

    n_tasks: int = 0
    n_results: int = 0
    n_failed_rightly: int = 0
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    error: str = ""


def say(text: str) -> None:
    """In one write, as two threads do this."""
    os.write(1, f"{text}\n".encode())


def await_word() -> None:
    if not sys.stdin.readline():
        sys.exit(3)  # whoever has started us is gone


class Work:
    """Submits rounds, collects results in different ways, and compares each with its value."""

    def __init__(self, client: Client, spec: Spec, report: Report) -> None:
        self._client = client
        self._spec = spec
        self._report = report
        self._rng = Random(spec.seed)
        self.open: dict[Future, Made] = {}
        self.over = False

    def submit(self) -> None:
        spec = self._spec
        maker = Maker(self._rng, spec.prefix or spec.name, Path(spec.directory), spec.largest_bytes)
        maker.retries = spec.retries
        given: list[Made] = []
        for number in range(spec.n_rounds):
            made = plans.make_round(maker, given, spec.cost_s / spec.n_rounds, spec.shapes)
            if number == 0:
                made += misbehaving.make(maker, spec.misbehaving)
                made += plans.small_bag(maker, spec.n_small)
                self._rng.shuffle(made)
            tasks = [one.source for one in made if isinstance(one.source, Task)]
            assert len(tasks) == len(made)
            if spec.retries:
                allow_retries(tasks, spec.retries)
            if spec.session:
                self._submit_named(tasks, made)
                continue
            futures = self._client.submit(tasks)
            self.open.update(zip(futures, made, strict=True))
            given = [
                Made(future, one.value)
                for future, one in zip(futures, made, strict=True)
                if not one.fails and not future.is_dynamic and isinstance(one.value, bytes)
            ]
        self._report.n_tasks = maker.n_tasks

    def _submit_named(self, tasks: list[Task], made: list[Made]) -> None:
        """Whoever takes the session up has the names. What has none is nobody's then."""
        names = [f"result {number}" if number % 10 else None for number in range(len(made))]
        if not self._spec.taken_up:
            futures = self._client.submit(tasks, names=names)
            self.open.update(zip(futures, made, strict=True))
            return
        there = [name for name in names if name is not None]
        if sorted(there) != self._client.future_names():
            raise AssertionError(f"there are {self._client.future_names()}, and not {sorted(there)}")
        for name, one in zip(names, made, strict=True):
            if name is not None:
                self.open[self._client.future(name)] = one

    def look(self) -> None:
        """At results, for ever, without releasing one: another client is to find them."""
        while True:
            future = self._rng.choice(list(self.open))
            if self.open[future].fails or not future.finished():
                bodies.pause(0.02)
            elif (value := future.fetch()) != self.open[future].value:
                self._report.wrong.append(f"{self.open[future].name}: {value!r:.80}")

    def change_mind(self) -> None:
        """After a while cancel some futures and release others: all others give what they would have given."""
        spec = self._spec
        if not spec.cancel_share and not spec.release_share:
            return
        most = self._rng.random() * len(self.open)
        while sum(future.finished() for future in self.open) < most:
            bodies.pause(0.01)
        for future, made in list(self.open.items()):
            chance = self._rng.random()
            if chance < spec.cancel_share:
                if future.cancel():
                    self.open[future] = Made(made.source, made.value, "cancelled", made.name)
            elif chance < spec.cancel_share + spec.release_share:
                future.release()
                del self.open[future]

    def collect(self) -> None:
        """Results in groups, in the order of submission or of completion."""
        ways = (self._gather_groups, self._gather_each, self._as_completed)
        self._rng.choice(ways)()
        self._gather_each()

    def _gather_groups(self) -> None:
        futures = [future for future, made in self.open.items() if not made.fails]
        for start in range(0, len(futures), 25):
            group = futures[start : start + 25]
            try:
                values = self._client.gather(group)
            except TaskFailed:
                continue  # whose it was is found one by one
            for future, value in zip(group, values, strict=True):
                self._compare(future, value)

    def _gather_each(self) -> None:
        for future in list(self.open):
            self._take(future)

    def _as_completed(self) -> None:
        for future in self._client.as_completed(list(self.open)):
            self._take(future)

    def _take(self, future: Future) -> None:
        made = self.open[future]
        try:
            value = future.gather()
        except TaskFailed as failed:
            del self.open[future]
            self._report.n_results += 1
            if made.fails and re.search(made.fails, str(failed)):
                self._report.n_failed_rightly += 1
            else:
                wanted = f" and not with {made.fails!r}" if made.fails else ""
                self._report.wrong.append(f"{made.name or made.source}: failed{wanted}: {str(failed)[:1500]}")
            future.release()
        else:
            self._compare(future, value)

    def _compare(self, future: Future, value: object) -> None:
        made = self.open.pop(future)
        self._report.n_results += 1
        if made.fails:
            self._report.wrong.append(f"{made.name}: should have failed with {made.fails!r}, gave {value!r:.80}")
        elif value != made.value:
            self._report.wrong.append(f"{made.name or made.source}: {value!r:.80} and not {made.value!r:.80}")


def allow_retries(wanted: list[Task], retries: int) -> None:
    """Let these tasks and all that they depend on be tried again."""
    stack: list[Source] = list(wanted)
    seen: set[Source] = set()
    while stack:
        task = stack.pop()
        if isinstance(task, Task) and task not in seen:
            seen.add(task)
            task.retries = task.retries or retries
            stack.extend(task.inputs)


def check_empty(client: Client) -> list[str]:
    """What the server still has after everything was released."""
    deadline = time.monotonic() + _EMPTY_S
    while True:
        stats = client.get_stats()
        left = [f"server: {name} {stats[name]}" for name in ("n_tasks", "n_data_objects") if stats[name]]
        if not left or time.monotonic() > deadline:
            return left
        bodies.pause(0.05)


def main(spec: Spec) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    client = connect(spec)
    while True:
        work_through(client, spec)
        if not spec.again:
            break
        spec.seed += 1
        spec.prefix = f"{spec.name}-{spec.seed}"
    if spec.session:
        client.end_session()
    client.close()


def connect(spec: Spec) -> Client:
    """With patience: the server may be away, or not know yet that the one that had the session before is dead."""
    deadline = time.monotonic() + _STILL_S
    while True:
        try:
            return Client(
                spec.host,
                spec.port,
                session=spec.session or None,
                tls=spec.links == "tls",
                insecure=spec.links == "insecure",
            )
        except ConnectError as error:
            if time.monotonic() > deadline:
                raise
            logging.info("not yet: %s", error)
            bodies.pause(0.2)


def work_through(client: Client, spec: Spec) -> None:
    """One plan."""
    report = Report()
    path = Path(spec.directory) / f"{spec.name}.report"
    work = Work(client, spec, report)
    say("ready")
    await_word()
    threading.Thread(target=_watch, args=(work, report, path), daemon=True).start()
    began = time.monotonic()
    try:
        work.submit()
        if spec.session:
            client.get_stats()  # is answered after what was said before, so that is on disk
        say("submitted")
        if spec.session and not spec.taken_up:
            work.look()
        work.change_mind()
        work.collect()
        report.seconds = time.monotonic() - began
    except Exception as error:
        report.error = f"{type(error).__name__}: {error}"
        report.lost = [made.name or repr(made.source) for made in work.open.values()]
    path.write_bytes(msgspec.json.encode(report))
    say("delivered")
    await_word()
    if not report.error:
        report.left = check_empty(client)
        path.write_bytes(msgspec.json.encode(report))
    work.over = True
    say("empty")
    await_word()


def _watch(work: Work, report: Report, path: Path) -> None:
    """Tell how far it is, and give up when nothing has come for a while."""
    n_before, changed_at = (0, 0), time.monotonic()
    while not work.over:
        n_finished = sum(future.finished() for future in list(work.open))
        say(f"progress {report.n_results + n_finished} {len(work.open) - n_finished}")
        if (n_now := (report.n_results, n_finished)) != n_before or not work.open:
            n_before, changed_at = n_now, time.monotonic()
        elif time.monotonic() - changed_at > _STILL_S:
            _give_up(work, report, path)
        bodies.pause(0.2)


def _give_up(work: Work, report: Report, path: Path) -> None:
    report.lost = [f"{made.name or made.source}: {future!r}" for future, made in list(work.open.items())]
    report.error = f"no result has come for {_STILL_S:g} s"
    path.write_bytes(msgspec.json.encode(report))
    say("late")
    faulthandler.dump_traceback()
    os._exit(2)


if __name__ == "__main__":
    main(Spec(**json.loads(Path(sys.argv[1]).read_text())))
