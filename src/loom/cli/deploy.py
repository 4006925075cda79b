"""`loom deploy`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from loom.cli.options import key_file_option
from loom.deploy.kubernetes import SERVICES, Settings, render, secret_command
from loom.errors import LoomError
from loom.wire.keys import key_path, load_key

_CLASSES: Final = {
    "local": "loom.deploy.LocalCluster",
    "ssh": "loom.deploy.SSHCluster",
    "slurm": "loom.deploy.SlurmCluster, or `loom alloc add slurm`",
    "pbs": "loom.deploy.PBSCluster, or `loom alloc add pbs`",
    "ray": "loom.deploy.RayCluster",
    "dask": "loom.deploy.DaskCluster",
}


class _OnlyKubernetes(click.Group):
    """The others are classes; who looks for them here is told so."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0].lower() in _CLASSES:
            raise click.UsageError(f"That is used from Python: {_CLASSES[args[0].lower()]}; `loom deploy` says more.")
        return super().resolve_command(ctx, args)


@click.group(cls=_OnlyKubernetes, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def deploy(context: click.Context) -> None:
    """Loom on machines and engines that are there already.

    Most are used from Python: a cluster is started, scaled and ended by the script that uses it, and
    `Client(cluster)` is a client of it.

    \b
      this machine   loom.deploy.LocalCluster(n_workers=2)      what Client() uses
      ssh            loom.deploy.SSHCluster(["host1", "host2"]) docs/ssh.md
      Slurm          loom.deploy.SlurmCluster(...), loom alloc  docs/slurm.md
      PBS            loom.deploy.PBSCluster(...), loom alloc    docs/pbs.md
      Ray            loom.deploy.RayCluster()                   docs/ray.md
      Dask           loom.deploy.DaskCluster(...)               docs/dask.md
      Kubernetes     loom deploy kubernetes --render            docs/kubernetes.md
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@deploy.command()
@click.option("--render", "is_render", is_flag=True, help="Write the manifests. Without it nothing is done.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write them into FILE, made or replaced.  [default: standard output]",
)
@click.option("--image", help="The image that has Loom and what your tasks need; see Containerfile.  [required]")
@click.option("--name", default="loom", show_default=True, help="What all objects are named after.")
@click.option("--namespace", default="", help="Where they belong.  [default: that of whoever applies them]")
@click.option("--workers", default=2, show_default=True, help="How many workers, with --max-workers at least.")
@click.option(
    "--max-workers",
    default=0,
    help="Up to so many, as many as their cores are busy (a HorizontalPodAutoscaler on cpu, which needs the cluster's "
    "metrics server).  [default: always as many as --workers]",
)
@click.option("--cpus", default=2, show_default=True, help="Cores of each worker.")
@click.option("--memory", default="4GiB", show_default=True, help="Memory of each worker, tasks and objects together.")
@click.option("--store", default="", help="How much of it objects may take (a /dev/shm).  [default: half of it]")
@click.option("--gpus", default=0, show_default=True, help="Gpus of each worker (nvidia.com/gpu).")
@click.option("--server-memory", default="2GiB", show_default=True, help="Memory of the server.")
@click.option(
    "--journal", default="10GiB", show_default=True, help="Size of the volume that the server keeps its journal on."
)
@click.option("--no-journal", is_flag=True, help="No journal, no volume: sessions end with the server's pod.")
@click.option("--storage-class", default="", help="Of that volume.  [default: the cluster's]")
@click.option(
    "--service",
    default=SERVICES[0],
    show_default=True,
    type=click.Choice(SERVICES),
    help="How the server is reached. All but ClusterIP open it to the outside, for clients with the key.",
)
@click.option("--secret", default="", help="Name of the secret that holds the key.  [default: NAME-key]")
@click.option("--pull-secret", default="", help="Name of the secret with which the image is pulled.")
@click.option(
    "--drain-timeout",
    "drain_s",
    metavar="SECONDS",
    default=60,
    show_default=True,
    help="A worker whose pod is to go finishes what it runs and hands its objects over, for so long at most.",
)
@click.option(
    "--cpu-target", metavar="PERCENT", default=70, show_default=True, help="How busy the autoscaler keeps the cores."
)
@click.option("--no-network-policy", is_flag=True, help="Leave out the policy that lets in this namespace's pods only.")
@click.option(
    "--with-key",
    metavar="FILE",
    help="Put the key in FILE into the manifests, as a secret. Whoever reads them can then run programs as your pods "
    "do. Without it, they say which kubectl command makes the secret from the key file.",
)
@key_file_option
def kubernetes(
    is_render: bool,
    output: str | None,
    image: str | None,
    name: str,
    namespace: str,
    workers: int,
    max_workers: int,
    cpus: int,
    memory: str,
    store: str,
    gpus: int,
    server_memory: str,
    journal: str,
    no_journal: bool,
    storage_class: str,
    service: str,
    secret: str,
    pull_secret: str,
    drain_s: int,
    cpu_target: int,
    no_network_policy: bool,
    with_key: str | None,
    key_file: str | None,
) -> None:
    """Write manifests for Kubernetes: a server with its journal on a volume, its service, workers, their autoscaler.

    \b
      podman build -t registry.example/me/loom -f Containerfile . && podman push registry.example/me/loom
      loom deploy kubernetes --render --image registry.example/me/loom --max-workers 10 > loom.yaml
      kubectl create secret generic loom-key --from-file=key=$(loom key show-path)
      kubectl apply -f loom.yaml

    In the cluster a script uses Client("loom-server"), in a pod that has the key, too; from elsewhere Client() with the
    port that `kubectl port-forward service/loom-server 9010` opens here.

    The manifests are valid for the schemas of the Kubernetes API (1.25 to 1.37). They were not tried on a real
    cluster.
    """
    if not is_render:
        raise click.UsageError("Nothing is applied from here: --render writes what `kubectl apply -f` takes.")
    if not image:
        raise click.UsageError("--image is missing: the image that has Loom in it (Containerfile builds one).")
    try:
        settings = Settings(
            image=image,
            name=name,
            namespace=namespace,
            workers=workers,
            max_workers=max_workers,
            cpus=cpus,
            memory=memory,
            store=store,
            gpus=gpus,
            server_memory=server_memory,
            journal="" if no_journal else journal,
            storage_class=storage_class,
            service=service,
            secret=secret,
            pull_secret=pull_secret,
            drain_s=drain_s,
            cpu_target=cpu_target,
            network_policy=not no_network_policy,
        )
        own = os.path.abspath(key_path(key_file))
        text = render(settings, own, "" if with_key is None else f"{load_key(with_key).hex()}\n")
    except LoomError as error:
        raise click.ClickException(str(error)) from None
    _write(text, output, is_secret=with_key is not None)
    if with_key is None:
        click.echo(f"The key is not in it. If the secret is not there yet: {secret_command(settings, own)}", err=True)
    else:
        click.echo("The key is in it: let nobody else read it, and do not put it under version control.", err=True)


def _write(text: str, output: str | None, *, is_secret: bool) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        if is_secret:  # for its owner alone, from the first byte on
            draft = Path(f"{output}.{os.getpid()}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            draft.replace(output)
        else:
            Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from None
