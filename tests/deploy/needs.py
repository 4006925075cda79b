"""What tests of other engines need besides Python: where it is missing they are skipped, and say what to install.

With LOOM_TEST_ALL=1, as on a machine that has everything, they fail instead.
"""

import os
import shutil

import pytest


def needs(program: str, package: str) -> None:
    """Skip the test where this program is not installed; `package` is Debian's."""
    if shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is None:
        unless_all(f"there is no {program} here: apt install {package}")


def needs_root() -> None:
    if os.geteuid() != 0:
        unless_all("only root can do this")


def unless_all(reason: str) -> None:
    if os.environ.get("LOOM_TEST_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)
