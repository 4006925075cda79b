"""`loom-worker`."""

from __future__ import annotations

import os

import click

from loom import __version__
from loom.cli.daemon import LOG_LEVELS, run_daemon, set_up_log, stop_on_signals
from loom.limits import MAX_CPUS
from loom.wire.keys import load_key
from loom.worker.shell import WorkerShell
from loom.worker.workdir import WorkDirectory


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("host")
@click.argument("port", default=9010, type=click.IntRange(1, 65535))
@click.option("--cpus", type=click.IntRange(1, MAX_CPUS), help="Cores to offer.  [default: those this process may use]")
@click.option(
    "--wdir",
    metavar="DIR",
    help="Large objects and run directories go below it.  [default: /dev/shm or the directory for temporary files]",
)
@click.option("--nopin", is_flag=True, help="Accepted for HyperLoom's scripts: this version never pins.")
@click.option("--debug", is_flag=True, help="Log everything (the same as --log-level debug).")
@click.option("--log-level", default="info", show_default=True, type=click.Choice(LOG_LEVELS))
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.version_option(__version__, prog_name="loom-worker")
def main(
    host: str,
    port: int,
    cpus: int | None,
    wdir: str | None,
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

    async def serve() -> None:
        key = load_key()
        directory = WorkDirectory(wdir)
        try:
            shell = WorkerShell(key, cpus or len(os.sched_getaffinity(0)), directory)
            stop_on_signals(shell.stop, until_stdin_closes)
            await shell.run(host, port)
        finally:
            directory.remove()

    run_daemon(serve)


if __name__ == "__main__":
    main()
