"""What a declared type says about its values: can they change in place, can they be keys, is pydantic in charge?

"Form" is the typing documentation's word for whatever may stand in an annotation: a class, `int | None`, `list[int]`…
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
import typing_extensions
from msgspec import inspect

__all__ = ["arms", "is_immutable", "is_pydantic", "unfit_parts", "unwrapped", "why_not_a_key"]

_PLAIN = (
    inspect.StrType,
    inspect.IntType,
    inspect.BoolType,
    inspect.NoneType,
    inspect.BytesType,
    inspect.UUIDType,
    inspect.DateType,
    inspect.TimeDeltaType,
    inspect.EnumType,
    inspect.LiteralType,
)
_NOT_JSON_KEYS = (
    inspect.BoolType,
    inspect.NoneType,
    inspect.TupleType,
    inspect.VarTupleType,
    inspect.NamedTupleType,
    inspect.FrozenSetType,
    inspect.StructType,
    inspect.DataclassType,
)
_IMMUTABLE = (*_PLAIN, inspect.FloatType, inspect.DecimalType, inspect.DateTimeType, inspect.TimeType)


def unwrapped(form: object) -> object:
    """The form behind aliases: `NewType`, `type X = …`, and `Annotated` unless msgspec constrains it there."""
    while True:
        if isinstance(form, typing.NewType):
            form = form.__supertype__
        elif isinstance(form, typing_extensions.TypeAliasType):
            form = form.__value__
        elif get_origin(form) is Annotated and not any(isinstance(note, msgspec.Meta) for note in get_args(form)[1:]):
            form = get_args(form)[0]
        else:
            return form


def arms(form: object) -> tuple[object, ...]:
    """The members of a union; of anything else the form itself."""
    form = unwrapped(form)
    if get_origin(form) in (Union, types.UnionType):
        return tuple(arm for member in get_args(form) for arm in arms(member))
    return (form,)


def is_pydantic(form: object) -> bool:
    """Whether the form is, or mentions anywhere in its parts, a pydantic model or pydantic dataclass."""
    return any(hasattr(part, "__pydantic_validator__") for part in _mentioned(form, {}))


def _mentioned(form: object, seen: dict[int, object]) -> Iterator[object]:
    form = unwrapped(form)
    if id(form) in seen:  # by identity, for forms need not be hashable; kept in there, so that no id is used again
        return
    seen[id(form)] = form
    yield form
    parts = [get_origin(form), *get_args(form)]
    if isinstance(form, type) and _has_fields(form) and not hasattr(form, "__pydantic_validator__"):
        try:
            parts += typing.get_type_hints(form, include_extras=True).values()
        except Exception:  # unresolvable names: whoever builds the codec says so better
            pass
    for part in parts:
        yield from _mentioned(part, seen)


def _has_fields(kind: type) -> bool:
    return (
        issubclass(kind, msgspec.Struct)
        or dataclasses.is_dataclass(kind)
        or typing_extensions.is_typeddict(kind)
        or hasattr(kind, "_fields")
    )


def unfit_parts(form: object, format: str) -> Iterator[str]:
    """What msgspec would let pass at declaration, and refuse for each message: unknown classes, odd keys in JSON."""
    for info in _parts(inspect.type_info(unwrapped(form)), set()):
        if isinstance(info, inspect.CustomType):
            yield f"{info.cls!r} is unknown to msgspec"
        elif isinstance(info, inspect.DictType) and format == "json" and isinstance(info.key_type, _NOT_JSON_KEYS):
            yield "in JSON the keys of a dict must be text or numbers (codec='msgpack' takes any)"


def _parts(info: inspect.Type, seen: set[int]) -> Iterator[inspect.Type]:
    if id(info) in seen:
        return
    seen.add(id(info))
    yield info
    for name in info.__struct_fields__:
        found = getattr(info, name)
        for part in found if isinstance(found, tuple) else (found,):
            if isinstance(part, inspect.Field):
                part = part.type
            if isinstance(part, inspect.Type):
                yield from _parts(part, seen)


def is_immutable(form: object) -> bool:
    """Whether values of this form, or direct instances of this class, cannot change in place.

    Scalars, enumeration members, and tuples, frozen sets, frozen Structs, frozen dataclasses and NamedTuples that
    declare only such parts. All else (pydantic models, unknown classes, a bare `tuple`) is taken to be mutable.
    """
    try:
        return _is_immutable(form)
    except Exception:  # what msgspec cannot inspect (or Python cannot hash) is unknown, hence mutable
        return False


@functools.lru_cache(maxsize=1024)
def _is_immutable(form: object) -> bool:
    return not is_pydantic(form) and _immutable(inspect.type_info(unwrapped(form)), set())


def _immutable(info: inspect.Type, seen: set[int]) -> bool:
    if isinstance(info, _IMMUTABLE) or id(info) in seen:
        return True
    seen.add(id(info))
    match info:
        case inspect.Metadata():
            return _immutable(info.type, seen)
        case inspect.UnionType():
            return all(_immutable(arm, seen) for arm in info.types)
        case inspect.TupleType():
            return all(_immutable(item, seen) for item in info.item_types)
        case inspect.VarTupleType() | inspect.FrozenSetType():
            return _immutable(info.item_type, seen)
        case inspect.StructType() | inspect.DataclassType() | inspect.NamedTupleType():
            return _is_frozen(info) and all(_immutable(field.type, seen) for field in info.fields)
        case _:
            return False


def why_not_a_key(form: object) -> str | None:
    """Why values of this form cannot be keys, in words that follow "because"; None if they can.

    A key must be hashable, and equal keys must have equal bytes.
    """
    if is_pydantic(form):
        return "pydantic does not promise equal bytes for equal models: use a frozen Struct or dataclass"
    return _not_a_key(inspect.type_info(unwrapped(form)), set())


def _not_a_key(info: inspect.Type, seen: set[int]) -> str | None:
    if isinstance(info, _PLAIN) or id(info) in seen:
        return None
    seen.add(id(info))
    parts: tuple[inspect.Type, ...] = ()
    match info:
        case inspect.Metadata():
            parts = (info.type,)
        case inspect.UnionType():
            if sum(isinstance(arm, (inspect.IntType, inspect.BoolType)) for arm in info.types) > 1:
                return "1 == True, but their bytes differ"
            parts = info.types
        case inspect.TupleType():
            parts = info.item_types
        case inspect.VarTupleType():
            parts = (info.item_type,)
        case inspect.StructType() | inspect.DataclassType() | inspect.NamedTupleType():
            if not _is_frozen(info):
                return f"{info.cls.__name__} is not frozen: declare it with frozen=True"
            if not _equal_by_all_fields(info):
                return f"{info.cls.__name__} does not compare by all of its fields"
            parts = tuple(field.type for field in info.fields)
        case inspect.FloatType():
            return "0.0 == -0.0 and 1 == 1.0, but their bytes differ: use an int of a smaller unit, or a str"
        case inspect.DecimalType():
            return "Decimal('1.0') == Decimal('1.00'), but their bytes differ: use an int of a smaller unit, or a str"
        case inspect.DateTimeType() | inspect.TimeType():
            if info.tz is not False:
                return (
                    "equal times in different zones have different bytes: use an int of milliseconds, a date, or "
                    "Annotated[datetime, msgspec.Meta(tz=False)]"
                )
        case inspect.SetType() | inspect.FrozenSetType():
            return "the order of a set is left to chance: use a tuple, sorted"
        case inspect.DictType() | inspect.TypedDictType() | inspect.ListType():
            return "it cannot be hashed: use a tuple, a NamedTuple or a frozen Struct"
        case _:
            return "equal values may have different bytes"
    return next((why for part in parts if (why := _not_a_key(part, seen))), None)


def _is_frozen(info: inspect.StructType | inspect.DataclassType | inspect.NamedTupleType) -> bool:
    cls: Any = get_origin(info.cls) or info.cls
    match info:
        case inspect.StructType():
            return bool(cls.__struct_config__.frozen)
        case inspect.DataclassType():
            return bool(cls.__dataclass_params__.frozen)
        case _:
            return True


def _equal_by_all_fields(info: inspect.StructType | inspect.DataclassType | inspect.NamedTupleType) -> bool:
    cls: Any = get_origin(info.cls) or info.cls
    match info:
        case inspect.StructType():
            return bool(cls.__struct_config__.eq)
        case inspect.DataclassType():
            return bool(cls.__dataclass_params__.eq) and all(field.compare for field in dataclasses.fields(cls))
        case _:
            return True
