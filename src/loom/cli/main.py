"""`loom`: one command with verbs."""

from __future__ import annotations

import click

from loom import __version__


class _Lazy(click.Group):
    """Verbs are imported when they are used: `loom --help` must not load an event loop."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["alloc", "deploy", "journal", "key", "server", "sessions", "stats", "worker"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        match cmd_name:
            case "server":
                from loom.cli.server import main as server

                return server
            case "worker":
                from loom.cli.worker import main as worker

                return worker
            case "alloc":
                from loom.cli.alloc import alloc

                return alloc
            case "deploy":
                from loom.cli.deploy import deploy

                return deploy
            case "sessions":
                from loom.cli.sessions import sessions

                return sessions
            case "journal":
                from loom.cli.journal import journal

                return journal
            case "key":
                from loom.cli.key import key

                return key
            case "stats":
                from loom.cli.stats import stats

                return stats
        return None


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="loom")
def main() -> None:
    """Loom runs large pipelines of interconnected tasks.

    On one machine nothing needs to be started: `Client()` in a script brings its own server and worker. On several,
    run `loom server --host ADDRESS` on one and `loom worker ADDRESS PORT` on the others, then use
    `Client(ADDRESS, PORT)`. All of them need the same key file, ~/.config/loom/key: where the machines share no home
    directory, copy it (`loom key --help`). What does all that on hosts by ssh, in Slurm, PBS, Ray, Dask or Kubernetes:
    `loom deploy`.
    """


if __name__ == "__main__":
    main()
