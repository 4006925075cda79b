"""`loom alloc`: workers as jobs of a batch system."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import click
import msgspec
from msgspec.structs import replace

from loom.cli.options import trust_options
from loom.cli.values import checked_duration, checked_size
from loom.deploy.asking import Asker
from loom.deploy.batch.options import QueueOptions, System, check_options
from loom.deploy.batch.questions import (
    AddQueue,
    ListQueues,
    PauseQueue,
    QueueReport,
    Queues,
    RemoveQueue,
    Said,
    decode_answer,
    encode,
)
from loom.deploy.batch.queue import SYSTEMS, job_script, queue_directory
from loom.deploy.batch.system import clock
from loom.deploy.saying import counted
from loom.errors import ConnectError, LoomException
from loom.net.places import FixedPlace
from loom.net.trust import find_trust
from loom.resources import size_text
from loom.wire.keys import key_path
from loom.worker.hardware import parse_named

_DRY_ID: Final = "000000"  # of a queue that is none
_EXTRA: Final = "loom.alloc.arguments"
_SYSTEMS: Final = click.Choice(("slurm", "pbs"))


class _WithExtra(click.Command):
    """What follows -- is for the batch system."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[_EXTRA] = tuple(args[at + 1 :])
        try:
            return super().parse_args(ctx, args[:at])
        except click.NoSuchOption as error:
            said = f"{error.format_message()} What is for sbatch or qsub goes behind --, at the end."
            raise click.UsageError(said, ctx) from None

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- ARGUMENTS FOR sbatch OR qsub]"]


def _checked_resources(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    try:
        return parse_named(values)
    except LoomException as error:
        raise click.BadParameter(str(error)) from None


_DEFAULTS: Final = QueueOptions("slurm", "")
_QUEUE_OPTIONS: Final = (
    click.option("--name", metavar="NAME", help="What the queue is called.  [default: slurm or pbs]"),
    click.option(
        "--cpus",
        default=_DEFAULTS.cpus,
        show_default=True,
        type=click.IntRange(1),
        help="Cores of each worker; the job asks for them.",
    ),
    click.option("--gpus", default=0, type=click.IntRange(0), help="Gpus of each worker; the job asks for them."),
    click.option(
        "--mem",
        metavar="SIZE",
        callback=checked_size,
        help="Memory of each worker, such as 16GiB; jobs ask for it.",
    ),
    click.option(
        "--resource",
        "resources",
        metavar="NAME=N",
        multiple=True,
        callback=_checked_resources,
        help="Something of your own that each worker has. May be given several times.",
    ),
    click.option(
        "--workers-per-job",
        "n_workers",
        metavar="N",
        default=_DEFAULTS.n_workers,
        show_default=True,
        type=click.IntRange(1),
        help="Workers that one job has. With Slurm they may be on several nodes, with PBS they are on one.",
    ),
    click.option(
        "--backlog",
        metavar="N",
        default=_DEFAULTS.backlog,
        show_default=True,
        type=click.IntRange(1),
        help="Jobs that wait in the batch system at a time.",
    ),
    click.option(
        "--time-limit",
        "time_limit_s",
        metavar="DURATION",
        callback=checked_duration,
        help="Of each job, such as 30m, 2h or [D-]HH:MM:SS. Workers are given no task that does not fit into what is "
        "left.  [default: what the batch system gives]",
    ),
    click.option(
        "--max-workers",
        metavar="N",
        default=_DEFAULTS.max_workers,
        show_default=True,
        type=click.IntRange(1),
        help="Workers at a time, in all jobs.",
    ),
    click.option(
        "--min-workers",
        metavar="N",
        default=_DEFAULTS.min_workers,
        show_default=True,
        type=click.IntRange(0),
        help="Workers that are there also when nothing waits.",
    ),
    click.option(
        "--idle",
        "idle_s",
        metavar="DURATION",
        default=f"{_DEFAULTS.idle_s:g}s",
        show_default=True,
        callback=checked_duration,
        help="A job whose workers have had nothing to do for so long is let go; so is one that still waits when there "
        "has been nothing for it.",
    ),
    click.option(
        "--worker-option",
        "worker_options",
        metavar="OPTION",
        multiple=True,
        help="One more argument for loom-worker, such as --worker-option=--wdir=/scratch. May be given several times.",
    ),
    click.option(
        "--prologue",
        metavar="SHELL",
        multiple=True,
        help="Shell code for each job, before its workers: 'module load python', '. ~/env/bin/activate'. "
        "May be given several times.",
    ),
    click.option(
        "--python",
        metavar="COMMAND",
        default="",
        help="The Python with Loom, on the nodes; after a --prologue that finds it, just python3.  [default: that of "
        "the server]",
    ),
    click.option(
        "--directory",
        metavar="DIR",
        default="",
        help="Where the queue keeps its script, the server's address and the logs of its jobs, in a folder of its own. "
        "The nodes have to see it.  [default: ~/.local/state/loom/queues]",
    ),
    click.option(
        "--job-key-file",
        "job_key_file",
        metavar="FILE",
        default="",
        help="The key as the nodes see it, where that is another path than the server's.",
    ),
    click.option(
        "--job-address-file",
        "address_file",
        metavar="FILE",
        default="",
        help="The address file as the nodes see it: that of the server's --address-file, or the one in --directory "
        "under another path.  [default: the one in --directory]",
    ),
    click.option(
        "--lost-timeout",
        "lost_s",
        metavar="DURATION",
        default=f"{_DEFAULTS.lost_s:g}s",
        show_default=True,
        callback=checked_duration,
        help="Workers that have not found the server for so long end, and their job with them.",
    ),
    click.option(
        "--poll",
        "poll_s",
        metavar="DURATION",
        default=f"{_DEFAULTS.poll_s:g}s",
        show_default=True,
        callback=checked_duration,
        help="How often the batch system is asked about the jobs.",
    ),
)


def _queue_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_QUEUE_OPTIONS):
        command = option(command)
    return command


