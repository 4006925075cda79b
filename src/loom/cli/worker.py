"""`loom-worker`."""

from __future__ import annotations

import logging
import os

import click

from loom import __version__
from loom.cli.daemon import LOG_LEVELS, run_daemon, set_up_log, stop_on_signals
from loom.errors import LoomError
from loom.limits import MAX_CPUS
from loom.plugins.chosen import NOT_LOADED_STATUS, Plugins
from loom.plugins.describing import Description, describe
from loom.plugins.discovery import installed_plugins
from loom.plugins.loading import PluginError
from loom.resources import parse_size
from loom.wire.keys import load_key
from loom.worker.hardware import find_hardware, parse_named
from loom.worker.shell import WorkerShell
from loom.worker.workdir import WorkDirectory

_log = logging.getLogger("loom.worker")


def _checked_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_size(value)
    except LoomError as error:
        raise click.BadParameter(str(error)) from None


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
@click.argument("host")
@click.argument("port", default=9010, type=click.IntRange(1, 65535))
@click.option("--cpus", type=click.IntRange(1, MAX_CPUS), help="Cores to offer.  [default: those this process may use]")
@click.option(
    "--gpus",
    type=click.IntRange(0, MAX_CPUS),
    help="Gpus to offer.  [default: those nvidia-smi lists and no other worker of this host has]",
)
@click.option(
    "--mem",
    metavar="SIZE",
    callback=_checked_size,
    help="Memory to offer, such as 16GiB.  [default: all that this machine or the control group allows]",
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
@click.option("--nopin", is_flag=True, help="Do not pin tasks to cores of their own.")
@click.option("--debug", is_flag=True, help="Log everything (the same as --log-level debug).")
@click.option("--log-level", default="info", show_default=True, type=click.Choice(LOG_LEVELS))
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.version_option(__version__, prog_name="loom-worker")
def main(
    host: str,
    port: int,
    cpus: int | None,
    gpus: int | None,
    mem: int | None,
    named: dict[str, int],
    wdir: str | None,
    modules: tuple[str, ...],
    libraries: tuple[str, ...],
    no_plugins: bool,
    nopin: bool,
    debug: bool,
    log_level: str,
    until_stdin_closes: bool,
) -> None:
    """Run a Loom worker that serves the server at HOST PORT.

    It may be started before the server: it tries until the server is there. It needs the same key as the server
    (~/.config/loom/key, or the file LOOM_KEY_FILE names), logs to stderr, and runs until SIGTERM, SIGINT or a client's
    terminate().
    """
    set_up_log("debug" if debug else log_level)
    if until_stdin_closes and not debug:  # the worker of a script: what functions log is for its user,
        logging.getLogger("loom.task").setLevel(logging.INFO)
        logging.getLogger("loom.worker.shell").setLevel(logging.ERROR)  # and what became of the server its client says
    plugins = _choose_plugins(modules, libraries, not no_plugins)
    described = _describe_plugins(plugins)

    async def serve() -> None:
        key = load_key()
        hardware = find_hardware(cpus, gpus, mem, named, not nopin)
        directory = WorkDirectory(wdir)
        try:
            shell = WorkerShell(key, hardware, directory, plugins, described.task_types)
            stop_on_signals(shell.stop, until_stdin_closes)
            await shell.run(host, port)
        finally:
            directory.remove()
            hardware.close()

    run_daemon(serve)


if __name__ == "__main__":
    main()
