"""URLs that name brokers and stores: parsed once, options typed, credentials never shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from .errors import ConfigurationError, UnknownOption

__all__ = ["Url"]

O = TypeVar("O", bound=msgspec.Struct)  # noqa: E741 - options


class Url:
    """`scheme://user:password@host:port,host/path?option=value`. `repr` and `str` leave the credentials out."""

    def __init__(self, text: str) -> None:
        parts = urlsplit(text)
        if not parts.scheme or "://" not in text:
            raise ConfigurationError(
                f"not a URL: {_redact(text)!r}; expected something like 'memory://' or 'sqlite:///file.db'"
            )
        self.scheme = parts.scheme
        self.text = text  # the secret whole: for a client to connect with, never to show
        self.path = unquote(parts.path)
        credentials, _, self.hosts = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        self.username: str | None = unquote(user) or None
        self.password: str | None = unquote(password) or None
        self.query: Mapping[str, str] = dict(parse_qsl(parts.query, keep_blank_values=True))

    @property
    def file(self) -> str:
        """The file of `scheme:///relative` or `scheme:////absolute` (SQLAlchemy's rule); '' if none is named."""
        return self.path.removeprefix("/")

    def options(self, into: type[O]) -> O:
        """The query as the driver's `Struct` of options.

        Raises `UnknownOption` naming the option, the value seen and the known ones with their types.
        """
        fields = {field.encode_name: field for field in msgspec.structs.fields(into)}
        known = ", ".join(f"{name} ({_type_name(field.type)})" for name, field in fields.items()) or "none"
        for name in self.query:
            if name not in fields:
                raise UnknownOption(f"{self.scheme}:// has no option {name!r}; its options: {known}")
        values: dict[str, object] = {}
        for name, text in self.query.items():
            try:
                values[name] = msgspec.convert(text, fields[name].type, strict=False)
            except msgspec.ValidationError as error:
                raise UnknownOption(f"{self.scheme}:// option {name}={text!r}: {error}; its options: {known}") from None
        try:
            return msgspec.convert(values, into)
        except msgspec.ValidationError as error:
            raise UnknownOption(f"{self.scheme}:// options: {error}; its options: {known}") from None

    def __str__(self) -> str:
        return _redact(self.text)

    def __repr__(self) -> str:
        return f"Url({_redact(self.text)!r})"


def _redact(text: str) -> str:
    """Hide credentials and any query value whose name sounds like one."""
    head, mark, query = text.partition("?")
    scheme, _, rest = head.partition("://")
    credentials, at, place = rest.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        rest = f"{user}:***@{place}" if colon else f"***@{place}"
    shown = [
        f"{name}=***" if any(word in name.lower() for word in ("pass", "secret", "token", "key", "cred")) else pair
        for pair in query.split("&")
        for name in [pair.partition("=")[0]]
    ]
    return f"{scheme}://{rest}{mark}{'&'.join(shown)}" if "://" in head else head


def _type_name(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
