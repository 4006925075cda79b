"""Loading plugins into this process: modules by name, libraries by path."""

import importlib
import os
import sys
import traceback

from loom.errors import LoomError
from loom.plugins.chosen import Plugins

_loaded: set[str] = set()


class PluginError(LoomError):
    """A plugin could not be loaded; the text says which one and why."""


def load(name: str) -> None:
    """Import `module`, or import it and call the function of `module:function`, which then registers its types.

    Modules are found on sys.path and in the current directory. A name that was loaded already is left alone.
    PluginError with the traceback where it fails.
    """
    if name in _loaded:
        return
    module, _, function = name.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = importlib.import_module(module)
        if function:
            for part in function.split("."):
                found = getattr(found, part)
            found()  # type: ignore[operator]
    except (Exception, SystemExit) as error:
        raise PluginError(f"the plugin {name} cannot be loaded:\n{_story(error)}") from error
    _loaded.add(name)


def load_native(path: str) -> None:
    """Load a shared library that was built with loom/plugin.h. PluginError where it is none, or not for this Loom."""
    path = os.path.abspath(path)
    if path in _loaded:
        return
    from loom.plugins.native import register_library  # it takes ctypes, which few need

    try:
        register_library(path)
    except LoomError as error:
        raise PluginError(f"the native plugin {path} cannot be loaded: {error}") from None
    _loaded.add(path)


def load_all(plugins: Plugins) -> None:
    """PluginError for the first that cannot be loaded."""
    for name in plugins.modules:
        load(name)
    for path in plugins.libraries:
        load_native(path)


def _story(error: BaseException) -> str:
    """The traceback without the frames of Loom and of the import machinery."""
    at = error.__traceback__
    while at is not None and at.tb_frame.f_code.co_filename.startswith((__file__, importlib.__file__, "<frozen ")):
        at = at.tb_next
    return "".join(traceback.format_exception(type(error), error, at)).rstrip()