def _server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    port = click.argument("port", default=9010, type=click.IntRange(1, 65535))
    return click.argument("host", default="localhost")(port(trust_options(command)))


def _options_of(system: System, arguments: tuple[str, ...], values: dict[str, Any]) -> QueueOptions:
    """Checked. A ClickException where they make no sense."""
    values["name"] = values["name"] or system
    values["prologue"] = "\n".join(values["prologue"])
    values["mem"] = values["mem"] or 0
    values["key_file"] = values.pop("job_key_file")
    for name in ("directory", "key_file", "address_file"):
        values[name] = os.path.abspath(os.path.expanduser(values[name])) if values[name] else ""
    options = QueueOptions(system, arguments=arguments, **values)
    with _told():
        check_options(options)
    return options


@contextmanager
def _told() -> Iterator[None]:
    """Errors of Loom's are for people."""
    try:
        yield
    except LoomException as error:
        refused = isinstance(error, ConnectError) and "refused" in str(error)
        hint = " (is there a server? `loom server --host 0.0.0.0` starts one, on a login node)" if refused else ""
        raise click.ClickException(f"{error}{hint}") from None


def _ask(question: AddQueue | PauseQueue | RemoveQueue | ListQueues, server: dict[str, Any]) -> bytes:
    with _told():
        trust = find_trust(server["key_file"], tls=server["tls"], insecure=server["insecure"])
        with closing(Asker(FixedPlace(server["host"], server["port"]), trust)) as asker:
            return asker.allocations(encode(question), timeout_s=90)


def _do(question: AddQueue | PauseQueue | RemoveQueue, server: dict[str, Any]) -> tuple[str, ...]:
    """What the server notes about it."""
    answer = _ask(question, server)
    with _told():
        return decode_answer(answer, Said).notes


def _server_of(values: dict[str, Any]) -> dict[str, Any]:
    """Where the server is and how it is reached, taken out of all that was said."""
    return {name: values.pop(name) for name in ("host", "port", "key_file", "tls", "insecure")}


@click.group()
def alloc() -> None:
    """Let the server start workers as jobs of a batch system (Slurm, PBS), when tasks wait.

    An allocation queue is kept by the server: it submits jobs when tasks wait that nobody has time for, and lets them
    go when they have nothing to do. The server has to run where jobs are submitted (a login node), reachable from the
    nodes: `loom server --host 0.0.0.0`. Key and address travel by files in a shared home directory.

    \b
        loom alloc dry-run slurm --cpus 8 --time-limit 2h -- --partition=main
        loom alloc add slurm --cpus 8 --time-limit 2h -- --partition=main
        loom alloc list
        loom alloc remove slurm
    """


@alloc.command(cls=_WithExtra)
@click.argument("system", type=_SYSTEMS)
@_queue_options
@click.option(
    "--no-check", is_flag=True, help="Do not let Slurm say first whether it would take such jobs (sbatch --test-only)."
)
@_server_options
@click.pass_context
def add(context: click.Context, /, system: System, no_check: bool, **values: Any) -> None:
    """Add a queue to the server at HOST PORT. What follows -- goes to sbatch or qsub as it is."""
    server = _server_of(values)
    options = _options_of(system, context.meta[_EXTRA], values)
    notes = _do(AddQueue(options, try_first=not no_check), server)
    click.echo(f"the queue {options.name} is there: jobs are submitted when tasks wait")
    for note in notes:
        click.echo(f"  {note}")


