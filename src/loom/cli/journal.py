"""`loom journal`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from loom.core.columns import column
from loom.errors import LoomError
from loom.facts import Fact, PlanAdded, ServerStarted, SessionBegan, TasksFinished, TasksMade
from loom.journal.describe import as_json, as_text
from loom.journal.framing import Gap, JournalDamaged
from loom.journal.reader import JournalReader
from loom.journal.repair import Survey, repair_journal, survey

_DAMAGED = 1
_NO_JOURNAL = 2
_FILE = click.Path(dir_okay=False)
_NAME_CHARS = max(len(kind.__name__) for kind in Fact.__subclasses__())


class _NoJournal(click.ClickException):
    exit_code = _NO_JOURNAL


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def journal() -> None:
    """Look into the file of `loom-server --journal FILE`, and repair it.

    A server with a journal writes down what it must not forget: sessions, plans, which tasks have finished. Started
    again with the same FILE it goes on from there. A crash may leave a part of a last record in the file; the server
    cuts that off by itself. Any other damage it refuses: `check` says where it is, `repair` leaves it out.
    """


@journal.command()
@click.argument("file", type=_FILE)
@click.option("--json", "as_lines", is_flag=True, help="One JSON object a line: for programs.")
def show(file: str, as_lines: bool) -> None:
    """Print every fact in FILE: the offset of its record, what it is, about whom.

    Also while a server uses it. Arguments of tasks and the secrets of sessions are not shown. Where the file is damaged
    a line on stderr says so, and the exit status is 1.
    """
    with _open(file) as reader:
        is_damaged = _says_header(reader)
        for stretch in reader.stretches():
            if isinstance(stretch, Gap):
                is_damaged |= not stretch.is_tail
                click.echo(f"{stretch.offset:>12}  {_gap(stretch)}", err=True)
                continue
            try:
                facts = reader.decoded(stretch)
            except JournalDamaged as damage:
                is_damaged = True
                click.echo(f"{stretch.offset:>12}  {damage.what}", err=True)
                continue
            for fact in facts:
                if as_lines:
                    click.echo(json.dumps({"offset": stretch.offset, "record": stretch.sequence} | as_json(fact)))
                else:
                    click.echo(f"{stretch.offset:>12}  {type(fact).__name__:<{_NAME_CHARS}}  {as_text(fact)}")
    sys.exit(_DAMAGED if is_damaged else 0)


@journal.command()
@click.argument("file", type=_FILE)
def check(file: str) -> None:
    """Read all of FILE and say whether every byte is what was written.

    \b
    Exit status:
      0  whole, or all that is wrong is a last record that was never complete
      1  damaged: where, and what is lost with it
      2  not a journal, or not one that this Loom can read
    """
    counts = _Counts()
    with _open(file) as reader:
        _says_header(reader)
        found = survey(reader, counts.add)
    _say_problems(found)
    for name, value in {"records": len(found.records), **vars(counts), "bytes": reader.source.size}.items():
        click.echo(f"{name:<13}{value:,}")
    if found.is_damaged:
        click.echo(f"{file} is damaged. `loom journal repair {file}` keeps what is whole and leaves out the rest.")
        sys.exit(_DAMAGED)
    click.echo(f"{file} is whole" + (", but for its end." if found.left_out else "."))


@journal.command()
@click.argument("file", type=_FILE)
def repair(file: str) -> None:
    """Make a journal of what is whole in FILE, which stays as FILE.damaged.

    Stop the server first. Nothing is overwritten: a second damaged file becomes FILE.damaged-2. A session of which a
    part of a plan is lost cannot go on; which these are is printed, all others go on where they were. Results that had
    finished and are lost from the journal are made again.
    """
    try:
        found, kept_as = repair_journal(file)
    except LoomError as error:
        raise _NoJournal(str(error)) from None
    if not kept_as:
        click.echo(f"{file} is whole: nothing to repair.")
        return
    _say_problems(found)
    click.echo(f"{file} holds the {len(found.records):,} records that are whole now; the old file is {kept_as}")


@dataclass
class _Counts:
    facts: int = 0
    incarnations: int = 0
    sessions: int = 0
    tasks: int = 0
    finished: int = 0

    def add(self, facts: Sequence[Fact]) -> None:
        self.facts += len(facts)
        for fact in facts:
            match fact:
                case TasksFinished():
                    self.finished += len(column(fact.tasks, "Q"))
                case PlanAdded():
                    self.tasks += len(fact.chunk.flags)
                case TasksMade():
                    self.tasks += len(column(fact.input_ends, "I"))
                case SessionBegan():
                    self.sessions += 1
                case ServerStarted():
                    self.incarnations += 1


def _open(file: str) -> JournalReader:
    if not os.path.exists(file):
        raise _NoJournal(f"there is no file {file}")
    try:
        return JournalReader(file, lenient=True)
    except JournalDamaged as damage:
        click.echo(f"{file} is damaged at offset {damage.offset}: {damage.what}, so nothing in it can be read.")
        sys.exit(_DAMAGED)
    except LoomError as error:
        raise _NoJournal(str(error)) from None


def _says_header(reader: JournalReader) -> bool:
    """Say that a copy of the header is damaged, if one is."""
    if reader.header is None or reader.header.damaged_at < 0:
        return False
    click.echo(f"offset {reader.header.damaged_at}: one of the two copies of the header is damaged", err=True)
    return True


def _gap(gap: Gap) -> str:
    if gap.is_tail:
        size = gap.end - gap.offset
        return f"{size:,} bytes of a record that is not complete: a crash left them, or a server is writing it just now"
    return f"damaged: {gap.what}"


def _say_problems(found: Survey) -> None:
    for gap in found.left_out:
        click.echo(f"offset {gap.offset}: {_gap(gap)}")
    for problem in found.past.problems:
        click.echo(problem)
