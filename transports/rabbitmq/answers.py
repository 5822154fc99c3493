"""What the stream plug-in means by its response codes."""

from __future__ import annotations

from thalweg.errors import AccessDenied, BrokerError

from .connection import Endpoint
from .streams import NoStream

__all__ = ["error_of"]

_CODES = {
    2: "the stream does not exist",
    3: "the subscription exists already",
    4: "the subscription does not exist",
    5: "the stream exists already",
    6: "the stream has no leader at the moment",
    7: "it does not know the SASL mechanism PLAIN",
    8: "it refuses the user name or the password",
    11: "the user guest may enter from the server's own machine only",
    12: "it refuses the virtual host",
    13: "it does not know the request",
    14: "the frame is too large",
    15: "an internal error, see its log",
    16: "the user lacks the permission (rabbitmqctl set_permissions)",
    17: "a precondition failed",
    18: "the publisher does not exist",
}

_GONE = {2, 6, 18}
_DENIED = 16


def error_of(code: int, endpoint: Endpoint, what: str) -> BrokerError:
    """What an answer with this code says. what: was being done; goes before it."""
    kind = NoStream if code in _GONE else AccessDenied if code == _DENIED else BrokerError
    return kind(str(endpoint.explain(_CODES.get(code, f"response code {code}"), what)))