@alloc.command(name="dry-run", cls=_WithExtra)
@click.argument("system", type=_SYSTEMS)
@_queue_options
@click.option("--key-file", metavar="FILE", help="The server's, if it has that option.")
@click.pass_context
def dry_run(context: click.Context, /, system: System, key_file: str | None, **values: Any) -> None:
    """Print the command that would submit a job, and the job's script. Nothing is submitted; no server is needed."""
    options = _options_of(system, context.meta[_EXTRA], values)
    with _told():
        key = os.path.abspath(key_path(key_file))
    options = replace(options, python=options.python or sys.executable)
    script = os.path.join(queue_directory(options, _DRY_ID), "job.sh")
    click.echo(f"# {shlex.join(SYSTEMS[system].submit_command(options, script))}")
    click.echo(f"# {script} ({_DRY_ID} is a number that each queue has of its own):\n")
    click.echo(job_script(options, _DRY_ID, key), nl=False)


@alloc.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_server_options
def list_queues(as_json: bool, **values: Any) -> None:
    """Say what the queues of the server at HOST PORT are, their jobs, and what went wrong."""
    answer = _ask(ListQueues(), _server_of(values))
    with _told():
        queues = decode_answer(answer, Queues).queues
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(queues), indent=2))
        return
    for queue in queues:
        click.echo("\n".join(_lines(queue)))
    if not queues:
        click.echo("no queues; `loom alloc add slurm` or `loom alloc add pbs` adds one")


@alloc.command()
@click.argument("name")
@_server_options
def pause(name: str, **values: Any) -> None:
    """Submit no more jobs for the queue NAME; those that are there go on."""
    _do(PauseQueue(name, True), _server_of(values))
    click.echo(f"the queue {name} is paused; `loom alloc resume {name}` lets it go on")


@alloc.command()
@click.argument("name")
@_server_options
def resume(name: str, **values: Any) -> None:
    """Let the queue NAME submit jobs again."""
    _do(PauseQueue(name, False), _server_of(values))
    click.echo(f"the queue {name} goes on")


@alloc.command()
@click.argument("name")
@click.option("--keep-logs", is_flag=True, help="Leave the logs of its jobs where they are.")
@_server_options
def remove(name: str, keep_logs: bool, **values: Any) -> None:
    """Remove the queue NAME from the server at HOST PORT, and cancel its jobs: what they ran is run again elsewhere."""
    notes = _do(RemoveQueue(name, keep_logs), _server_of(values))
    click.echo(f"the queue {name} is removed, its jobs are cancelled")
    for note in notes:
        click.echo(f"  {note}")


def _lines(queue: QueueReport) -> Iterator[str]:
    """A queue, for people."""
    options = queue.options
    state = "being removed" if queue.removing else "paused" if queue.paused else "active"
    n_running = sum(job.state == "running" for job in queue.jobs)
    n_waiting = len(queue.jobs) - n_running
    jobs = f"{counted(n_running, 'job')} running, {n_waiting} waiting (backlog {options.backlog})"
    workers = f"{counted(queue.n_connected, 'worker')} here"
    yield f"{options.name} ({SYSTEMS[options.system].title}), {state}: {jobs}; {workers}"
    each = [f"{options.cpus} cpus"]
    if options.gpus:
        each.append(f"{options.gpus} gpus")
    if options.mem:
        each.append(size_text(options.mem))
    each += [f"{amount} {name}" for name, amount in options.resources.items()]
    limit = "" if options.time_limit_s is None else f", {clock(options.time_limit_s)}"
    per_job = f"{counted(options.n_workers, 'worker')} of {', '.join(each)}{limit}"
    between = f"{options.min_workers} to {options.max_workers} workers"
    yield f"  each job: {per_job}; {between}; let go after {options.idle_s:g} s without work"
    if options.arguments:
        yield f"  arguments: {shlex.join(options.arguments)}"
    for job in queue.jobs:
        more = job.reason or (f"{job.left} left" if job.left else "")
        yield f"  job {job.id}  {job.state:<7}  {more}".rstrip()
    for problem in queue.problems:
        yield f"  problem: {problem}"
    yield f"  logs: {SYSTEMS[options.system].log_file(queue.directory)}"
