"""Values of any msgspec type, made of decisions: structs that are added or changed later are met by themselves."""

import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, get_args

import msgspec
from msgspec import inspect

from fuzz.choices import WIDE_EDGES, Choices
from loom import messages
from loom.messages import Message

Hint = Callable[[], object]

_WORDS: Final = (
    "",
    "t/work",
    "loom/base/get",
    "loom/array/make",
    "loom/scheduler/dget",
    "mem",
    "gpus",
    "a:b",
    "ščř\0\n",
    "../x",
)
_LONGEST: Final = 300
_DEEPEST: Final = 8


@cache
def info_of(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def unions() -> dict[str, Any]:
    """Every union of messages in `loom.messages`, and every message that can stand on a wire alone, by name."""
    found: dict[str, Any] = {}
    for name, value in vars(messages).items():
        kinds = get_args(value) if isinstance(value, types.UnionType) else (value,)
        if all(map(_is_tagged, kinds)):
            found[name] = value
    return found


def _is_tagged(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Message) and kind.__struct_config__.tag is not None


class Values:
    """`hints`: by the name of a field, or `Struct.field`, what makes a value that is likely to mean something."""

    def __init__(self, choices: Choices, hints: Mapping[str, Hint] | None = None) -> None:
        self._choices = choices
        self._hints = hints or {}
        self._depth = 0

    def of(self, kind: Any) -> Any:
        """A value that such a type allows."""
        return self._make(info_of(kind))

    def changed(self, struct: msgspec.Struct) -> Any:
        """The same struct, but for one field."""
        info = info_of(type(struct))
        assert isinstance(info, inspect.StructType)
        fields = {name: getattr(struct, name) for name in struct.__struct_fields__}
        if info.fields:
            field = self._choices.of(info.fields)
            fields[field.name] = self._make(field.type)
        return type(struct)(**fields)

    def _make(self, info: inspect.Type) -> Any:
        choices = self._choices
        match info:
            case inspect.StructType():
                self._depth += 1
                try:
                    return info.cls(**{field.name: self._field(info.cls.__name__, field) for field in info.fields})
                finally:
                    self._depth -= 1
            case inspect.UnionType():
                return self._make(choices.of(info.types))
            case inspect.IntType():
                return self._int(info)
            case inspect.StrType():
                return self._str(info)
            case inspect.BytesType():
                return self._bytes()
            case inspect.BoolType():
                return choices.byte() & 1 == 1
            case inspect.NoneType():
                return None
            case inspect.FloatType():
                return float(choices.number())
            case inspect.ListType():
                return [self._make(info.item_type) for _ in range(self._count())]
            case inspect.VarTupleType():
                return tuple([self._make(info.item_type) for _ in range(self._count())])
            case inspect.TupleType():
                return tuple([self._make(item) for item in info.item_types])
            case inspect.DictType():
                return {self._make(info.key_type): self._make(info.value_type) for _ in range(self._count())}
            case _:
                raise NotImplementedError(f"no values of {info}")

    def _field(self, owner: str, field: inspect.Field) -> Any:
        hint = self._hints.get(f"{owner}.{field.name}") or self._hints.get(field.name)
        if hint is not None and not self._choices.one_in(16):
            return hint()
        return self._make(field.type)

    def _count(self) -> int:
        return 0 if self._depth > _DEEPEST else self._choices.below(5)

    def _int(self, info: inspect.IntType) -> int:
        number = self._choices.number()
        if self._choices.one_in(8) and info.ge is None:
            number = -number
        least = -(1 << 63) if info.ge is None else info.ge
        most = WIDE_EDGES[-1] if info.le is None else info.le
        return int(min(max(number, least), most))

    def _str(self, info: inspect.StrType) -> str:
        text = self._choices.of(_WORDS)
        if self._choices.one_in(16):
            text = "x" * self._choices.below(_LONGEST)
        return text[: info.max_length].ljust(info.min_length or 0, "x")

    def _bytes(self) -> bytes:
        """A column of numbers as often as not."""
        choices = self._choices
        if choices.byte() & 1:
            return choices.take(choices.below(24))
        width = choices.of((1, 2, 4, 8))
        largest = (1 << 8 * width) - 1
        return b"".join(min(choices.number(), largest).to_bytes(width, "little") for _ in range(choices.below(5)))
