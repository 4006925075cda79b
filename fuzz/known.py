"""Which targets there are. None is imported before it is asked for: atheris has to be there first."""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Final

import fuzz.targets

REGRESSIONS: Final = Path(__file__).with_name("regressions")


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(fuzz.targets.__path__))


def target(name: str) -> ModuleType:
    """It has `one_input(data)` and `seeds()`."""
    return importlib.import_module(f"fuzz.targets.{name}")


def regressions(name: str) -> list[Path]:
    """Inputs that once broke something."""
    return sorted(path for path in (REGRESSIONS / name).glob("*") if path.is_file())
