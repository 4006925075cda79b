"""The process that finds out what plugins define.

    python -m loom.plugins.describe --load my_module --load-native ./libmine.so

writes a line of JSON for each step: what it begins to load, then what all of them define, or why one cannot be loaded.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from typing import Final

from msgspec.json import Encoder

from loom.plugins.chosen import Plugins
from loom.plugins.describing import Description
from loom.plugins.loading import PluginError, load, load_native
from loom.plugins.types import DATA_SYMBOLS, TASK_SYMBOLS

_PR_SET_PDEATHSIG: Final = 1


def _steps(plugins: Plugins) -> Iterator[Description]:
    try:
        for name in plugins.modules:
            yield Description(loading=_sendable(name))
            load(name)
        for path in plugins.libraries:
            yield Description(loading=_sendable(path))
            load_native(path)
    except PluginError as error:
        yield Description(error=_sendable(str(error)))
    else:
        yield Description(task_types=TASK_SYMBOLS, data_types=DATA_SYMBOLS)


def _sendable(text: str) -> str:
    """Valid text, whatever the names of files are."""
    return text.encode("utf-8", "backslashreplace").decode()


def main() -> None:
    """Load what the arguments say; standard output is for the answer only, whatever the plugins print."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # not to outlive the worker that waits for it
    answer = os.dup(1)
    os.dup2(2, 1)
    encode = Encoder().encode
    for step in _steps(Plugins.from_options(sys.argv[1:])):
        os.write(answer, encode(step) + b"\n")
    sys.stdout.flush()
    os._exit(0)  # threads that plugins have started do not hold it up


if __name__ == "__main__":
    main()
