"""URLs that name brokers and stores: parsed once, options typed, credentials never shown.

The standard library's parser is not used: it ends the credentials at the first `/`, drops line breaks in silence, and
quotes the whole URL in the exceptions it raises. Here a complaint about a URL quotes nothing of it but the scheme, and
is never raised while another exception is handled: that one would hang on it as its context, and may quote more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Literal, TypeVar, Union, get_args, get_origin
from urllib.parse import unquote_to_bytes

import msgspec

from .errors import ConfigurationError, UnknownOption

__all__ = ["Url"]

T = TypeVar("T")
O = TypeVar("O", bound=msgspec.Struct)  # noqa: E741 - options

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_DOTTED = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*:[A-Za-z_]\w*(?:\.\w+)*)(?:://|$)", re.ASCII)
_HOST = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+)(?::(.*))?")
_OPTION = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.ASCII)
_SECRET = re.compile(r"pass|pwd|secret|token|key|cred|auth|sign|private|jwt", re.IGNORECASE)


class Url:
    """`scheme://user:password@host:port,host/path?option=value`. `repr` and `str` leave the credentials out.

    The scheme may be a dotted path: `my.package:MyTransport`, alone or before `://`. In a password, `@ / ? # %` and
    blanks are percent-encoded. A `+` stands for itself. Raises `ConfigurationError` for what is not such a URL, or
    could be read in two ways.

    `hosts` is the list as written, `path` and `query` are decoded; `username` and `password` too, None if missing.
    """

    def __init__(self, text: str) -> None:
        text = text.strip()
        match = _SCHEME.match(text) or _DOTTED.match(text)
        if match is None:
            shown = repr(text) if re.fullmatch(r"[\w.-]*(:[0-9]+)?", text) else "it"
            raise ConfigurationError(
                f"not a URL: {shown} has no '://'; expected one like 'memory://' or 'redis://host'"
            )
        self.scheme = match[1] if ":" in match[1] else match[1].lower()
        self.text = text  # the secret whole: for a client to connect with, never to show
        rest = text[match.end() :]
        if " " in rest or not rest.isprintable():
            raise self._wrong("blanks and control characters must be percent-encoded (a blank: %20)")
        if "#" in rest:
            raise self._wrong("a '#' must be percent-encoded (%23)")

        place, _, query = rest.partition("?")
        authority, slash, path = place.partition("/")
        if authority and "@" in path:
            raise self._wrong("an '@' follows a '/': percent-encode '/' (%2F) in a password, and '@' (%40) in a path")
        credentials, _, self.hosts = authority.rpartition("@")
        if "@" in credentials and "," in credentials:
            raise self._wrong("credentials go once, before all hosts; percent-encode '@' (%40) in a password")
        user, _, password = credentials.partition(":")
        options = [self._option(pair) for pair in query.split("&") if pair]

        self.username: str | None = self._decode(user) or None
        self.password: str | None = self._decode(password) or None
        self.path = self._decode(slash + path)
        self.query: Mapping[str, str] = {name: self._decode(value) for name, value in options}
        self._addresses = [self._address(host) for host in self.hosts.split(",")] if self.hosts else []
        if len(self.query) < len(options):
            raise self._wrong("an option is given twice")

        hidden = {name: value for name, value in options if _is_secret(name, value)}
        hidden_user = "" if password else user  # a token, as in nats://token@host
        raw = {password, hidden_user, *hidden.values()} - {""}
        self._secrets = sorted(raw | {self._decode(secret) for secret in raw}, key=len, reverse=True)
        who = f"{user}:***@" if password else "***@" if user else ""
        shown_options = "&".join(f"{name}=***" if name in hidden else f"{name}={value}" for name, value in options)
        self._shown = f"{self.scheme}://{who}{self.hosts}{slash}{path}{'?' if options else ''}{shown_options}"

    @property
    def file(self) -> str:
        """The file of `scheme:///relative` or `scheme:////absolute` (SQLAlchemy's rule); '' if none is named."""
        if self.hosts:
            raise self._wrong(f"a file takes three slashes: '{self.scheme}:///file', or four if its path is absolute")
        return self.path.removeprefix("/")

    def addresses(self, default_port: int) -> list[tuple[str, int]]:
        """Host and port of each host (an IPv6 address without its brackets); `localhost` if none is named."""
        return [(host, port or default_port) for host, port in self._addresses] or [("localhost", default_port)]

    def options(self, into: type[O]) -> O:
        """The query as the driver's `Struct` of options.

        Raises `UnknownOption` naming the option, the value seen (unless secret) and what may be said instead.
        """
        fields = {field.encode_name: field for field in msgspec.structs.fields(into)}
        known = ", ".join(f"{name} ({_type_name(field.type)})" for name, field in fields.items()) or "none"
        values: dict[str, object] = {}
        for name, text in self.query.items():
            if name not in fields:
                close = get_close_matches(name, fields, n=1)
                meant = f". Did you mean {close[0]!r}? Its" if close else "; its"
                raise UnknownOption(f"{self.scheme}:// has no option {name!r}{meant} options: {known}")
            values[name], problem = _convert(text, fields[name].type)
            if problem:
                seen = f"{name}=***" if _is_secret(name, text) else f"{name}={text!r}: {problem}"
                may_be = _type_name(fields[name].type)
                raise UnknownOption(f"{self.scheme}:// cannot use option {seen}; it may be: {may_be}")
        options, problem = _convert(values, into)
        if options is None:
            raise UnknownOption(f"{self.scheme}:// options: {self.redact(problem)}; its options: {known}")
        return options

    def redact(self, text: str) -> str:
        """`text` with the secrets of this URL masked: for what a client library says about a URL it was given."""
        text = text.replace(self.text, self._shown)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"Url({self._shown!r})"

    def _wrong(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"cannot read the {self.scheme}:// URL: {why}")

    def _decode(self, text: str) -> str:
        data = unquote_to_bytes(text)
        decoded = data.decode(errors="replace")  # the strict way raises an exception that holds the secret
        if decoded.encode() != data or "\0" in decoded:
            raise self._wrong("what is percent-encoded must be UTF-8 without NUL")
        return decoded

    def _option(self, pair: str) -> tuple[str, str]:
        match = _OPTION.fullmatch(pair)
        if match is None:
            raise self._wrong("options are written ?name=value&name=value; percent-encode a '?' (%3F) before them")
        return match[1], match[2]

    def _address(self, host: str) -> tuple[str, int | None]:
        match = _HOST.fullmatch(host)
        if match is None:
            raise self._wrong("hosts are written host:port,host:port, IPv6 addresses in brackets: [::1]:port")
        name, port = match[1].strip("[]"), match[2]
        if port is None:
            return name, None
        if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise self._wrong("a port is not a number from 1 to 65535 (or a password lacks the '@' and host after it)")
        return name, int(port)


def _is_secret(name: str, value: str) -> bool:
    return bool(_SECRET.search(name)) or ("://" in value and "@" in value)


def _convert(value: object, into: type[T]) -> tuple[T | None, str]:
    """The value as `into`, or what is wrong with it (returned, so that no exception hangs on the one raised for it)."""
    try:
        return msgspec.convert(value, into, strict=False), ""
    except msgspec.ValidationError as error:
        return None, str(error) or "invalid"


def _type_name(kind: object) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (Union, UnionType):  # what a query says is never None
        return "|".join(_type_name(argument) for argument in arguments if argument is not NoneType)
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
