"""A directory for one process alone, which goes with it, however it ends."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
from typing import Final

from loom.deploy.processes import goes_with_us

_END_S: Final = 5.0  # how long the shell may take: somebody may have a copy of what it reads

# What it reads ends when the process has. It is no child of that process: engines kill those of theirs that they end.
_REMOVE: Final = 'exec 3<&0; (trap "" INT TERM HUP; read -r nothing <&3; rm -rf -- "$1") &'


class PrivateDirectory:
    """Mode 0700, below the directory for temporary files. When this process is killed, a shell beside it removes it."""

    def __init__(self, prefix: str) -> None:
        self.path = tempfile.mkdtemp(prefix=prefix)
        try:
            self._remover = subprocess.Popen(
                ["/bin/sh", "-c", _REMOVE, "loom-remover", self.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            os.rmdir(self.path)
            raise
        self._remover.wait()  # what stays is below it
        goes_with_us(self._remover)

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        assert self._remover.stdin is not None
        assert self._remover.stdout is not None
        self._remover.stdin.close()
        if not self._remover.stdout.closed:
            with self._remover.stdout as until_it_ends:
                poll = select.poll()
                poll.register(until_it_ends, select.POLLIN)  # it says nothing: this is its end
                poll.poll(1000 * _END_S)
