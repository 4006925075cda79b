"""Just as much YAML as manifests need: mappings, lists, text, whole numbers, true and false.

Text that could be read as something else stands in double quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

Value = str | int | bool | Mapping[str, "Value"] | list["Value"]

# A letter or slash first and only harmless characters after it; a dot, colon or dash may mean something at an end.
_PLAIN: Final = re.compile(r"[A-Za-z/](?:[\w./$()=-]*[\w)])?", re.ASCII)
_WORDS: Final = frozenset(("true", "false", "yes", "no", "on", "off", "null", "y", "n"))  # in YAML 1.1 or 1.2


def to_yaml(value: Mapping[str, Value]) -> str:
    """One document, without the line `---`, in block style; keys (of some 100 characters at most) in their order."""
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Value) -> Iterator[str]:
    """Of a mapping or list that is not empty."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if _is_block(inner):
                yield f"{_text(key)}:"
                yield from (f"  {line}" for line in _lines(inner))
            else:
                yield f"{_text(key)}: {_scalar(inner)}"
    else:
        assert isinstance(value, list)
        for inner in value:
            lines = _lines(inner) if _is_block(inner) else iter((_scalar(inner),))
            yield f"- {next(lines)}"
            yield from (f"  {line}" for line in lines)


def _is_block(value: Value) -> bool:
    return isinstance(value, Mapping | list) and bool(value)


def _scalar(value: Value) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return _text(value)
        case Mapping():
            return "{}"
        case _:
            return "[]"


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return f'"{"".join(map(_quoted, text))}"'


def _quoted(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if " " <= character <= "~":
        return character
    if character == "\n":
        return "\\n"
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"
