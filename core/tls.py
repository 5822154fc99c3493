"""TLS as the URLs of all drivers have it: by scheme, with files that options name."""

from __future__ import annotations

import ssl
from typing import Protocol

from .errors import ConfigurationError
from .url import Url

__all__ = ["TlsOptions", "tls_context"]


class TlsOptions(Protocol):
    """Fields of a driver's options: files of the authority and of this client's certificate and key.

    tls_verify: False trusts any server.
    """

    @property
    def tls_ca(self) -> str | None: ...
    @property
    def tls_cert(self) -> str | None: ...
    @property
    def tls_key(self) -> str | None: ...
    @property
    def tls_verify(self) -> bool: ...


def tls_context(url: Url, scheme: str, options: TlsOptions) -> ssl.SSLContext | None:
    """What to connect with where the URL is of the TLS `scheme`, else None.

    Raises `ConfigurationError` where a file cannot be used, or where one is named under another scheme.
    """
    if url.scheme != scheme:
        if options.tls_ca or options.tls_cert:
            raise ConfigurationError(f"{url}: TLS options need the scheme {scheme}://")
        return None
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls_cert is not None:
            context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{url}: its TLS files cannot be used: {error}") from None
    if not options.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
