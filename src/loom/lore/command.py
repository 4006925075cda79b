"""The command: from a trace's directory to a report."""

from __future__ import annotations

from pathlib import Path

import click

from loom import __version__
from loom.errors import LoomError
from loom.files import write_shown
from loom.lore import units
from loom.lore.fold import fold
from loom.lore.model import Report
from loom.lore.page import NO_CHARTS, has_charts, report_page
from loom.lore.runs import all_runs, one_run
from loom.trace.reader import read_trace

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=_FILE,
    help="Where to write the report.  [default: output.html, unless other files are asked for]",
)
@click.option("--json", "json_file", metavar="FILE", type=_FILE, help="Write the data behind the report as JSON.")
@click.option(
    "--chrome-trace", metavar="FILE", type=_FILE, help="Write a trace for https://ui.perfetto.dev or chrome://tracing."
)
@click.option("--title", help="The report's title.  [default: the name of the directory]")
@click.option(
    "--run",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show run N of the directory, 1 is the oldest.  [default: the newest]",
)
@click.option("--all-runs", "together", is_flag=True, help="Show all runs of the directory together.")
@click.option("--static", is_flag=True, help="Leave the interactive charts out: tables and a picture, a small file.")
@click.version_option(__version__, prog_name="loom.lore")
def main(
    directory: Path,
    output: Path | None,
    json_file: Path | None,
    chrome_trace: Path | None,
    title: str | None,
    run: int | None,
    together: bool,
    static: bool,
) -> None:
    """Make a report of the trace in DIR: one HTML file that opens in any browser, without a network.

    DIR is the directory that the script gave to set_trace:

    \b
        client.set_trace("/shared/mytrace")      # before submit
        result = client.submit_one(task)
        result.gather()

    \b
        python -m loom.lore /shared/mytrace      # writes output.html

    The report shows when each task ran on which worker and core, cores and memory in use, figures by label, failures,
    the plan, and what moved between workers. Tasks whose labels are the same up to the first colon share a colour. A
    trace may be read while the system runs: the report shows what has been written so far.

    Give each run a directory of its own. Where several runs have used one, the report shows the newest and says so.
    """
    if together and run is not None:
        raise click.UsageError("--run shows one run and --all-runs all of them: give one of the two")
    try:
        trace = read_trace(directory)
        trace = all_runs(trace) if together else one_run(trace, run)
    except LoomError as error:
        raise click.ClickException(str(error)) from None
    report = fold(trace)
    if json_file is not None:
        from loom.lore.tojson import as_json

        _write(json_file, as_json(report))
    if chrome_trace is not None:
        from loom.lore.chrome import chrome_trace as events

        _write(chrome_trace, events(report))
    if output is not None or (json_file is None and chrome_trace is None):
        with_charts = has_charts() and not static
        page = report_page(report, title or f"Loom report: {directory.resolve().name}", with_charts)
        _write(output or Path("output.html"), page.encode("utf-8", "backslashreplace"))
        if not with_charts and not static:
            click.echo(NO_CHARTS, err=True)
    _say_what_is_there(report)


def _write(path: Path, content: bytes) -> None:
    try:
        write_shown(path, content)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}. Name another file") from None
    click.echo(f"{path}  {units.size(len(content))}")


def _say_what_is_there(report: Report) -> None:
    for note in report.notes:
        click.echo(f"Note: {note}", err=True)
    if not len(report.tasks):
        click.echo("No task has run while this trace was written. Call client.set_trace before submit.", err=True)
