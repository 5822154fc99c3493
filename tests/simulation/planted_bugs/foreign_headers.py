"""Headers of ours that users send along are taken for ours."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

from thalweg import headers, topic
from thalweg.message import Headers

RULE = "15"

assert topic.names is headers


def as_they_come(given: dict[str, bytes]) -> Headers:
    return tuple(given.items())


def planted() -> AbstractContextManager[object]:
    return patch.object(headers, "stripped", as_they_come)
