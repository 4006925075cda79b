"""`loom-worker`."""

from __future__ import annotations

import logging
import math
import os
import time
from functools import partial

import click

from loom import __version__
from loom.cli.daemon import LOG_LEVELS, run_daemon, set_up_log, stop_on_signals
from loom.cli.options import serving_options, trust_options
from loom.cli.supervisor import supervise
from loom.cli.values import checked_duration, checked_size
from loom.errors import LoomError
from loom.executors.deaths import NOT_LOADED_STATUS
from loom.limits import DRAIN_TIMEOUT_S, MAX_CPUS, MAX_PEER_CHARS
from loom.net.places import FilePlace, FixedPlace, Place
from loom.net.serving import Serving
from loom.net.trust import find_trust
from loom.plugins.chosen import Plugins
from loom.plugins.describing import Description, describe
from loom.plugins.discovery import installed_plugins
from loom.plugins.loading import PluginError
from loom.worker.hardware import find_hardware, parse_named
from loom.worker.shell import WorkerShell
from loom.worker.workdir import WorkDirectory, sweep_all

_log = logging.getLogger("loom.worker")


def _checked_names(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    try:
        return parse_named(values)
    except LoomError as error:
        raise click.BadParameter(str(error)) from None


class _NotLoaded(click.ClickException):
    exit_code = NOT_LOADED_STATUS


def _choose_plugins(modules: tuple[str, ...], libraries: tuple[str, ...], installed: bool) -> Plugins:
    """What to load, each once: what is installed, then what was named."""
    names = [*(installed_plugins() if installed else ()), *modules]
    return Plugins(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(map(os.path.abspath, libraries))))


