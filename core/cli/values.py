"""Keys and values as people type them, into the declared types."""

from __future__ import annotations

from typing import Any

import msgspec
from thalweg.codec import DECODE_ERRORS, TypeCodec, explain
from thalweg.errors import DecodeError

__all__ = ["parsed"]


def parsed(codec: TypeCodec[Any], text: str, what: str) -> Any:
    """`text` as JSON of the codec's type; where that is `str` or `bytes` (or a codec of the user's), as it is.

    Text that is no JSON at all counts as a JSON string, so that dates, ids and enums need no second pair of quotes.
    Raises DecodeError that begins with `what`.
    """
    if codec.format not in ("json", "msgpack"):
        return _decoded(codec, text.encode(), what)
    try:
        plain = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        if text.lstrip().startswith(("{", "[", '"')):
            raise DecodeError(f"{what} is not JSON: {error}; got {text[:60]}") from None
        plain = text
    data = msgspec.json.encode(plain) if codec.format == "json" else msgspec.msgpack.encode(plain)
    return _decoded(codec, data, what)


def _decoded(codec: TypeCodec[Any], data: bytes, what: str) -> Any:
    try:
        return codec.decode(data)
    except DECODE_ERRORS as error:
        raise DecodeError(f"{what}: {explain(codec, error, data)}") from error
