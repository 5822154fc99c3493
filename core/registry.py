"""Drivers by URL scheme or dotted path: only the one that a URL names is imported."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, NamedTuple

from stevedore.driver import DriverManager
from typing_extensions import get_protocol_members

from .channel import Transport
from .errors import ConfigurationError, ThalwegError, UnknownScheme
from .mirror import Mirrors
from .store import Stores
from .url import Url

__all__ = ["installed_stores", "installed_transports", "load_mirrors", "load_stores", "load_transport"]


class _Kind(NamedTuple):
    """A kind of driver. extras: for the schemes that Thalweg itself can serve, the extra that their drivers need."""

    name: str
    group: str
    protocol: type
    extras: Mapping[str, str]


_TRANSPORT = _Kind(
    "broker",
    "thalweg.transports",
    Transport,
    {
        "amqp": "rabbitmq",
        "amqps": "rabbitmq",
        "kafka": "kafka",
        "kafkas": "kafka",
        "nats": "nats",
        "redis": "redis",
        "rediss": "redis",
        "tls": "nats",
    },
)
_STORES = _Kind("store", "thalweg.stores", Stores, {"rocksdb": "rocksdb"})
_MIRRORS = _Kind("mirror", "thalweg.mirrors", Mirrors, {"postgresql": "postgres", "redis": "redis", "rediss": "redis"})


def load_transport(broker: str | Url | Transport) -> Transport:
    """The transport that a URL names, not yet open. A `Transport` is returned as it is.

    A scheme is looked up among the entry points of the group `thalweg.transports`; `my.package:MyTransport`, alone or
    before `://host?option=value`, is imported. Raises `UnknownScheme`, or `ConfigurationError` if two distributions
    claim the scheme, or the driver cannot be imported or refuses the URL. No message shows credentials.
    """
    transport: Transport = _load(broker, _TRANSPORT)
    return transport


def load_stores(store: str | Url | Stores) -> Stores:
    """The stores that a URL names, by the rules of `load_transport`, from the group `thalweg.stores`."""
    stores: Stores = _load(store, _STORES)
    return stores


def load_mirrors(mirror: str | Url | Mirrors) -> Mirrors:
    """The mirrors that a URL names, by the rules of `load_transport`, from the group `thalweg.mirrors`."""
    mirrors: Mirrors = _load(mirror, _MIRRORS)
    return mirrors


def installed_transports() -> list[str]:
    """The schemes of broker URLs that installed distributions claim, sorted. Their drivers are not imported."""
    return sorted(entry_points(group=_TRANSPORT.group).names)


def installed_stores() -> list[str]:
    """The schemes of store URLs that installed distributions claim, sorted. Their drivers are not imported."""
    return sorted(entry_points(group=_STORES.group).names)


class _Drivers(DriverManager[Any]):
    """Stevedore's, which lists entry points from a cache on disk that rounds file times to two minutes: not this."""

    def __init__(self, group: str, name: str, claims: EntryPoints) -> None:
        self._claims = claims
        super().__init__(group, name)

    def list_entry_points(self) -> list[EntryPoint]:
        return list(self._claims)


def _load(where: Any, kind: _Kind) -> Any:
    if not isinstance(where, str | Url):
        return _checked(where, kind)
    url = Url(where) if isinstance(where, str) else where
    driver = _dotted(url, kind) if ":" in url.scheme else _installed(url, kind)
    if not callable(getattr(driver, "from_url", None)):
        raise ConfigurationError(f"{kind.name} {url}: {driver!r} has no class method 'from_url(url: Url)'")
    return _checked(_built(driver, url, kind), kind)


def _dotted(url: Url, kind: _Kind) -> Any:
    try:
        return EntryPoint(name=url.scheme, value=url.scheme, group=kind.group).load()
    except Exception as error:
        raise ConfigurationError(
            f"{kind.name} {url}: {url.scheme!r} cannot be imported: {type(error).__name__}: {error}. Expected "
            "'package.module:Class', installed or on PYTHONPATH"
        ) from error


def _installed(url: Url, kind: _Kind) -> Any:
    claims = entry_points(group=kind.group, name=url.scheme)
    owners = sorted(claim.dist.name if claim.dist else claim.value for claim in claims)
    if not owners:
        raise UnknownScheme(f"no driver for the {kind.name} {url}. {_remedy(url.scheme, kind)}")
    if len(owners) > 1:
        raise ConfigurationError(
            f"{kind.name} {url}: {url.scheme!r} is claimed by {' and '.join(owners)}. Uninstall all but one, "
            f"or name the driver: {' or '.join(repr(f'{claim.value}://') for claim in claims)}"
        )
    try:
        return _Drivers(kind.group, url.scheme, claims).driver
    except Exception as error:
        extra = kind.extras.get(url.scheme) if owners == ["thalweg"] else None
        remedy = f'pip install "thalweg[{extra}]"' if extra else f"install what {owners[0]} needs, or report it there"
        raise ConfigurationError(
            f"{kind.name} {url}: its driver cannot be imported: {type(error).__name__}: {error}. To mend it: {remedy}"
        ) from error


def _remedy(scheme: str, kind: _Kind) -> str:
    installed = sorted(entry_points(group=kind.group).names)
    text = f"Installed: {', '.join(f'{name}://' for name in installed)}"
    if kind is _STORES and scheme in _MIRRORS.extras:
        return f"{text}. {scheme}:// cannot be a store, which is local; it can be a table's mirror="
    meant = get_close_matches(scheme, installed, n=1)
    return f"Did you mean {meant[0]}://? {text}" if meant else text


def _built(driver: Any, url: Url, kind: _Kind) -> Any:
    try:
        return driver.from_url(url)
    except ThalwegError:
        raise
    except Exception as error:
        cause = error
    # Out of the handler, so that an exception that quotes the credentials is neither the cause nor the context.
    story = "".join(traceback.format_exception(cause))
    shown = url.redact(f"{type(cause).__name__}: {cause}")
    raise ConfigurationError(f"{kind.name} {url}: {shown}") from (cause if url.redact(story) == story else None)


def _checked(driver: Any, kind: _Kind) -> Any:
    """The object, if it has what its protocol asks for. Looked up statically: properties may need `open` first."""
    name = kind.protocol.__name__
    if isinstance(driver, type):
        raise ConfigurationError(f"{kind.name}={driver.__name__}: expected a URL or an object, not the class")
    missing = {m for m in get_protocol_members(kind.protocol) if inspect.getattr_static(driver, m, None) is None}
    if missing and not hasattr(type(driver), "__getattr__"):
        raise ConfigurationError(
            f"{kind.name}: {type(driver).__name__} is not a {name}: it lacks {', '.join(sorted(missing))}"
        )
    return driver
