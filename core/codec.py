"""Codecs: how keys and values become bytes and come back, chosen by their declared type.

Design. `codec_for` does all its thinking once, at declaration, and returns an object whose `encode` and `decode`
attributes are the fastest callables there are: for JSON the bound C methods of msgspec's own encoder and typed
decoder, for `str` and `bytes` the C methods of those classes, for pydantic those of its Rust core. No Python function
stands between, so nothing translates their errors on the way either. A caller catches `DECODE_ERRORS` around
`codec.decode(data)` and raises what `explain` makes of it; likewise `ENCODE_ERRORS` and `explain_encode`. Both tuples
hold `Exception`, because a type's own code (`__post_init__`, a validator, a codec object) runs in there.

`encode` does not check that a value is of the declared type: the type checker of the program did, and tables ask
`checker_for`, which tells what would not come back as it went in.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar, get_args, get_origin

import msgspec
from typing_extensions import TypeForm

from .dotted import load
from .errors import ConfigurationError, DecodeError, EncodeError, WrongType
from .text import shortened
from .type_facts import arms, is_pydantic, unfit_parts, unwrapped, why_not_a_key

__all__ = [
    "DECODE_ERRORS",
    "ENCODE_ERRORS",
    "Codec",
    "Form",
    "TypeCodec",
    "checker_for",
    "codec_for",
    "explain",
    "explain_encode",
    "key_codec_for",
]

T = TypeVar("T")

DECODE_ERRORS: tuple[type[Exception], ...] = (Exception,)
ENCODE_ERRORS: tuple[type[Exception], ...] = (Exception,)

FORMATS = ("json", "msgpack", "raw")


Form = Literal["json", "text", "bytes"]
"""How encoded keys or values may be shown: JSON text, UTF-8 text, or bytes that only the codec itself reads."""


class Codec(Protocol[T]):
    """What `codec=` takes. Both raise any exception for what they cannot do."""

    def encode(self, value: T, /) -> bytes: ...
    def decode(self, data: bytes, /) -> T: ...


class TypeCodec(Generic[T]):
    """A codec bound to a declared type.

    encode, decode: the fastest callables (see the module's docstring). type_name: the declared type in words.
    format: "json", "msgpack", "raw", or the class of the codec object with "()". form: how its bytes may be shown.
    """

    __slots__ = ("decode", "encode", "form", "format", "type_name")

    def __init__(
        self,
        encode: Callable[[T], bytes],
        decode: Callable[[bytes], T],
        type_name: str,
        format: str,
        form: Form | None = None,
    ) -> None:
        self.form: Form = form or ("json" if format == "json" else "bytes")
        self.encode = encode
        self.decode = decode
        self.type_name = type_name
        self.format = format

    def __repr__(self) -> str:
        return f"TypeCodec({self.type_name}, {self.format})"


def codec_for(type_: TypeForm[T], codec: str | Codec[T] | None = None) -> TypeCodec[T]:
    """The codec of a declared type.

    Without `codec`, `bytes` travel as they are, `str` as UTF-8 and everything else as JSON. `codec` may be "json",
    "msgpack", "raw" (bytes and str only), an object with `encode` and `decode`, or a dotted path to one.
    Raises `ConfigurationError` for a type or a codec that cannot work, naming it and what would.
    """
    name = _type_name(type_)
    if codec is not None and codec not in FORMATS:
        return _by_object(codec, name)
    base = _text_or_bytes(type_)
    if base is not None and codec in (None, "raw"):
        return _raw(type_, base, name)
    if codec == "raw":
        raise ConfigurationError(f"codec='raw' takes bytes or str, not {name}; use 'json', 'msgpack' or a codec object")
    format = "msgpack" if codec == "msgpack" else "json"
    return _pydantic(type_, name, format) if is_pydantic(type_) else _msgspec(type_, name, format)


def key_codec_for(type_: TypeForm[T], codec: str | Codec[T] | None = None) -> TypeCodec[T]:
    """The codec of a declared key type: as `codec_for`, but equal keys are sure to have equal bytes.

    Raises `ConfigurationError` for types that cannot promise it. (A codec object answers for itself.) `float` alone
    is made to: -0.0 and whole numbers of type int are encoded as their equal float, what is not finite is refused.
    """
    bound = codec_for(type_, codec)
    if bound.format not in FORMATS:
        return bound
    if unwrapped(type_) is float:
        return _float_keys(bound)
    why = why_not_a_key(type_)
    if why is not None:
        raise ConfigurationError(f"{bound.type_name} cannot be a key, because {why}; or pass a codec object")
    return bound


def explain(codec: TypeCodec[T], error: Exception, data: bytes) -> DecodeError:
    """What to raise when `codec.decode(data)` has raised `error`: what was expected, and the start of what came."""
    if isinstance(error, DecodeError):
        return error
    more = "…" if len(data) > _SHOWN else ""
    return DecodeError(
        f"expected {codec.type_name} ({codec.format}): {_reason(error)}; "
        f"got {len(data)} bytes: {bytes(data[:_SHOWN])!r}{more}"
    )


def explain_encode(codec: TypeCodec[T], error: Exception, value: object) -> EncodeError:
    """What to raise when `codec.encode(value)` has raised `error`: what was expected, and the class of what came."""
    if isinstance(error, EncodeError):
        return error
    return EncodeError(f"expected {codec.type_name} ({codec.format}), got {type(value).__name__}: {_reason(error)}")


def checker_for(
    type_: TypeForm[T], codec: str | Codec[T] | None = None
) -> tuple[type | None, Callable[[object], None]]:
    """How to tell, before it is too late, that a value would not come back from its bytes as it is.

    Returns `(exact, check)`: if `value.__class__ is exact` the value is right, else `check(value)` decides and raises
    `WrongType`. (`exact` is None if no class alone proves it.) `check` takes other exact classes by a look-up, and
    anything else through the codec and back: it must return equal and of its own class; only an int may pass for a
    float. That costs as much as the value is large. The fields of a Struct, dataclass or model whose class is exact
    are left to the program's type checker.
    """
    bound = codec_for(type_, codec)
    exact = [arm for arm in arms(type_) if isinstance(arm, type) and _proves(arm, bound.format)]
    proven = frozenset(exact)
    finite_floats = bound.format == "json" and float in arms(type_)

    def check(value: object) -> None:
        if value.__class__ in proven or (finite_floats and type(value) is float and math.isfinite(value)):
            return
        problem = _round_trip_problem(bound, value)
        if problem is not None and finite_floats and type(value) is float:
            raise WrongType(f"expected {bound.type_name}, got {value}: JSON has no such number (codec='msgpack' has)")
        if problem is not None and bound.format == "raw":  # what str.encode says of it helps nobody
            raise WrongType(f"expected {bound.type_name}, got {type(value).__name__}")
        if problem is not None:
            raise WrongType(f"expected {bound.type_name}, got {type(value).__name__}: {problem}")

    return next(iter(exact), None), check


_SHOWN = 60  # bytes of a payload that an error may show


def _by_object(codec: object, name: str) -> TypeCodec[Any]:
    if isinstance(codec, str):
        if ":" not in codec:
            raise ConfigurationError(
                f"codec={codec!r} is unknown; known are {', '.join(map(repr, FORMATS))}, "
                "or a dotted path 'package.module:name'"
            )
        codec = load(codec, "codec")
    encode: Any = getattr(codec, "encode", None)
    decode: Any = getattr(codec, "decode", None)
    if isinstance(codec, type) or not all(map(callable, (encode, decode))):
        raise ConfigurationError(
            f"codec={codec!r} is not a codec; expected an object with encode(value) and decode(data)"
        )
    return TypeCodec(encode, decode, name, f"{type(codec).__name__}()")


def _text_or_bytes(form: object) -> type | None:
    """`str` or `bytes`, if that is what the form is but for constraints."""
    form = unwrapped(form)
    if get_origin(form) is Annotated:
        form = unwrapped(get_args(form)[0])
    return form if form is str or form is bytes else None


def _raw(form: object, base: type, name: str) -> TypeCodec[Any]:
    encode, decode = (str.encode, bytes.decode) if base is str else (bytes.__bytes__, bytes.__bytes__)
    shown: Form = "text" if base is str else "bytes"
    if get_origin(unwrapped(form)) is not Annotated:
        return TypeCodec(encode, decode, name, "raw", shown)

    def constrained(data: bytes) -> object:
        return msgspec.convert(decode(data), form)

    return TypeCodec(encode, constrained, name, "raw", shown)


def _msgspec(form: object, name: str, format: str) -> TypeCodec[Any]:
    module = msgspec.json if format == "json" else msgspec.msgpack
    form = unwrapped(form)
    try:
        decoder: msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any] = module.Decoder(form)
        unfit = next(unfit_parts(form, format), None)
    except Exception as error:
        raise ConfigurationError(f"no codec for {name}: {error}. {_REMEDY}") from error
    if unfit is not None:
        raise ConfigurationError(f"no codec for {name}: {unfit}. {_REMEDY}")
    return TypeCodec(module.Encoder().encode, decoder.decode, name, format)


_REMEDY = (
    "What works: plain types, Struct, dataclass, TypedDict, NamedTuple, pydantic models; in a union of Structs give "
    "each a tag (class A(Struct, tag=True)); for any other type pass codec= an object with encode and decode"
)


def _pydantic(form: TypeForm[Any], name: str, format: str) -> TypeCodec[Any]:
    from pydantic import TypeAdapter

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(form)
    except Exception as error:
        raise ConfigurationError(
            f"no codec for {name}: {shortened(str(error))}. A type with pydantic models in it must be all pydantic's: "
            "it cannot mix them with Structs; or pass codec= an object with encode and decode"
        ) from error
    to_json, from_json = adapter.serializer.to_json, adapter.validator.validate_json
    if format == "json":
        return TypeCodec(to_json, from_json, name, format)
    # pydantic speaks no msgpack; by way of JSON its own rules for JSON hold in either format
    pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode
    dump, parse = msgspec.json.encode, msgspec.json.decode
    return TypeCodec(
        lambda value: pack(parse(to_json(value))), lambda data: from_json(dump(unpack(data))), name, format
    )


def _float_keys(bound: TypeCodec[Any]) -> TypeCodec[Any]:
    encode = bound.encode
    return TypeCodec(lambda key: encode(_canonical(key)), bound.decode, bound.type_name, bound.format)


def _canonical(key: object) -> float:
    if not isinstance(key, (int, float)) or isinstance(key, bool) or not math.isfinite(key):
        raise EncodeError(f"{key!r} cannot be a key of type float; expected a finite number")
    return key + 0.0  # the one float among its equals: 0.0 for -0.0, 1.0 for 1


_EXACT = frozenset(
    {
        type(None),
        bool,
        str,
        bytes,
        uuid.UUID,
        decimal.Decimal,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
    }
)


def _proves(kind: type, format: str) -> bool:
    """Whether an object of exactly this class must come back as it is from this format."""
    if kind is int:
        return format != "msgpack"  # which ends at 64 bits
    if kind is float:
        return format != "json"  # which has no nan and no infinity
    if issubclass(kind, enum.Enum):
        return not issubclass(kind, enum.Flag)  # whose combinations are no members
    return (
        kind in _EXACT
        or format not in FORMATS
        or issubclass(kind, msgspec.Struct)
        or dataclasses.is_dataclass(kind)
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
        or hasattr(kind, "__pydantic_validator__")
    )


def _round_trip_problem(codec: TypeCodec[Any], value: object) -> str | None:
    try:
        data = codec.encode(value)
        back = codec.decode(data)
    except Exception as error:
        return _reason(error)
    if back.__class__ is not value.__class__ and not (value.__class__ is int and back.__class__ is float):
        return f"it would come back as {type(back).__name__}"
    try:
        if back == value or repr(back) == repr(value):  # nan, and classes that compare by identity, are not equal
            return None
        if codec.format not in FORMATS and codec.encode(back) == data:
            return None
    except Exception as error:
        return _reason(error)
    return "it would come back changed"


def _reason(error: Exception) -> str:
    return shortened(str(error) or type(error).__name__)


def _type_name(form: object) -> str:
    return form.__qualname__ if isinstance(form, type) and not get_args(form) else str(form)
