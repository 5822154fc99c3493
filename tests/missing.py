"""What a broker that is not there means."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(broker: str, reason: str) -> NoReturn:
    """Skips the test, or fails it where REQUIRE_BROKERS lists the broker or `all`."""
    required = os.environ.get("REQUIRE_BROKERS", "").replace(",", " ").split()
    if "all" in required or broker in required:
        pytest.fail(f"REQUIRE_BROKERS={' '.join(required)}, but {broker} is missing: {reason}", pytrace=False)
    pytest.skip(f"{broker} is missing: {reason}")
