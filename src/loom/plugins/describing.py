"""Asking a process of its own what plugins define: a worker never runs their code."""

import os
import sys
from collections.abc import Sequence

from msgspec import Struct
from msgspec.json import Decoder

from loom.plugins.chosen import Plugins
from loom.plugins.loading import PluginError


class Description(Struct):
    """One line of the answer. `loading`: what is being loaded now; `error`: why that is not possible; at the end the
    symbols that all of them define.
    """

    loading: str = ""
    error: str = ""
    task_types: list[str] = []
    data_types: list[str] = []


def describe(plugins: Plugins, import_path: Sequence[str] = ()) -> Description:
    """The symbols that these plugins define. PluginError where one cannot be loaded, or ends the process that tries.

    `import_path`: where modules are looked for besides the usual places.
    """
    if not plugins:
        return Description()
    import subprocess  # a worker without plugins does without

    done = subprocess.run(
        [sys.executable, "-m", "loom.plugins.describe", *plugins.options()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(import_path)} if import_path else None,
        check=False,
    )
    said = [Decoder(Description).decode(line) for line in done.stdout.splitlines()]
    last = said[-1] if said else Description(loading="of any name")
    if last.error:
        raise PluginError(last.error)
    if last.loading:
        end = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise PluginError(f"the plugin {last.loading} cannot be loaded: the process that tried ended with {end}")
    return last
