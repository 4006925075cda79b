"""Plugins that are installed: entry points of the group `loom.plugins`, found without loading anything."""

import os
import sys
from typing import Final

GROUP: Final = "loom.plugins"


def installed_plugins() -> list[str]:
    """The entry points' values, `module` or `module:function`, in the order of their names.

    Where there is none this costs a look into each distribution's list, and not the import of importlib.metadata, which
    takes longer than all the rest of a worker's start-up for plugins.
    """
    if not any(map(_may_have_some, sys.path)):
        return []
    from importlib.metadata import entry_points

    found = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return [f"{point.module}:{point.attr}" if point.attr else point.module for point in found]


def _may_have_some(directory: str) -> bool:
    """Whether some distribution there speaks of the group."""
    try:
        with os.scandir(directory or ".") as entries:
            infos = [entry.path for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
    except NotADirectoryError:  # an archive: let importlib look
        return True
    except OSError:
        return False
    return any(_mentions(f"{info}/entry_points.txt") for info in infos)


def _mentions(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return GROUP.encode() in file.read()
    except OSError:
        return False