def _describe_plugins(plugins: Plugins) -> Description:
    """What they define. A worker whose plugins cannot be loaded ends here, and says why."""
    if plugins:
        _log.info("loading plugins: %s", ", ".join((*plugins.modules, *plugins.libraries)))
    try:
        described = describe(plugins)
    except PluginError as error:
        raise _NotLoaded(str(error)) from None
    if plugins and not described.task_types and not described.data_types:
        _log.warning(
            "the plugins define no task types and no data types: is a function to be called (MODULE:FUNCTION)?"
        )
    return described


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("host", required=False)
@click.argument("port", default=9010, type=click.IntRange(1, 65535))
@click.option(
    "--address-file",
    metavar="FILE",
    help="FILE says where the server is, in place of HOST PORT: `loom server --address-file` writes it. It is read "
    "again at each connection, and waited for.",
)
@click.option("--cpus", type=click.IntRange(1, MAX_CPUS), help="Cores to offer.  [default: those this process may use]")
@click.option(
    "--gpus",
    type=click.IntRange(0, MAX_CPUS),
    help="Gpus to offer.  [default: those nvidia-smi lists and no other worker of this host has]",
)
@click.option(
    "--mem",
    metavar="SIZE",
    callback=checked_size,
    help="Memory that tasks may ask for (their requests for mem), such as 16GiB; for what objects may take see "
    "--memory.  [default: all that this machine or the control group allows]",
)
@click.option(
    "--memory",
    metavar="SIZE",
    callback=checked_size,
    help="Memory that stored objects may take, such as 8GiB, and no more than there is room for in --wdir; above it, "
    "those not used for longest go to disk. It does not limit tasks: see --mem.  [default: 60 % of what this machine "
    "or the control group has]",
)
@click.option(
    "--resource",
    "named",
    metavar="NAME=N",
    multiple=True,
    callback=_checked_names,
    help="Offer N of something of your own, for tasks that ask for it by that name. May be given several times.",
)
@click.option(
    "--wdir",
    metavar="DIR",
    help="Large objects and run directories go below it.  [default: /dev/shm or the directory for temporary files]",
)
@click.option(
    "--spill-dir",
    metavar="DIR",
    help="Objects above --memory go below it, where --wdir is in memory (tmpfs).  [default: the directory for "
    "temporary files, or /var/tmp where that is in memory, too]",
)
@click.option(
    "--load",
    "modules",
    metavar="MODULE[:FUNCTION]",
    multiple=True,
    help="Load a plugin: import a module, and call the function if one is named. May be given several times.",
)
@click.option(
    "--load-native",
    "libraries",
    metavar="LIBRARY",
    multiple=True,
    help="Load a native plugin: a shared library made with loom/plugin.h. May be given several times.",
)
@click.option("--no-plugins", is_flag=True, help="Do not load the plugins that are installed (entry points).")
@click.option("--name", metavar="NAME", help="What the worker is called.  [default: HOST:PID]")
@click.option(
    "--drain-timeout",
    metavar="SECONDS",
    default=DRAIN_TIMEOUT_S,
    show_default=True,
    type=click.FloatRange(min=0),
    help="On SIGTERM start nothing any more, hand objects over, and leave as soon as what runs is done, at last after "
    "so many seconds; what runs then is run again elsewhere. A second SIGTERM, or SIGINT, ends it at once. 0: leave at "
    "once.",
)
@click.option(
    "--time-limit",
    metavar="DURATION",
    callback=checked_duration,
    help="The worker has to be gone after this time (seconds, or such as 30m, 2h, 1h30m, or [D-]HH:MM:SS): it is given "
    "no task that would not fit, and drains itself when only the drain timeout is left.",
)
@click.option(
    "--lost-timeout",
    metavar="DURATION",
    callback=checked_duration,
    help="End when there was no server for so long.  [default: try for ever]",
)
@click.option("--nopin", is_flag=True, help="Do not pin tasks to cores of their own.")
@serving_options
@trust_options
@click.option("--debug", is_flag=True, help="Log everything (the same as --log-level debug).")
@click.option("--log-level", default="info", show_default=True, type=click.Choice(LOG_LEVELS))
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.version_option(__version__, prog_name="loom-worker")
def main(
    host: str | None,
    port: int,
    address_file: str | None,
    cpus: int | None,
    gpus: int | None,
    mem: int | None,
    named: dict[str, int],
    memory: int | None,
    wdir: str | None,
    spill_dir: str | None,
    modules: tuple[str, ...],
    libraries: tuple[str, ...],
    no_plugins: bool,
    name: str | None,
    drain_timeout: float,
    time_limit: float | None,
    lost_timeout: float | None,
    nopin: bool,
    serving: Serving,
    key_file: str | None,
    tls: bool,
    insecure: bool,
    debug: bool,
    log_level: str,
    until_stdin_closes: bool,
) -> None:
    """Run a Loom worker that serves the server at HOST PORT, or wherever --address-file says.

    It may be started before the server: it tries until the server is there. It needs the same key as the server:
    ~/.config/loom/key, found through a shared home directory, else copied from there (scp -p; `loom key --help`). It
    logs to stderr, and runs until SIGTERM, SIGINT or a client's terminate().

    Where the server has a journal and goes away, the worker runs what it has, keeps its results for up to an hour, and
    brings them to the server that is started again. Where it has none, the worker drops them and waits for the next.
    """
    began_s = time.monotonic()
    set_up_log("debug" if debug else log_level)
    if (host is None) == (address_file is None):
        one_of = "Say where the server is: HOST [PORT], or --address-file FILE"
        raise click.UsageError(f"{one_of}." if host is None else f"{one_of}, not both.")
    place: Place = FixedPlace(host, port) if host is not None else FilePlace(address_file or "")
    if name is not None and not (name.isprintable() and 0 < len(name) <= MAX_PEER_CHARS):
        raise click.UsageError(f"--name {name!r}: give printable text of 1 to {MAX_PEER_CHARS} characters.")
    if time_limit is not None and time_limit <= drain_timeout:
        raise click.UsageError(
            f"--time-limit ({time_limit:g} s) is not longer than --drain-timeout ({drain_timeout:g} s): the worker "
            "would never start a task. Give a shorter --drain-timeout."
        )
    supervise(partial(sweep_all, wdir, spill_dir))
    if until_stdin_closes and not debug:  # the worker of a script: what functions log is for its user,
        logging.getLogger("loom.task").setLevel(logging.INFO)
        logging.getLogger("loom.worker.shell").setLevel(logging.ERROR)  # and what became of the server its client says
    plugins = _choose_plugins(modules, libraries, not no_plugins)
    described = _describe_plugins(plugins)

    async def serve() -> None:
        trust = find_trust(key_file, tls=tls, insecure=insecure)
        _log.info("the key: %s", trust.key_text)
        hardware = find_hardware(cpus, gpus, mem, named, not nopin)
        directory = WorkDirectory(wdir, spill_dir)
        try:
            shell = WorkerShell(
                trust,
                hardware,
                directory,
                plugins,
                described.task_types,
                memory,
                name or "",
                drain_timeout,
                math.inf if lost_timeout is None else lost_timeout,
                serving,
            )
            stop_on_signals(shell.stop, until_stdin_closes, partial(shell.drain, drain_timeout))
            if time_limit is not None:
                shell.leave_by(began_s + time_limit, drain_timeout)
            await shell.run(place)
        finally:
            directory.remove()
            hardware.close()

    run_daemon(serve)


if __name__ == "__main__":
    main()
