"""Which plugins a worker is to have, as options of its command and of its executors' command."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

LOAD: Final = "--load"
LOAD_NATIVE: Final = "--load-native"


class Plugins(Struct, frozen=True):
    """`modules` as `module` or `module:function`, `libraries` as paths; loaded in this order, modules first."""

    modules: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.modules or self.libraries)

    def options(self) -> list[str]:
        """As a command line."""
        modules = [word for name in self.modules for word in (LOAD, name)]
        return modules + [word for path in self.libraries for word in (LOAD_NATIVE, path)]

    @classmethod
    def from_options(cls, options: Sequence[str]) -> "Plugins":
        """The inverse of `options`."""
        pairs = list(zip(options[::2], options[1::2], strict=True))
        return cls(
            tuple(value for option, value in pairs if option == LOAD),
            tuple(value for option, value in pairs if option == LOAD_NATIVE),
        )
